"""From (epsilon, delta, patients, batch, steps) to a run plan: pure functions, no data, no torch.

Noise levels come from `calibration`, batch size and steps under a compute limit from
`compute`, and what the plan buys is told by `plan_report`.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import Any

from dp_core.accounting import limit_pico, pld_epsilon
from dp_core.calibration import calibrate_adaptive, calibrate_fixed, calibrate_schedule
from dp_core.errors import PlanInvalid
from dp_core.events import decimal_of
from dp_core.noise_schedule import NoiseShape
from dp_core.plan import (
    AdapterPlan,
    ClippingPlan,
    Mode,
    OptimizerPlan,
    RunPlan,
    TelemetryPlan,
    Unit,
    ValidationPlan,
)

RATE_STEP = Decimal("1e-9")
VALIDATION_BATCH_SIZE = 256


def sampling_probability(batch_size_expected: int, patients_public: int) -> str:
    """q = Bbar / patients_public, rounded down to 9 decimals (S2)."""
    if not 1 <= batch_size_expected <= patients_public:
        raise PlanInvalid(
            "batch_size", "outside 1..patients of the training block", "Lower batch_size."
        )
    rate = Decimal(batch_size_expected) / Decimal(patients_public)
    return format(rate.quantize(RATE_STEP, rounding=ROUND_FLOOR).normalize(), "f")


def default_delta(patients_public: int) -> str:
    """min(1e-5, patients_public^-1.1), rounded down to two digits (P8)."""
    value = min(1e-5, patients_public**-1.1)
    return f"{Decimal(repr(value)):.1e}".replace("e-0", "e-") if value < 1e-5 else "1e-5"


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What a job asks for; `make_run_plan` turns it into a RunPlan. All public values.

    `patients_public` is that of the whole population; the validation fraction comes off.
    """

    target_epsilon: str
    delta: str
    patients_public: int
    unit: Unit = "patient"
    records_are_unique_patients: bool = False
    validation_fraction: str = "0"
    mode: Mode = "fixed_sigma"
    noise_shape: NoiseShape | None = None  # fixed mode; None: the same noise throughout
    batch_size: int
    steps_max: int
    margin_windows: int = 2
    interval_steps: int = 25
    validation_batch_size: int = VALIDATION_BATCH_SIZE
    validation_noise_multiplier: str = "2.000"
    clipping: ClippingPlan = ClippingPlan()
    telemetry: TelemetryPlan = TelemetryPlan()
    adapter: AdapterPlan = AdapterPlan()
    optimizer: OptimizerPlan = OptimizerPlan()
    rows_per_patient_max: int = 1
    tokens_per_row: int = 256
    seed: int
    controller_type: str
    base_model_digest: str
    dataset_version: str


def make_run_plan(request: PlanRequest) -> RunPlan:
    """Calibrates the noise and fixes every public quantity of a job.

    Guarantee: the worst case over `steps_started_max` started steps costs at most
    (target_epsilon, delta) in the training block, and the validation queries at most the
    same in theirs; the blocks hold different patients.

    Raises:
        PlanInvalid: a field has an unacceptable value.
        CalibrationImpossible: no noise level meets the target.
    """
    epsilon = decimal_of(request.target_epsilon, field="target_epsilon")
    if epsilon <= 0:
        raise PlanInvalid("target_epsilon", "not positive")
    if request.steps_max < 1:
        raise PlanInvalid("steps_max", "below 1")
    if not 0 <= request.margin_windows <= 20:
        raise PlanInvalid("margin_windows", "outside 0..20")
    fraction = decimal_of(request.validation_fraction, field="validation_fraction")
    if not 0 <= fraction <= Decimal("0.5"):
        raise PlanInvalid("validation_fraction", "outside 0..0.5")
    training_patients = int(request.patients_public * (1 - fraction))
    q = sampling_probability(request.batch_size, training_patients)
    started_max = request.steps_max + request.margin_windows * request.interval_steps
    noise = _noise_fields(request, q, started_max)
    validation = _validation_plan(request, fraction, training_patients)
    return RunPlan(
        unit=request.unit,
        records_are_unique_patients=request.records_are_unique_patients,
        patients_public=training_patients,
        target_epsilon=request.target_epsilon,
        delta=request.delta,
        mode=request.mode,
        sampling_probability=q,
        batch_size_expected=request.batch_size,
        steps_planned=request.steps_max,
        steps_started_max=started_max,
        steps_per_chunk=request.interval_steps,
        clipping=request.clipping,
        telemetry=request.telemetry,
        validation=validation,
        validation_epsilon=(
            None if validation is None else pld_epsilon([validation.event()], request.delta)
        ),
        adapter=request.adapter,
        optimizer=request.optimizer,
        rows_per_patient_max=request.rows_per_patient_max,
        tokens_per_row=request.tokens_per_row,
        seed=request.seed,
        controller_type=request.controller_type,
        base_model_digest=request.base_model_digest,
        dataset_version=request.dataset_version,
        **noise,
    )


def _noise_fields(request: PlanRequest, q: str, started_max: int) -> dict[str, Any]:
    epsilon, delta, shape = request.target_epsilon, request.delta, request.noise_shape
    if request.mode == "adaptive_sigma":
        if shape is not None:
            raise PlanInvalid("noise_shape", "adaptive_sigma has a menu", "Use fixed_sigma.")
        alpha, menu, _ = calibrate_adaptive(
            epsilon=epsilon, delta=delta, q=q, steps_started_max=started_max
        )
        return {
            "noise_levels": menu,
            "alpha_job": alpha,
            "job_limit": limit_pico(epsilon, delta, alpha),
            "epsilon_certified": epsilon,
        }
    parts: tuple[tuple[str, int], ...] = (("1", started_max),)
    if shape is not None:
        parts = shape.over(
            steps_planned=request.steps_max,
            steps_started_max=started_max,
            steps_per_chunk=request.interval_steps,
        )
    schedule, certified = calibrate_schedule(epsilon=epsilon, delta=delta, q=q, parts=parts)
    return {
        "noise_levels": schedule.levels,
        "noise_schedule": schedule if len(schedule.segments) > 1 else None,
        "job_limit": started_max,
        "epsilon_certified": certified,
    }


def _validation_plan(
    request: PlanRequest, fraction: Decimal, training_patients: int
) -> ValidationPlan | None:
    """Two evaluations before the first window, one after each, and the margin's redone ones.

    Raises:
        PlanInvalid: its queries alone would pass the job's target epsilon.
    """
    held_out = request.patients_public - training_patients
    if fraction == 0 or held_out < 2:
        return None
    batch = min(request.validation_batch_size, held_out)
    windows = -(-request.steps_max // request.interval_steps)
    plan = ValidationPlan(
        fraction=request.validation_fraction,
        sampling_probability=sampling_probability(batch, held_out),
        batch_size_expected=batch,
        noise_multiplier=request.validation_noise_multiplier,
        evaluations_max=windows + 2 + 2 * request.margin_windows,
    )
    noise = plan.noise_multiplier
    if Decimal(pld_epsilon([plan.event()], request.delta)) > Decimal(request.target_epsilon):
        noise, _ = calibrate_fixed(
            epsilon=request.target_epsilon,
            delta=request.delta,
            q=plan.sampling_probability,
            steps=plan.evaluations_max,
        )
    return ValidationPlan(
        fraction=plan.fraction,
        sampling_probability=plan.sampling_probability,
        batch_size_expected=plan.batch_size_expected,
        noise_multiplier=noise,
        evaluations_max=plan.evaluations_max,
    )
