"""Makes the hyper-policy that a job's plan names; the one place that knows all of them."""

from __future__ import annotations

from collections.abc import Sequence

from controller.choice import resolve_type
from controller.observation import GroupDescription, describe_groups
from controller.reference import ReferencePolicy
from dp_core.ports import HyperPolicy
from dp_core.telemetry import WindowTelemetry


def make_policy(
    controller_type: str,
    *,
    groups: Sequence[GroupDescription] | WindowTelemetry,
    seed: int,
    chunks_planned: int,
) -> HyperPolicy:
    """A fresh policy for one job.

    `groups` are the job's clip groups in the order of its telemetry, or the telemetry
    from before its first window.

    Raises:
        ControllerUnknown: no such type in this version.
        SettingInvalid: no groups or no windows.
        PolicyStateMismatch: the shipped policy is missing or damaged.
        TypeError: the telemetry holds anything but released and public values.
    """
    if isinstance(groups, WindowTelemetry):
        groups = describe_groups(groups)
    resolved = resolve_type(controller_type)
    if resolved == "reference":
        return ReferencePolicy(groups=groups)
    if resolved == "rldp":
        # the reference must work where no RL library is installed or wanted
        from controller.sac import SacPolicy

        return SacPolicy(groups=groups, seed=seed, chunks_planned=chunks_planned)
    from controller.pretraining.policy_file import read_policy
    from controller.sac import SacPolicy

    return SacPolicy(
        groups=groups, seed=seed, chunks_planned=chunks_planned, pretrained=read_policy()
    )
