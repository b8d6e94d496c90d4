"""GeoClip (Gilani et al., arXiv 2506.06549, section 3, theorem 2), diagonal by groups.

The paper clips M(g - a) to length 1 with M = sqrt(gamma / tr sqrt(Lambda)) Lambda^(-1/4) U^T,
Lambda and U of the gradients' covariance as seen in released noisy gradients: directions of
little variance get little noise. With whitened clipping M is diagonal, 1 / w_k on group k:

    w_k  ~  lambda_k^(1/4),   lambda_k = (released ||signal_k||^2 / d_k)^+ + s_k^2,

lambda an average over windows with the paper's forgetting beta_2 = 0.999 a step, so that
the charged noise is part of it as in the paper. Differences: one scale per tensor, no
rotation U and no shift a, for which the engine has no place; the joint scale is `flat`'s,
since under Adam and a C far below the norms a common factor of all w_k cancels. Everything
read was released by the step itself: no signal is needed and none is paid for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from controller.baselines.arm import Arm
from controller.baselines.flat import CLIP_NORM
from controller.baselines.settings import with_steered_clips, without_sensing
from controller.baselines.steering import Chosen, Clips, Memory, SteeringPolicy
from controller.observation import GroupDescription
from controller.released import number
from dp_core.planner import PlanRequest
from dp_core.ports import HyperPolicy
from dp_core.telemetry import GroupTelemetry, WindowTelemetry

BETA = 0.999  # forgetting of the covariance, per step
VARIANCE_MIN = 1e-15  # the paper's lower clamp of eigenvalues


def variance(group: GroupTelemetry) -> float:
    """lambda_k of one window, per coordinate of the noised sum."""
    signal, size = number(group.signal_norm_squared), max(number(group.size), 1.0)
    found = max(signal, 0.0) / size + number(group.noise_std) ** 2
    return max(found, VARIANCE_MIN) if math.isfinite(found) else VARIANCE_MIN


def weights(variances: Sequence[float], sizes: Sequence[float], *, joint: float) -> list[float]:
    """w_k ~ lambda_k^(1/4), scaled so that sum d_k w_k^2 = joint^2 sum d_k: `flat`'s energy."""
    shape = [v**0.25 for v in variances]
    energy = math.fsum(d * w * w for d, w in zip(sizes, shape, strict=True))
    scale = joint * math.sqrt(math.fsum(sizes) / energy)
    return [scale * w for w in shape]


def rule(telemetry: WindowTelemetry, clips: Clips, memory: Memory) -> Chosen:
    groups = telemetry.groups
    keep = BETA ** max(telemetry.steps_per_chunk, 1)
    seen = [variance(g) for g in groups]
    # Scaled by 1 / (1 - keep^n), as Adam corrects its averages for their start at zero.
    sums = memory.get("sums", [0.0] * len(groups))
    sums = [keep * old + (1 - keep) * new for old, new in zip(sums, seen, strict=True)]
    weight = keep * memory.get("weight", [0.0])[0] + (1 - keep)
    root = math.sqrt(len(groups))
    found = weights(
        [max(s / weight, VARIANCE_MIN) for s in sums],
        [max(number(g.size), 1.0) for g in groups],
        joint=float(CLIP_NORM) * root,
    )
    # Equal shares 1/K make the weight of a group C_k sqrt(K).
    return Chosen(clips=tuple(w / root for w in found), memory={"sums": sums, "weight": [weight]})


def prepare(request: PlanRequest) -> PlanRequest:
    steered = with_steered_clips(
        request, rule="whitened", allocation="equal_budget", clip_norm=CLIP_NORM
    )
    return without_sensing(steered)


def policy(*, groups: Sequence[GroupDescription], seed: int, chunks_planned: int) -> HyperPolicy:
    return SteeringPolicy(name="geoclip", groups=groups, rule=rule)


ARM = Arm(
    name="geoclip",
    source="arXiv 2506.06549, section 3",
    summary="clips in units of each tensor's released gradient variance",
    published=True,
    default_learning_rate="0.002",
    prepare=prepare,
    policy=policy,
)
