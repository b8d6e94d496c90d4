"""The reference plan as a hyper-policy: no residual, ever. The twin every other is judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from controller.errors import PolicyStateMismatch
from controller.observation import GroupDescription, check_count
from controller.released import require_released
from dp_core.ports import GroupActions
from dp_core.telemetry import WindowTelemetry

STATE_FILE = "policy.json"
_STATE = b'{"controller":"reference","format_version":1}'


class ReferencePolicy:
    """Proposes action 0 for each window; learns nothing, needs no RL library."""

    name = "reference"

    def __init__(self, *, groups: Sequence[GroupDescription]) -> None:
        self._groups = len(groups)

    def propose(self, telemetry: WindowTelemetry) -> GroupActions:
        require_released(telemetry)
        check_count(telemetry, self._groups)
        return GroupActions.neutral(self._groups)

    def learn(self, telemetry: WindowTelemetry) -> None:
        require_released(telemetry)
        check_count(telemetry, self._groups)

    def digest(self) -> str:
        return hashlib.sha256(_STATE).hexdigest()

    def state(self) -> dict[str, bytes]:
        return {STATE_FILE: _STATE}

    def restore(self, state: Mapping[str, bytes]) -> None:
        if dict(state) != {STATE_FILE: _STATE}:
            raise PolicyStateMismatch("it was not written by the reference policy of this version")
