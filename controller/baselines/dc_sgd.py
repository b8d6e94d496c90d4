"""DC-SGD-E (Wei et al., arXiv 2503.22988, section IV): the clip norm of least expected error.

    C* = argmin_C  sigma^2 C^2 d / B^2 + E[max(||g|| - C, 0)^2]

the noise's variance plus what clipping takes away. The paper reads the distribution of norms
from a noised histogram and charges it. This plan pays for one noised bit per group and step
instead, "is the norm at most C?", and the distribution is a log-normal fitted to those bits:
probit(fraction) = (log C - mu) / tau is a straight line in log C, fitted by weighted least
squares over the windows so far with a forgetting of 0.8, each bit weighted by its published
noise. Odd windows run a quarter octave above the optimum and even ones as much below, or one
point would have to carry a line. Per group with equal noise shares, so that a group's noise
is sigma sqrt(K) C_k; the paper has one group. B follows from the public noise of the bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from controller.baselines.arm import Arm
from controller.baselines.settings import with_steered_clips
from controller.baselines.steering import SENSING, Chosen, Clips, Memory, SteeringPolicy
from controller.observation import GroupDescription
from controller.released import number
from dp_core.mechanism import CLIP_BIT_SENSITIVITY
from dp_core.planner import PlanRequest
from dp_core.ports import HyperPolicy
from dp_core.telemetry import GroupTelemetry, WindowTelemetry

FORGETTING = 0.8  # per window, of the sums behind the fit
SLOPE_PRIOR, SLOPE_PRIOR_WEIGHT = 2.0, 20.0  # 1/tau of usual gradient norms, until bits say more
SLOPE_MIN, SLOPE_MAX = 0.5, 5.0
FRACTION_MIN = 0.02  # bits beyond it say only that C lies far off
OCTAVES_MAX = 2.0  # that a clip norm moves in one window
DITHER_OCTAVES = 0.25
GRID = [3.0 * step / 40 for step in range(-40, 41)]  # candidates, in tau around mu
_NORMAL = NormalDist()
_SUMS = 5  # w, w x, w z, w x x, w x z of each group, with x = log C, z = probit(fraction)


@dataclass(frozen=True, kw_only=True)
class NormDistribution:
    """Log-normal gradient norms: log ||g|| ~ N(mu, tau^2)."""

    mu: float
    tau: float


def observation(clip: float, fraction: float, std: float) -> tuple[float, float, float]:
    """(weight, log C, probit) of one noised fraction; the weight is 1 / variance of the probit."""
    kept = min(max(fraction, FRACTION_MIN), 1 - FRACTION_MIN)
    probit = _NORMAL.inv_cdf(kept)
    density = _NORMAL.pdf(probit)
    return (density / max(std, 1e-3)) ** 2, math.log(clip), probit


def fit(sums: Sequence[float]) -> NormDistribution:
    """The straight line through weighted points (log C, probit), its slope drawn to a prior."""
    w, wx, wz, wxx, wxz = sums
    x, z = wx / w, wz / w
    spread = max(wxx - w * x * x, 0.0)
    along = wxz - w * x * z
    slope = (along + SLOPE_PRIOR_WEIGHT * SLOPE_PRIOR) / (spread + SLOPE_PRIOR_WEIGHT)
    slope = min(max(slope, SLOPE_MIN), SLOPE_MAX)
    return NormDistribution(mu=x - z / slope, tau=1 / slope)


def clipping_error(norms: NormDistribution, clip: float) -> float:
    """E[max(||g|| - C, 0)^2] of log-normal norms, in closed form."""
    y = (math.log(clip) - norms.mu) / norms.tau
    first = math.exp(norms.mu + norms.tau**2 / 2)
    second = math.exp(2 * norms.mu + 2 * norms.tau**2)
    return max(
        second * _NORMAL.cdf(2 * norms.tau - y)
        - 2 * clip * first * _NORMAL.cdf(norms.tau - y)
        + clip**2 * _NORMAL.cdf(-y),
        0.0,
    )


def best_clip(norms: NormDistribution, *, noise_variance_per_square: float) -> float:
    """The candidate with the least C^2 noise + clipping error."""
    candidates = [math.exp(norms.mu + norms.tau * step) for step in GRID]
    return min(
        candidates, key=lambda c: noise_variance_per_square * c * c + clipping_error(norms, c)
    )


def batch_size(telemetry: WindowTelemetry, bit_fraction_std: float) -> float:
    """B, from the public noise of a clip fraction: std = s_bit / (B sqrt(m)) (privacy.md G13)."""
    share = float(SENSING.share) * float(SENSING.bits_fraction) / len(telemetry.groups)
    bit_std = number(telemetry.noise_multiplier) * CLIP_BIT_SENSITIVITY / math.sqrt(share)
    return bit_std / (bit_fraction_std * math.sqrt(max(telemetry.steps_per_chunk, 1)))


def next_clip(group: GroupTelemetry, telemetry: WindowTelemetry, sums: Sequence[float]) -> float:
    """The optimum of one group, at most two octaves from the clip norm it had."""
    assert group.clip_fraction is not None
    batch = batch_size(telemetry, number(group.clip_fraction.std))
    noise = number(telemetry.noise_multiplier) ** 2 * len(telemetry.groups) * number(group.size)
    found = best_clip(fit(sums), noise_variance_per_square=noise / batch**2)
    clip = number(group.clip_norm)
    return min(max(found, clip / 2**OCTAVES_MAX), clip * 2**OCTAVES_MAX)


def rule(telemetry: WindowTelemetry, clips: Clips, memory: Memory) -> Chosen:
    up = DITHER_OCTAVES if telemetry.chunk % 2 == 0 else -DITHER_OCTAVES
    following, remembered = list(clips), dict(memory)
    for k, group in enumerate(telemetry.groups):
        fraction = group.clip_fraction
        if fraction is None or not (number(fraction.std) > 0 and number(group.clip_norm) > 0):
            continue
        w, x, z = observation(number(group.clip_norm), number(fraction.value), number(fraction.std))
        old = memory.get(str(k), [0.0] * _SUMS)
        new = (w, w * x, w * z, w * x * x, w * x * z)
        sums = [FORGETTING * a + b for a, b in zip(old, new, strict=True)]
        remembered[str(k)] = sums
        following[k] = next_clip(group, telemetry, sums) * 2.0**up
    return Chosen(clips=tuple(following), memory=remembered)


def prepare(request: PlanRequest) -> PlanRequest:
    return with_steered_clips(request, rule="per_group", allocation="equal_budget")


def policy(*, groups: Sequence[GroupDescription], seed: int, chunks_planned: int) -> HyperPolicy:
    return SteeringPolicy(name="dc_sgd", groups=groups, rule=rule)


ARM = Arm(
    name="dc_sgd",
    source="arXiv 2503.22988, section IV",
    summary="each tensor's clip norm of least expected error, from paid noised bits",
    published=True,
    default_learning_rate="0.002",
    prepare=prepare,
    policy=policy,
)
