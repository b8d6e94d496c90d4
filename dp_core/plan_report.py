"""What a plan buys and what it costs, in numbers anyone may see: no data, no torch.

Beside the job's own epsilon stands what its worst case takes from the population, which
counts RDP at one fixed order (A11): the two differ, most of all at small rates (A12).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from dp_core.accounting import epsilon_of_pico, step_pico, total_pico
from dp_core.compute import (
    STEPS_FITTED,
    DeviceSpeed,
    SpeedSource,
    Target,
    best_candidate,
    signal_to_noise,
    utility_score,
)
from dp_core.plan import RunPlan

SMALL_RATE = Decimal("0.001")
COMPUTE_FACTORS = (Decimal("0.5"), Decimal("2"))


@dataclass(frozen=True, kw_only=True)
class LevelReport:
    """One noise level at its prices. Pico-RDP and shares as decimal strings.

    `job_step_price` is 1 step in fixed mode, pico-RDP at the job's order in adaptive mode;
    `steps_affordable` is what the job's own limit holds at this level alone; a job with a
    schedule counts started steps whatever their level.
    """

    noise_multiplier: str
    job_step_price: str
    steps_affordable: int
    budget_share_per_chunk: str
    population_step_pico: str


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """What another amount of compute would buy. Noise is estimated, not calibrated.

    `excess_loss_ratio`: predicted excess loss over this plan's, below 1 = better.
    """

    compute_factor: str
    minutes: float | None
    batch_size: int
    steps: int
    noise_multiplier_estimate: str
    signal_to_noise: str
    excess_loss_ratio: str


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """A plan's promise, its price in the population and its predicted worth. All public.

    `minutes` is for the planned steps and evaluations on a device of the stated speed;
    `population_epsilon` converts the worst case's RDP at the population's order, the
    epsilon to hold against its grant.
    """

    unit: str
    relation: str
    delta: str
    epsilon_job: str
    population_alpha: int
    population_pico: str
    population_epsilon: str
    sampling_probability: str
    batch_size_expected: int
    steps_planned: int
    steps_started_max: int
    steps_affordable: int
    passes: str
    signal_to_noise: str
    minutes: float | None
    speed_source: SpeedSource | None
    levels: tuple[LevelReport, ...]
    alternatives: tuple[Alternative, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        document = dataclasses.asdict(self)
        for name in ("levels", "alternatives", "notes"):
            document[name] = list(document[name])
        return document


def report_plan(
    plan: RunPlan, *, population_alpha: int, speed: DeviceSpeed | None = None
) -> PlanReport:
    """Report of a plan; milliseconds, since nothing is calibrated anew.

    `population_alpha` is the frozen order of the population's filter. Without a speed
    minutes are None and the alternatives are by compute alone.
    """
    worst = total_pico(plan.training_events(), population_alpha)
    levels = tuple(_level(plan, level, population_alpha) for level in plan.noise_levels)
    return PlanReport(
        unit=plan.unit,
        relation=plan.relation,
        delta=plan.delta,
        epsilon_job=plan.epsilon_certified,
        population_alpha=population_alpha,
        population_pico=str(worst),
        population_epsilon=str(epsilon_of_pico(worst, plan.delta, population_alpha)),
        sampling_probability=plan.sampling_probability,
        batch_size_expected=plan.batch_size_expected,
        steps_planned=plan.steps_planned,
        steps_started_max=plan.steps_started_max,
        steps_affordable=levels[min(1, len(levels) - 1)].steps_affordable,
        passes=f"{plan.steps_planned * plan.batch_size_expected / plan.patients_public:.3g}",
        signal_to_noise=f"{_signal(plan):.4g}",
        minutes=_minutes(plan, speed),
        speed_source=None if speed is None else speed.source,
        levels=levels,
        alternatives=_alternatives(plan, speed),
        notes=tuple(_notes(plan)),
    )


def _reference_multiplier(plan: RunPlan) -> float:
    """The noise at which the planned steps just fit: the menu's second level, or the only one.

    Of a schedule, the constant noise of the same total signal: signals add up as 1/sigma^2.
    """
    if plan.noise_schedule is None:
        return float(plan.noise_levels[min(1, len(plan.noise_levels) - 1)])
    planned = plan.noise_schedule.prefix(plan.steps_planned)
    total = sum(steps / float(level) ** 2 for level, steps in planned)
    return math.sqrt(plan.steps_planned / total)


def _signal(plan: RunPlan) -> float:
    multiplier = _reference_multiplier(plan)
    return signal_to_noise(plan.batch_size_expected, plan.steps_planned, multiplier)


def _level(plan: RunPlan, level: str, population_alpha: int) -> LevelReport:
    price = 1
    if plan.mode == "adaptive_sigma":
        assert plan.alpha_job is not None, "checked by RunPlan"
        price = step_pico(plan.sampling_probability, level, plan.alpha_job)
    share = Decimal(plan.steps_per_chunk * price) / Decimal(plan.job_limit)
    return LevelReport(
        noise_multiplier=level,
        job_step_price=str(price),
        steps_affordable=plan.job_limit // price,
        budget_share_per_chunk=f"{share:.4f}",
        population_step_pico=str(step_pico(plan.sampling_probability, level, population_alpha)),
    )


def _minutes(plan: RunPlan, speed: DeviceSpeed | None) -> float | None:
    if speed is None:
        return None
    passages = _target(plan).passages(plan.batch_size_expected, plan.steps_planned)
    return round(speed.minutes_for(passages), 2)


def _target(plan: RunPlan) -> Target:
    held_out = plan.validation
    return Target(
        epsilon=plan.target_epsilon,
        delta=plan.delta,
        patients_public=plan.patients_public,
        steps_margin=plan.steps_started_max - plan.steps_planned,
        evaluation_batch_size=0 if held_out is None else held_out.batch_size_expected,
        steps_per_window=plan.steps_per_chunk * (1 if held_out is None else held_out.every_chunks),
    )


def _alternatives(plan: RunPlan, speed: DeviceSpeed | None) -> tuple[Alternative, ...]:
    """Best plans at half and twice the compute, the noise scaled by this plan's own.

    The estimate's error is nearly the same for neighbouring plans, so the ratio of the
    calibrated to the estimated multiplier here corrects the others.
    """
    target = _target(plan)
    spent = target.passages(plan.batch_size_expected, plan.steps_planned)
    own = best_candidate(
        target,
        passages_max=int(spent),
        batch_size=plan.batch_size_expected,
        steps=plan.steps_planned,
    )
    correction = _reference_multiplier(plan) / own.noise_multiplier_estimate
    score = utility_score(_signal(plan), plan.steps_planned)
    found = []
    for factor in COMPUTE_FACTORS:
        candidate = best_candidate(target, passages_max=max(1, int(Decimal(spent) * factor)))
        minutes = None
        if speed is not None:
            passages = target.passages(candidate.batch_size, candidate.steps)
            minutes = round(speed.minutes_for(passages), 2)
        found.append(
            Alternative(
                compute_factor=str(factor),
                minutes=minutes,
                batch_size=candidate.batch_size,
                steps=candidate.steps,
                noise_multiplier_estimate=f"{candidate.noise_multiplier_estimate * correction:.3f}",
                signal_to_noise=f"{candidate.signal_to_noise / correction:.4g}",
                excess_loss_ratio=f"{score * correction / candidate.score:.3f}",
            )
        )
    return tuple(found)


def _notes(plan: RunPlan) -> Sequence[str]:
    notes = []
    if Decimal(plan.sampling_probability) <= SMALL_RATE:
        if plan.mode == "adaptive_sigma":
            notes.append(
                "At rates of 0.001 and below adaptive_sigma costs 1.6 to 10 times the epsilon of "
                "a fixed schedule. Use fixed_sigma, or a larger batch."
            )
        else:
            notes.append(
                "At rates of 0.001 and below the population's filter charges 1.6 to 10 times the "
                "epsilon of the job. A larger batch narrows the gap."
            )
    elif plan.mode == "adaptive_sigma":
        notes.append(
            "adaptive_sigma pays for free choice: 7 to 17 % of epsilon at constant noise, 13 to "
            "32 % with changing noise, against a fixed schedule."
        )
    low, high = STEPS_FITTED
    if not low <= plan.steps_planned <= high:
        notes.append(
            f"The utility law was fitted on {low} to {high} steps; this plan lies outside, so "
            "compare its alternatives with care."
        )
    return notes
