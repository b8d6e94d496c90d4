"""From a compute limit to batch size and steps: the largest lever on utility at equal epsilon.

At equal (epsilon, delta) more compute buys more total signal-to-noise

    S = sqrt(T) * Bbar / sigma,    Bbar = q * patients      (privacy.md, controller.md 5)

but signal in few, large steps is worth less than the same in more steps. The law used to
rank plans is

    excess loss  ~  1 / (S * T^0.13)

in nats above the non-private model. Where it comes from: five runs of one toy replication
(controller.md section 5: 200, 400, 800 steps of 256 patients, 200 of 512, 100 of 1,024 at
one true epsilon; perplexity 34.9, 32.0, 30.6, 32.2, 32.5 against 24.5 without privacy).
Epsilon 2, delta 5e-5 at 10,000 patients gives the stated third more signal for four times
the steps; with those sigmas, log-linear least squares gives exponents -0.99 of S and -0.13
of T, the former rounded to -1. Largest residual 0.004 nats of 0.22 to 0.35. Three numbers
from five points of one task, whose epsilon and patients had to be inferred: good enough to
rank neighbouring plans, not a forecast of a perplexity. The search stays within a factor of
four of the fitted steps, and the plan report says when a plan lies outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from dp_core.errors import PlanInvalid
from dp_core.noise_estimate import noise_multiplier_estimate

STEPS_EXPONENT = 0.13
STEPS_FITTED = (100, 800)
STEPS_MIN, STEPS_MAX = 50, 3200  # of the search, not of what may be asked for
STEPS_RATIO = 2**0.5
RATE_MAX = Decimal("0.5")  # beyond it sampling hardly amplifies and every step costs a pass
NOISE_USABLE_MAX = 90.0  # the grid of multipliers ends at 100
BATCH_MIN = 32  # of a batch chosen here; one asked for may be smaller
FORWARD_AND_BACKWARD = 4  # FLOP per weight and token of a frozen base under adapters
FORWARD_SHARE = 0.5  # an evaluation needs no backward pass

SpeedSource = Literal["measured", "estimated"]


@dataclass(frozen=True, kw_only=True)
class DeviceSpeed:
    """How many patients a device takes through a training step per second. Public.

    It must come from public or random text, or from the model's size; never from the pace
    of a private run, which moves with the secret number of patients drawn (P7, H3).
    """

    patients_per_second: float
    source: SpeedSource

    def __post_init__(self) -> None:
        if not (math.isfinite(self.patients_per_second) and self.patients_per_second > 0):
            raise PlanInvalid("patients_per_second", "not a positive number")

    def patients_in(self, minutes: Decimal) -> int:
        """Patients that `minutes` pay for, each passage through a step counted."""
        return int(Decimal(self.patients_per_second) * 60 * minutes)

    def minutes_for(self, patients: float) -> float:
        return patients / self.patients_per_second / 60


def estimated_speed(
    *,
    parameters: int,
    tokens_per_patient: int,
    flop_per_second: float,
    source: SpeedSource = "estimated",
) -> DeviceSpeed:
    """Speed from the model's size: 4 FLOP per weight and token.

    A frozen base costs 2 for the forward pass and 2 for the gradient of its activations; the
    gradients of its weights, 2 more in full training, are never formed. `flop_per_second` is
    what the device sustains, not its peak.
    """
    if parameters < 1 or tokens_per_patient < 1:
        raise PlanInvalid("device speed", "a model or row without size")
    cost = FORWARD_AND_BACKWARD * parameters * tokens_per_patient
    return DeviceSpeed(patients_per_second=flop_per_second / cost, source=source)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What every candidate shares: the promise, the patients and the steps kept in reserve."""

    epsilon: str
    delta: str
    patients_public: int  # of the training block
    steps_margin: int  # started steps beyond the planned ones, for redone windows
    evaluation_batch_size: int = 0  # of the hold-out loss, once before and after each window
    steps_per_window: int = 25

    def passages(self, batch_size: int, steps: int) -> float:
        """Patients that a run takes through the model, in units of one training passage."""
        evaluations = 1 + math.ceil(steps / self.steps_per_window)
        return batch_size * steps + FORWARD_SHARE * self.evaluation_batch_size * evaluations


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to spend the compute, with its estimated noise."""

    batch_size: int
    steps: int
    noise_multiplier_estimate: float

    @property
    def signal_to_noise(self) -> float:
        return signal_to_noise(self.batch_size, self.steps, self.noise_multiplier_estimate)

    @property
    def is_calibratable(self) -> bool:
        """Whether the noise lies well inside the grid on which multipliers are searched."""
        return self.noise_multiplier_estimate < NOISE_USABLE_MAX

    @property
    def score(self) -> float:
        """Inverse of the predicted excess loss, up to a constant of the task."""
        return utility_score(self.signal_to_noise, self.steps)


def signal_to_noise(batch_size: int, steps: int, noise_multiplier: float) -> float:
    """sqrt(T) * Bbar / sigma: by how much the whole run's signal stands above its noise."""
    return math.sqrt(steps) * batch_size / noise_multiplier


def utility_score(signal: float, steps: int) -> float:
    return float(signal * steps**STEPS_EXPONENT)


def best_candidate(
    target: Target,
    *,
    passages_max: int,
    batch_size: int | None = None,
    steps: int | None = None,
) -> Candidate:
    """Batch size and steps of the best predicted utility within the compute limit.

    `passages_max` counts patients through a training step (`Target.passages`). Whatever is
    given stays: a batch size decides the steps, steps decide the batch size, and with neither
    all step counts of a geometric grid compete. Deterministic.

    ======================  =====================================================
    given                   result
    ======================  =====================================================
    neither                 best score over the grid
    batch size              as many steps as the limit holds, at least 1
    steps                   as large a batch, between 32 and half the patients
    both                    as given
    a limit below one step  one step of the smallest batch
    ======================  =====================================================

    Raises:
        PlanInvalid: the limit holds no patient.
    """
    if passages_max < 1:
        raise PlanInvalid("compute", "no patient fits", "Grant more minutes.")
    pairs = _pairs(target, passages_max, batch_size, steps)
    estimates = noise_multiplier_estimate(
        epsilon=float(target.epsilon),
        delta=float(target.delta),
        q=[min(batch / target.patients_public, 1.0) for batch, _ in pairs],
        steps=[count + target.steps_margin for _, count in pairs],
    )
    found = [
        Candidate(batch_size=batch, steps=count, noise_multiplier_estimate=float(estimate))
        for (batch, count), estimate in zip(pairs, estimates, strict=True)
    ]
    return max(found, key=lambda candidate: (candidate.is_calibratable, candidate.score))


def _pairs(
    target: Target, limit: int, batch_size: int | None, steps: int | None
) -> list[tuple[int, int]]:
    if batch_size is not None:
        return [(batch_size, steps or _steps(target, limit, batch_size))]
    if steps is not None:
        return [(_batch(target, limit, steps), steps)]
    pairs, count = set(), STEPS_MIN
    while count <= STEPS_MAX:
        batch = _batch(target, limit, count)
        affordable = min(_steps(target, limit, batch), STEPS_MAX)
        pairs |= {(batch, affordable), (batch, min(count, affordable))}
        count = math.ceil(count * STEPS_RATIO)
    return sorted(pairs)


def _steps(target: Target, limit: int, batch_size: int) -> int:
    """As many steps of a batch as the limit holds; at least one."""
    evaluation = FORWARD_SHARE * target.evaluation_batch_size
    left = limit - 2 * evaluation  # the one before, and the rounding up of the windows
    return max(1, int(left / (batch_size + evaluation / target.steps_per_window)))


def _batch(target: Target, limit: int, steps: int) -> int:
    """Within bounds, and rounded down to two digits: nobody needs a batch of 1,237."""
    largest = max(1, int(target.patients_public * RATE_MAX))
    wanted = int((limit - target.passages(0, steps)) / steps)
    batch = min(max(wanted, min(BATCH_MIN, largest)), largest)
    unit: int = 10 ** max(Decimal(batch).adjusted() - 1, 0)
    return batch // unit * unit
