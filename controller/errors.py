"""Errors of the controller. Their texts name a setting and a remedy, never an observation.

    ControllerError
    ├── ControllerUnknown    a controller type that this version does not offer
    ├── SettingInvalid       a setting of the controller has an unacceptable value
    ├── GroupsChanged        telemetry of other clip groups than the policy was made for
    └── PolicyStateMismatch  a stored state belongs to another policy, or is damaged

A `Raw` value in telemetry is a `TypeError`, as everywhere: it is a mistake in code.
"""

from __future__ import annotations

from collections.abc import Sequence


class ControllerError(Exception):
    """Root of the family."""


class ControllerUnknown(ControllerError):
    """No controller of that type exists in this version."""

    def __init__(self, controller_type: str, known: Sequence[str]) -> None:
        self.controller_type = controller_type
        self.known = tuple(known)
        super().__init__(f"No such controller type. Choose one of: {', '.join(known)}.")


class SettingInvalid(ControllerError):
    """A setting of the controller has an unacceptable value."""

    def __init__(self, setting: str, problem: str) -> None:
        self.setting = setting
        self.problem = problem
        super().__init__(f"{setting}: {problem}.")


class GroupsChanged(ControllerError):
    """A policy serves one list of clip groups, in one order, for the whole job."""

    def __init__(self, *, expected: int, found: int) -> None:
        self.expected = expected
        self.found = found
        super().__init__(
            f"The policy was made for {expected} clip groups and met {found}, or others in "
            "another order. Make a new policy for this job."
        )


class PolicyStateMismatch(ControllerError):
    """A stored state does not fit this policy; nothing of it was taken over."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"The stored policy state cannot be used: {problem}.")
