"""From any action to a valid step: clip norms, noise stds and the one noise multiplier.

A step releases, for one Poisson draw, every group's clipped sum plus Gaussian noise,
and the noised telemetry sums. With sensitivity D_j and std s_j of component j,

    1 / sigma^2 = sum_j (D_j / s_j)^2                                (privacy.md G2)

is its effective noise multiplier, and that number alone is charged. Code sets sigma
and the shares pi_j, and derives s_j = sigma * D_j / sqrt(pi_j) (G3), never the reverse.
Torch-free: numpy float32 and float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from dp_core.errors import InvariantViolation, PlanInvalid, PlanViolation
from dp_core.events import Component
from dp_core.plan import Allocation, ClipFactor, ClippingPlan, ClipRule, RunPlan
from dp_core.ports import GroupActions

# Covers rounding of norm, factor and product for groups of up to 1e7 coordinates (G11).
CLIP_INFLATION = 1 + 2.0**-16
STD_INFLATION = 1 + 2.0**-20
SHARE_MIN_OF_EQUAL = 0.1
CLIP_BIT_SENSITIVITY = 0.5  # of a centred bit (G13)
GROUP_SIZE_MAX = 10_000_000
REFERENCE_GAIN, REFERENCE_GAIN_MAX = 0.2, 1.0  # per step, and per window
GRID_QUANTA = 2**14  # noise std in quanta of the integer grid (G12)


@dataclass(frozen=True, kw_only=True)
class GroupLayout:
    """The clip groups of one model, in sorted order of their ids. Public."""

    ids: tuple[str, ...]
    sizes: tuple[int, ...]  # coordinates per group

    def __post_init__(self) -> None:
        if not self.ids or len(self.ids) != len(self.sizes):
            raise PlanInvalid("groups", "needs one size per group and at least one group")
        if list(self.ids) != sorted(set(self.ids)):
            raise PlanInvalid("groups", "ids must be sorted and unique")
        if any(not 1 <= size <= GROUP_SIZE_MAX for size in self.sizes):
            raise PlanInvalid("groups", f"group size outside 1..{GROUP_SIZE_MAX}")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """The only holder of clip norms and stds of a window (G6).

    Clipping, noise, divisor and journal read this one object. `clip_norms` and
    `noise_stds` are float32 values held as Python floats; `bit_std` and `loss_std` are
    the stds on the centred telemetry sums.
    """

    layout: GroupLayout
    clip_norms: tuple[float, ...]
    shares: tuple[float, ...]  # of the gradient part; add to 1
    noise_stds: tuple[float, ...]
    bit_std: float
    loss_std: float
    loss_cap: float
    noise_multiplier: str  # the level that is charged
    rule: ClipRule = "per_group"
    factor: ClipFactor = "clip"

    @classmethod
    def flat(cls, clip_norm: float, noise_multiplier: float, *, coordinates: int) -> StepSettings:
        """One clip over all coordinates and no telemetry: Opacus' DPOptimizer."""
        return cls.per_layer((clip_norm,), noise_multiplier, sizes=(coordinates,))

    @classmethod
    def per_layer(
        cls, clip_norms: Sequence[float], noise_multiplier: float, *, sizes: Sequence[int]
    ) -> StepSettings:
        """One clip per layer, equal noise everywhere: Opacus' DPPerLayerOptimizer."""
        joint = math.sqrt(math.fsum(c * c for c in clip_norms))
        return cls(
            layout=GroupLayout(
                ids=tuple(f"{k:04d}" for k in range(len(sizes))), sizes=tuple(sizes)
            ),
            clip_norms=tuple(clip_norms),
            shares=tuple(
                (c / joint) ** 2 if joint > 0 else 1 / len(clip_norms) for c in clip_norms
            ),
            noise_stds=(noise_multiplier * joint,) * len(clip_norms),
            bit_std=math.inf,
            loss_std=math.inf,
            loss_cap=math.inf,
            noise_multiplier=repr(noise_multiplier),
        )

    @property
    def whitening_weights(self) -> tuple[float, ...]:
        """w_k = C_k / sqrt(share_k): noise std per group in units of the step's noise (G9)."""
        return tuple(c / math.sqrt(p) for c, p in zip(self.clip_norms, self.shares, strict=True))

    @property
    def sensitivities(self) -> tuple[float, ...]:
        """L2 sensitivity of every noised component: groups, then bits and loss if released."""
        groups = tuple(c * CLIP_INFLATION for c in self.clip_norms)
        if math.isinf(self.bit_std):
            return groups
        return (*groups, *[CLIP_BIT_SENSITIVITY] * len(self.layout), self.loss_cap / 2)

    @property
    def stds(self) -> tuple[float, ...]:
        """Noise std of every component, in the order of `sensitivities`."""
        if math.isinf(self.bit_std):
            return self.noise_stds
        return (*self.noise_stds, *[self.bit_std] * len(self.layout), self.loss_std)

    def components(self) -> tuple[Component, ...]:
        """Every noised part of a step, as it goes to the journal: groups, bits, loss."""
        bits = [f"signal:clip_bit:{gid}" for gid in self.layout.ids]
        ids = (*self.layout.ids, *bits, "signal:clipped_loss")
        bounds, stds = self.sensitivities, self.stds
        return tuple(
            Component(id=name, sensitivity=_exact(bound), std=_exact(std))
            for name, bound, std in zip(ids[: len(stds)], bounds, stds, strict=True)
        )

    def effective_noise_multiplier(self) -> float:
        """sigma recomputed in float64 from sensitivities and stds (G2)."""
        return effective_noise_multiplier(self.sensitivities, self.stds)


def _exact(value: float) -> str:
    """Exact decimal expansion of a float, so that others recompute from the same number."""
    return format(Decimal(value), "f")


def effective_noise_multiplier(sensitivities: Sequence[float], stds: Sequence[float]) -> float:
    """(sum (D_j / s_j)^2)^(-1/2); the noise multiplier of one joint Gaussian release.

    Raises:
        PlanInvalid: lengths differ, or a value is not positive and finite.
    """
    if len(sensitivities) != len(stds) or not stds:
        raise PlanInvalid("components", "needs as many stds as sensitivities, at least one")
    if any(not (math.isfinite(v) and v > 0) for v in (*sensitivities, *stds)):
        raise PlanInvalid("components", "needs positive finite values", "Zero noise is refused.")
    terms = math.fsum((d / s) ** 2 for d, s in zip(sensitivities, stds, strict=True))
    return 1 / math.sqrt(terms)


def up32(value: float) -> float:
    """The smallest float32 that is not below `value`."""
    rounded = np.float32(value)
    if float(rounded) < value:
        rounded = np.nextafter(rounded, np.float32(np.inf))
    return float(rounded)


def prior_shares(allocation: Allocation, clips: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Shares of the gradient part before the policy's tilt (table of privacy.md 2).

    `least_energy` minimises the noise energy sum_k d_k s_k^2 at equal sigma.
    """
    if allocation == "equal_budget":
        weights = np.ones_like(clips)
    elif allocation == "equal_noise":
        weights = clips**2
    else:
        weights = clips * np.sqrt(sizes)
    return np.asarray(weights / weights.sum())


def admit(
    plan: RunPlan,
    layout: GroupLayout,
    references: Sequence[float],
    action: GroupActions,
    *,
    first_step: int | None = None,
) -> StepSettings:
    """Maps any action, NaN and infinities included, to valid settings (privacy.md 2.1).

    `references` are the current Cref_k; `first_step` is the started step with which the
    window begins, needed where the plan has a schedule of the noise. Guarantee (G5): the
    recomputed sigma lies in [level, level * (1 + 2e-6)].

    Raises:
        PlanViolation: the action has another number of groups, or the window no place in
            the schedule.
        InvariantViolation: sigma would fall below the level; nothing was drawn.
    """
    count = len(layout)
    if len(action.clip) != count or len(action.share) != count or len(references) != count:
        raise PlanViolation(f"An action for {count} groups is needed.")
    clipping = plan.clipping
    clips = _clip_norms(clipping, references, _bounded(action.clip))
    shares = _shares(clipping, clips, layout, _bounded(action.share))
    level = _level(plan, action, first_step)
    settings = _settings(plan, layout, clips, shares, level)
    sigma = settings.effective_noise_multiplier()
    if not float(level) <= sigma <= float(level) * (1 + 2e-6):
        raise InvariantViolation(f"sigma {sigma!r} left the level {level}")
    return settings


def _level(plan: RunPlan, action: GroupActions, first_step: int | None) -> str:
    """Step 4 of the action map: in fixed mode the schedule alone decides."""
    if plan.noise_schedule is None:
        return choose_level(plan, action.level)
    if first_step is None:
        raise PlanViolation("A plan with a schedule of the noise needs the window's first step.")
    return plan.noise_schedule.at(first_step)[0]


def choose_level(plan: RunPlan, x: float) -> str:
    """A level of the menu; NaN gives the middle."""
    menu = plan.noise_levels
    position = float(_bounded((x,))[0])
    return menu[min(int((position + 1) / 2 * len(menu)), len(menu) - 1)]


def level_position(plan: RunPlan, index: int) -> float:
    """The action that `choose_level` maps to the menu's level `index`."""
    return (2 * index + 1) / len(plan.noise_levels) - 1


def _bounded(values: Sequence[float]) -> np.ndarray:
    raw = np.asarray(values, dtype=np.float64)
    return np.clip(np.where(np.isnan(raw), 0.0, raw), -1.0, 1.0)


def _clip_norms(plan: ClippingPlan, references: Sequence[float], x: np.ndarray) -> np.ndarray:
    low, high = float(plan.clip_min), float(plan.clip_max)
    clips = np.asarray(references, dtype=np.float64) * 2.0 ** (float(plan.clip_octaves) * x)
    # The float32 number is the clip norm from here on: engine, noise and journal use it.
    return np.clip(clips, low, high).astype(np.float32).astype(np.float64)


def _shares(
    plan: ClippingPlan, clips: np.ndarray, layout: GroupLayout, x: np.ndarray
) -> np.ndarray:
    count = len(layout)
    prior = prior_shares(plan.allocation, clips, np.asarray(layout.sizes, dtype=np.float64))
    logits = float(plan.share_tilt) * x + np.log(prior)
    soft = np.exp(logits - logits.max())
    soft /= soft.sum()
    floor = SHARE_MIN_OF_EQUAL / count
    shares = (1 - count * floor) * soft + floor
    return np.asarray(shares / shares.sum())


def _settings(
    plan: RunPlan, layout: GroupLayout, clips: np.ndarray, shares: np.ndarray, level: str
) -> StepSettings:
    sigma = float(level) * STD_INFLATION
    telemetry = float(plan.telemetry.share)
    bits = telemetry * float(plan.telemetry.bits_fraction)
    cap = float(plan.telemetry.loss_cap)
    stds = sigma * clips * CLIP_INFLATION / np.sqrt(shares * (1 - telemetry))
    return StepSettings(
        layout=layout,
        clip_norms=tuple(clips.tolist()),
        shares=tuple(shares.tolist()),
        noise_stds=tuple(up32(s) for s in stds),
        bit_std=up32(sigma * CLIP_BIT_SENSITIVITY / math.sqrt(bits / len(layout))),
        loss_std=up32(sigma * cap / 2 / math.sqrt(telemetry - bits)),
        loss_cap=cap,
        noise_multiplier=level,
        rule=plan.clipping.rule,
        factor=plan.clipping.factor,
    )


def next_references(
    plan: ClippingPlan, references: Sequence[float], fractions: Sequence[float], *, steps: int
) -> tuple[float, ...]:
    """Clip references after a window (G7): towards the target fraction of unclipped patients.

    `fractions` are the noised shares of patients with norm <= C_k, released values; `steps`
    are the plan's steps of a window. log C moves by 0.2 of the error for each of them, the
    step of Andrew et al. (1905.03871, section 2.2), and by the whole error at most: the
    fraction answers to log C with a slope near 1, so that more would overshoot.
    """
    gain = min(REFERENCE_GAIN * steps, REFERENCE_GAIN_MAX)
    low, high = float(plan.clip_min), float(plan.clip_max)
    target = float(plan.target_fraction)
    clamped = [min(max(f, 0.0), 1.0) if math.isfinite(f) else target for f in fractions]
    return tuple(
        min(max(c * math.exp(-gain * (f - target)), low), high)
        for c, f in zip(references, clamped, strict=True)
    )
