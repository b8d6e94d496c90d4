"""Adaptive quantile clipping (Andrew et al., arXiv 1905.03871, section 2.2), per group
(He et al., arXiv 2212.01539, section 3.2).

    C_k <- C_k exp(-eta (b_k - gamma))

b_k is the noised share of patients whose gradient of group k is no longer than C_k. The
papers release one bit vector per step beside the gradient and charge it, and so does this
plan (privacy.md 2.4). Differences: settings change at window borders only, so that one
update takes a window's mean bit with the step sizes of its steps added up, at most
`GAIN_MAX` (more than about 2 would overshoot, since the bit answers to log C with a slope
near 1); gamma = 0.5, the median; noise is isotropic, the papers' first allocation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from controller.baselines.arm import Arm
from controller.baselines.settings import with_steered_clips
from controller.baselines.steering import Chosen, Clips, Memory, SteeringPolicy
from controller.observation import GroupDescription
from controller.released import number
from dp_core.planner import PlanRequest
from dp_core.ports import HyperPolicy
from dp_core.telemetry import WindowTelemetry

ETA = 0.2  # per step, of the geometric update
GAIN_MAX = 1.0  # per window
GAMMA = 0.5


def updated(clip: float, fraction: float, *, steps: int) -> float:
    """The geometric update of one clip norm after a window of `steps` steps."""
    share = min(max(fraction, 0.0), 1.0)
    return clip * math.exp(-min(ETA * steps, GAIN_MAX) * (share - GAMMA))


def rule(telemetry: WindowTelemetry, clips: Clips, memory: Memory) -> Chosen:
    following = [
        clip
        if group.clip_fraction is None
        else updated(clip, number(group.clip_fraction.value), steps=telemetry.steps_per_chunk)
        for clip, group in zip(clips, telemetry.groups, strict=True)
    ]
    return Chosen(clips=tuple(following), memory=memory)


def prepare(request: PlanRequest) -> PlanRequest:
    return with_steered_clips(request, rule="per_group", allocation="equal_noise")


def policy(*, groups: Sequence[GroupDescription], seed: int, chunks_planned: int) -> HyperPolicy:
    return SteeringPolicy(name="quantile", groups=groups, rule=rule)


ARM = Arm(
    name="quantile",
    source="arXiv 1905.03871, section 2.2; 2212.01539, section 3.2",
    summary="each tensor's clip norm follows the median, from paid noised bits",
    published=True,
    default_learning_rate="0.002",
    prepare=prepare,
    policy=policy,
)
