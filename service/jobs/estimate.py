"""From a request to a run plan and its price: one path for the estimate and for creation.

Pure functions of the request, of what the population declares and of the base model's
public shape; nothing is read from data. That both routes share them is what makes an
estimate equal the reservation to the pico [S6].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from controller.choice import CONTROLLER_TYPES, resolve_type
from controller.choice import steps_max as longest_steps
from dp_core.compute import DeviceSpeed, SpeedSource, Target, best_candidate, estimated_speed
from dp_core.errors import CalibrationImpossible, PlanInvalid
from dp_core.noise_schedule import NoiseShape
from dp_core.plan import AdapterPlan, OptimizerPlan, RunPlan, Unit
from dp_core.planner import VALIDATION_BATCH_SIZE, PlanRequest, make_run_plan
from service.jobs.errors import (
    FieldInvalid,
    PlanInfeasible,
    PrivacyRequired,
    UnsupportedOption,
)
from service.jobs.schemas import Hyperparameters, JobRequest, NoiseDecay

EPSILON_MIN = Decimal("0.1")
EPSILON_MAX = Decimal("100")
N_EPOCHS_DEFAULT = 3  # the compute limit where neither epochs nor minutes are given
TOKENS_PER_ROW = 256

# Names of plan fields as the API calls them; others are shown under `privacy`.
PARAMS = {
    "batch_size": "method.supervised.hyperparameters.batch_size",
    "steps_max": "privacy.steps_max",
    "steps_planned": "privacy.steps_max",
    "compute": "privacy.minutes_max",
    "margin_windows": "privacy.margin_windows",
    "target_epsilon": "privacy.target_epsilon",
    "delta": "privacy.delta",
    "learning_rate": "method.supervised.hyperparameters.learning_rate_multiplier",
    "adapter.r": "adapter.r",
    "adapter.alpha": "adapter.alpha",
    "steps_per_chunk": "controller.interval_steps",
    "noise_shape": "privacy.noise_schedule",
    "noise_shape.final_fraction": "privacy.noise_schedule.final_fraction",
}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What population, dataset version and base model bring to a plan. All public."""

    population_id: str
    patients_public: int
    validation_fraction: str
    delta: str
    unit: Unit
    records_are_unique_patients: bool
    dataset_version: str
    base_model_digest: str
    tokens_per_row_max: int  # 0: the model does not say
    model_parameters: int
    flop_per_second: float  # of a worker's device, as the operator states it
    speed_source: SpeedSource = "estimated"

    @property
    def training_patients(self) -> int:
        """As the planner counts them: the validation block comes off."""
        return int(self.patients_public * (1 - Decimal(self.validation_fraction)))


def check_offered(request: JobRequest) -> None:
    """Refuses what is understood but not offered, each with the right place to go.

    Raises:
        UnsupportedOption, PrivacyRequired, FieldInvalid.
    """
    refusals: Sequence[tuple[bool, str, str]] = (
        (
            request.method.type == "dp",
            "method.type",
            "Use the top-level privacy object; every method here is private.",
        ),
        (
            request.method.type not in ("supervised", "dp")
            or request.method.dpo is not None
            or request.method.reinforcement is not None,
            "method.type",
            "Only supervised fine-tuning is offered.",
        ),
        (
            bool(request.integrations),
            "integrations",
            "Integrations would send metrics to a third party and are not offered.",
        ),
        (
            request.validation_file is not None,
            "validation_file",
            "Hold-out loss comes from the population's validation block; drop this field.",
        ),
        (
            request.privacy.noise_levels != "auto",
            "privacy.noise_levels",
            "The menu is calibrated from the target; use auto.",
        ),
        (
            request.privacy.alpha != "auto",
            "privacy.alpha",
            "The order is chosen from the target; use auto.",
        ),
        (
            request.priority == "high",
            "priority",
            "High priority needs a quota, which this installation does not offer; use normal.",
        ),
        (
            request.controller.type not in CONTROLLER_TYPES,
            "controller.type",
            "Use auto, reference, rldp or rldp_pretrained.",
        ),
        (
            request.controller.policy != "default",
            "controller.policy",
            "Only the shipped policy is offered; use default.",
        ),
        (
            request.controller.signals is not None,
            "controller.signals",
            "The signals are fixed: noised gradients, clip bits and clipped loss.",
        ),
    )
    for refused, param, advice in refusals:
        if refused:
            raise UnsupportedOption(param, advice)
    if request.privacy.target_epsilon is None:
        raise PrivacyRequired()
    _check_values(request)


def _check_values(request: JobRequest) -> None:
    epsilon = request.privacy.target_epsilon
    if epsilon is not None and Decimal(epsilon) < EPSILON_MIN:
        raise FieldInvalid("privacy.target_epsilon", "Below 0.1, the smallest offered epsilon.")
    if epsilon is not None and Decimal(epsilon) > EPSILON_MAX:  # and minutes of calibration
        raise FieldInvalid("privacy.target_epsilon", "Above 100, which would promise nothing.")
    parameters = hyperparameters_of(request)
    if request.hyperparameters is not None and "hyperparameters" in (
        request.method.supervised.model_fields_set
    ):
        raise FieldInvalid("hyperparameters", "Give hyperparameters once, not at both places.")
    privacy = request.privacy
    if parameters.n_epochs != "auto" and privacy.steps_max != "auto":
        raise FieldInvalid("privacy.steps_max", "Give n_epochs or steps_max, not both.")
    if privacy.minutes_max is None:
        return
    if Decimal(privacy.minutes_max) <= 0:
        raise FieldInvalid("privacy.minutes_max", "Must be above 0.")
    if parameters.n_epochs != "auto":
        raise FieldInvalid("privacy.minutes_max", "Give n_epochs or minutes_max, not both.")
    if parameters.batch_size != "auto" and privacy.steps_max != "auto":
        raise FieldInvalid(
            "privacy.minutes_max", "Leave batch_size or steps_max on auto, or drop minutes_max."
        )


def hyperparameters_of(request: JobRequest) -> Hyperparameters:
    """From the method, or from the older top-level place."""
    return request.hyperparameters or request.method.supervised.hyperparameters


def plan_request(request: JobRequest, terms: Terms, *, seed: int) -> PlanRequest:
    """The planner's question, every `auto` resolved.

    Raises:
        FieldInvalid: delta above the population's, or a multiplier of zero.
    """
    parameters, privacy = hyperparameters_of(request), request.privacy
    assert privacy.target_epsilon is not None, "check_offered comes first"
    batch_size, steps_max = _batch_and_steps(request, terms)
    _check_length(request.controller.type, steps_max)
    adapter = request.adapter
    modules = () if adapter.target_modules == "auto" else tuple(adapter.target_modules)
    return PlanRequest(
        target_epsilon=privacy.target_epsilon,
        delta=_delta(request, terms),
        patients_public=terms.patients_public,
        unit=terms.unit,
        records_are_unique_patients=terms.records_are_unique_patients,
        validation_fraction=terms.validation_fraction,
        mode=privacy.mode,
        noise_shape=_noise_shape(privacy.noise_schedule),
        batch_size=batch_size,
        steps_max=steps_max,
        margin_windows=privacy.margin_windows,
        interval_steps=request.controller.interval_steps,
        adapter=AdapterPlan(
            r=adapter.r, alpha=adapter.alpha or 2 * adapter.r, target_modules=modules
        ),
        optimizer=_optimizer(parameters),
        tokens_per_row=_tokens_per_row(request, terms),
        seed=seed,
        controller_type=resolve_type(request.controller.type),
        base_model_digest=terms.base_model_digest,
        dataset_version=terms.dataset_version,
    )


def _noise_shape(wanted: Literal["constant"] | NoiseDecay) -> NoiseShape | None:
    if wanted == "constant":
        return None
    return NoiseShape.decaying(
        final_fraction=wanted.final_fraction, levels=wanted.levels, curve=wanted.curve
    )


def device_speed(request: JobRequest, terms: Terms) -> DeviceSpeed:
    """From the model's size and the operator's figure, never from runs on private data.

    Their pace moves with the secret number of patients drawn; a plan made from it would
    write that into the ledger (privacy.md P7).
    """
    return estimated_speed(
        parameters=terms.model_parameters,
        tokens_per_patient=_tokens_per_row(request, terms),
        flop_per_second=terms.flop_per_second,
        source=terms.speed_source,
    )


def _batch_and_steps(request: JobRequest, terms: Terms) -> tuple[int, int]:
    """What is on auto, chosen by `best_candidate` under minutes, epochs or three epochs."""
    parameters, privacy = hyperparameters_of(request), request.privacy
    batch = parameters.batch_size if isinstance(parameters.batch_size, int) else None
    steps = privacy.steps_max if isinstance(privacy.steps_max, int) else None
    if batch is not None and steps is not None:
        return batch, steps
    patients = terms.training_patients
    if privacy.minutes_max is not None:
        limit = device_speed(request, terms).patients_in(Decimal(privacy.minutes_max))
    else:
        epochs = N_EPOCHS_DEFAULT if parameters.n_epochs == "auto" else parameters.n_epochs
        if batch is not None:
            return batch, math.ceil(epochs * patients / batch)
        limit = epochs * patients
    chosen = best_candidate(
        _target(request, terms), passages_max=limit, batch_size=batch, steps=steps
    )
    return chosen.batch_size, chosen.steps


def _target(request: JobRequest, terms: Terms) -> Target:
    epsilon = request.privacy.target_epsilon
    assert epsilon is not None, "check_offered comes first"
    held_out, interval = terms.patients_public - terms.training_patients, request.controller
    return Target(
        epsilon=epsilon,
        delta=_delta(request, terms),
        patients_public=terms.training_patients,
        steps_margin=request.privacy.margin_windows * interval.interval_steps,
        # epochs count training alone; minutes pay for the hold-out loss too
        evaluation_batch_size=(
            0 if request.privacy.minutes_max is None else min(VALIDATION_BATCH_SIZE, held_out)
        ),
        steps_per_window=interval.interval_steps,
    )


def _tokens_per_row(request: JobRequest, terms: Terms) -> int:
    wanted, longest = request.privacy.tokens_per_row, terms.tokens_per_row_max
    if wanted == "auto":
        return min(TOKENS_PER_ROW, longest or TOKENS_PER_ROW)
    if longest and wanted > longest:
        raise FieldInvalid("privacy.tokens_per_row", f"At most {longest}, the model's context.")
    return wanted


def _delta(request: JobRequest, terms: Terms) -> str:
    delta = request.privacy.delta
    if delta == "auto":
        return terms.delta
    if not 0 < Decimal(delta) <= Decimal(terms.delta):
        raise FieldInvalid("privacy.delta", "Must be positive and at most the population's delta.")
    return delta


def _check_length(controller_type: str, steps: int) -> None:
    longest = longest_steps(controller_type)
    if longest is not None and steps > longest:
        raise FieldInvalid(
            "controller.type",
            f"The shipped policy helps in jobs of up to {longest} steps and can ruin longer ones; "
            f"this one has {steps}. Use auto, or set privacy.steps_max to {longest}.",
        )


def _optimizer(parameters: Hyperparameters) -> OptimizerPlan:
    plan = OptimizerPlan()
    if parameters.learning_rate_multiplier == "auto":
        return plan
    rate = Decimal(plan.learning_rate) * Decimal(parameters.learning_rate_multiplier)
    if rate <= 0:
        raise FieldInvalid(PARAMS["learning_rate"], "Must be above 0.")
    return OptimizerPlan(learning_rate=format(rate.normalize(), "f"))


def plan_job(request: JobRequest, terms: Terms, *, seed: int) -> RunPlan:
    """The plan of a job: noise calibrated, worst case fixed. May take seconds the first time.

    Raises:
        FieldInvalid: a field has an unacceptable value.
        PlanInfeasible: no noise level meets what is asked.
    """
    try:
        return make_run_plan(plan_request(request, terms, seed=seed))
    except PlanInvalid as error:
        param = PARAMS.get(error.field, "privacy")
        raise FieldInvalid(param, f"{error.problem}. {error.remedy}".strip()) from None
    except CalibrationImpossible as error:
        raise PlanInfeasible("privacy.target_epsilon", str(error)) from None
