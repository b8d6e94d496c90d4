"""The run plan: one frozen object from which sampler, clipping, noise and charges follow.

Everything here is public. Settings that change only speed live in `Performance`.
The action map of privacy.md 2.1 is `dp_core.mechanism.admit`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dp_core.errors import PlanInvalid, SamplerNotPoisson
from dp_core.events import PoissonGaussian, canonical_digest, decimal_of
from dp_core.noise_schedule import LEVELS_MAX, NoiseSchedule

FORMAT_VERSION = 1
STEPS_PER_CHUNK_MAX = 500
ROWS_PER_PATIENT_LIMIT = 8

Unit = Literal["patient", "record"]
Mode = Literal["fixed_sigma", "adaptive_sigma"]
Grouping = Literal["tensor", "pair"]
Allocation = Literal["least_energy", "equal_budget", "equal_noise"]
ClipRule = Literal["per_group", "whitened"]
ClipFactor = Literal["clip", "auto_s", "psac"]
SumDtype = Literal["float32", "float64", "integer_grid"]
Schedule = Literal["cosine", "linear", "constant"]
Engine = Literal["one_backward", "opacus_hooks"]
Checkpointing = Literal["off", "reentrant", "non_reentrant"]
BaseDtype = Literal["float32", "bfloat16", "8bit", "4bit"]


_CLOSED_SETS: dict[str, tuple[str, ...]] = {
    "grouping": get_args(Grouping),
    "rule": get_args(ClipRule),
    "factor": get_args(ClipFactor),
    "allocation": get_args(Allocation),
}


@dataclass(frozen=True, kw_only=True)
class ClippingPlan:
    """Bounds of what a policy may choose (privacy.md 2.1). Decimal strings.

    `clip_norm` is the starting reference of every group; the reference then follows
    the noised clip fraction towards `target_fraction` at window borders (G7).
    """

    grouping: Grouping = "tensor"
    rule: ClipRule = "per_group"
    factor: ClipFactor = "clip"
    allocation: Allocation = "least_energy"
    clip_norm: str = "0.05"
    clip_min: str = "0.0001"
    clip_max: str = "10"
    clip_octaves: str = "2"
    share_tilt: str = "1"
    target_fraction: str = "0.5"

    def __post_init__(self) -> None:
        values = {
            f.name: decimal_of(getattr(self, f.name), field=f.name)
            for f in dataclasses.fields(self)
            if f.name not in {"grouping", "rule", "factor", "allocation"}
        }
        for name, offered in _CLOSED_SETS.items():
            if getattr(self, name) not in offered:
                raise PlanInvalid(name, f"not one of {', '.join(offered)}")
        if not 0 < values["clip_min"] <= values["clip_norm"] <= values["clip_max"]:
            raise PlanInvalid("clip_norm", "needs 0 < clip_min <= clip_norm <= clip_max")
        if not 0 < values["target_fraction"] < 1:
            raise PlanInvalid("target_fraction", "outside (0, 1)")
        if values["clip_octaves"] < 0 or values["share_tilt"] < 0:
            raise PlanInvalid("clip_octaves", "negative range")


@dataclass(frozen=True, kw_only=True)
class TelemetryPlan:
    """Noised sensing inside the step (privacy.md 2.4): its share of the privacy spent."""

    share: str = "0.015"
    bits_fraction: str = "0.85"  # of `share`; the rest pays for the loss
    loss_cap: str = "6"  # nats

    def __post_init__(self) -> None:
        if not 0 < decimal_of(self.share, field="telemetry.share") < 1:
            raise PlanInvalid("telemetry.share", "outside (0, 1)")
        if not 0 < decimal_of(self.bits_fraction, field="telemetry.bits_fraction") < 1:
            raise PlanInvalid("telemetry.bits_fraction", "outside (0, 1)")
        if decimal_of(self.loss_cap, field="telemetry.loss_cap") <= 0:
            raise PlanInvalid("telemetry.loss_cap", "not positive")


@dataclass(frozen=True, kw_only=True)
class ValidationPlan:
    """Paid hold-out loss on the validation block, a set of patients never trained on.

    Each evaluation is one Poisson draw of rate `sampling_probability` and one noised,
    centred, clipped sum (privacy.md 10, `ReleasedValidationLoss`).
    """

    fraction: str  # of the population, by keyed hash
    sampling_probability: str
    batch_size_expected: int
    noise_multiplier: str
    evaluations_max: int
    every_chunks: int = 1

    def event(self) -> PoissonGaussian:
        """The whole of the validation block's spend in this job, worst case."""
        return PoissonGaussian(
            q=self.sampling_probability,
            noise_multiplier=self.noise_multiplier,
            steps=self.evaluations_max,
        )


@dataclass(frozen=True, kw_only=True)
class AdapterPlan:
    """LoRA as PEFT reads it. Initialisation depends on the public seed only (L5)."""

    r: int = 8
    alpha: int = 16
    target_modules: tuple[str, ...] = ()  # empty: all linear layers of the blocks

    def __post_init__(self) -> None:
        if not 1 <= self.r <= 256:
            raise PlanInvalid("adapter.r", "outside 1..256")
        if self.alpha < 1:
            raise PlanInvalid("adapter.alpha", "below 1")


@dataclass(frozen=True, kw_only=True)
class OptimizerPlan:
    """Post-processing of released sums: Adam with a warm-up, a decay and averaging."""

    learning_rate: str = "0.02"
    beta1: str = "0.9"
    beta2: str = "0.99"
    warmup_fraction: str = "0.05"
    final_rate_fraction: str = "0.1"
    averaging_decay: str = "0.9"  # of the released weights' exponential mean; 0 = none
    rate_octaves: str = "1"
    schedule: Schedule = "cosine"  # after the warm-up

    def __post_init__(self) -> None:
        if decimal_of(self.learning_rate, field="learning_rate") <= 0:
            raise PlanInvalid("learning_rate", "not positive")
        if self.schedule not in get_args(Schedule):
            raise PlanInvalid("schedule", f"not one of {', '.join(get_args(Schedule))}")


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything that decides what a job may release, fixed before its first charge.

    Guarantee: two runs with equal plans, policies and dataset versions have the same
    distribution of transcripts, up to float rounding (privacy.md P1, G12).

    Units: `q` per step and patient; counts in steps, patients, rows or tokens; all
    real numbers that take part in accounting are decimal strings.

    Raises:
        PlanInvalid: a field has an unacceptable value; names field and remedy.
    """

    unit: Unit
    records_are_unique_patients: bool = False
    relation: str = "add_remove"
    patients_public: int  # of the training block: a declared lower bound, never a count
    target_epsilon: str
    delta: str
    mode: Mode = "fixed_sigma"
    sampling_probability: str
    batch_size_expected: int
    steps_planned: int
    steps_started_max: int
    steps_per_chunk: int
    # Ascending. Adaptive: the menu. Fixed: one level, or those of the schedule.
    noise_levels: tuple[str, ...]
    noise_schedule: NoiseSchedule | None = None  # fixed mode; None: one level throughout
    alpha_job: int | None = None  # adaptive mode: the frozen order of the job's filter
    job_limit: int  # fixed: steps_started_max; adaptive: pico-RDP at alpha_job
    epsilon_certified: str  # of the training block, to steps_started_max or the filter's limit
    clipping: ClippingPlan = ClippingPlan()
    telemetry: TelemetryPlan = TelemetryPlan()
    validation: ValidationPlan | None = None
    validation_epsilon: str | None = None
    adapter: AdapterPlan = AdapterPlan()
    optimizer: OptimizerPlan = OptimizerPlan()
    rows_per_patient_max: int = 1
    tokens_per_row: int = 256
    sum_dtype: SumDtype = "float32"  # of the un-noised sums (G12)
    noise_source: str = "os_entropy"
    sampler: str = "poisson"
    seed: int  # adapter initialisation and controller exploration; never noise or sampling
    controller_type: str
    base_model_digest: str
    dataset_version: str
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        self._check_unit()
        self._check_counts()
        self._check_mechanism()

    def _check_unit(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise PlanInvalid("format_version", f"{self.format_version} is not known here")
        if self.unit not in ("patient", "record"):
            raise PlanInvalid("unit", "neither patient nor record")
        if self.unit == "record" and not self.records_are_unique_patients:
            raise PlanInvalid(
                "unit",
                "record without the statement that each record is another patient",
                "Name the patient id field, or state records_are_unique_patients.",
            )
        if self.relation != "add_remove":
            raise PlanInvalid("relation", "only add_remove is supported")
        if self.sampler != "poisson":
            raise SamplerNotPoisson(
                "sampler",
                "only Poisson sampling has the accounting used here",
                "Use poisson: shuffled, fixed-size and epoch-based batches cost more.",
            )
        if self.sum_dtype not in get_args(SumDtype):
            raise PlanInvalid("sum_dtype", f"not one of {', '.join(get_args(SumDtype))}")
        if self.sum_dtype == "integer_grid" and self.mode != "adaptive_sigma":
            raise PlanInvalid(
                "sum_dtype",
                "the certificate of a fixed schedule is proven for continuous noise only",
                "Use adaptive_sigma, whose filter covers the discrete Gaussian, or float64.",
            )
        if self.noise_source not in ("os_entropy", "torch_generator"):
            raise PlanInvalid("noise_source", "neither os_entropy nor torch_generator")
        if self.sum_dtype == "integer_grid" and self.noise_source != "os_entropy":
            raise PlanInvalid("noise_source", "the integer grid takes noise from os_entropy only")

    def _check_counts(self) -> None:
        if self.patients_public < 2:
            raise PlanInvalid("patients_public", "below 2")
        if not 0 < decimal_of(self.delta, field="delta") * self.patients_public < 1:
            raise PlanInvalid("delta", "not in (0, 1/patients_public)", "Lower delta.")
        if not 1 <= self.steps_per_chunk <= STEPS_PER_CHUNK_MAX:
            raise PlanInvalid("steps_per_chunk", f"outside 1..{STEPS_PER_CHUNK_MAX}")
        if not 1 <= self.steps_planned <= self.steps_started_max:
            raise PlanInvalid("steps_planned", "needs 1 <= steps_planned <= steps_started_max")
        if not 1 <= self.batch_size_expected <= self.patients_public:
            raise PlanInvalid("batch_size", "outside 1..patients_public")
        if not 1 <= self.rows_per_patient_max <= ROWS_PER_PATIENT_LIMIT:
            raise PlanInvalid("rows_per_patient_max", f"outside 1..{ROWS_PER_PATIENT_LIMIT}")
        if self.tokens_per_row < 2:
            raise PlanInvalid("tokens_per_row", "below 2")
        if not 0 <= self.seed < 2**31:
            raise PlanInvalid("seed", "outside 0..2^31-1")

    def _check_mechanism(self) -> None:
        q = decimal_of(self.sampling_probability, field="sampling_probability")
        if not 0 < q <= 1:
            raise PlanInvalid("sampling_probability", "outside (0, 1]")
        if not 1 <= len(self.noise_levels) <= LEVELS_MAX:
            raise PlanInvalid("noise_levels", f"needs 1 to {LEVELS_MAX} levels")
        levels = [decimal_of(level, field="noise_levels") for level in self.noise_levels]
        if any(level <= 0 for level in levels) or levels != sorted(set(levels)):
            raise PlanInvalid("noise_levels", "must be positive and strictly ascending")
        if self.mode == "adaptive_sigma" and self.alpha_job is None:
            raise PlanInvalid("alpha_job", "adaptive_sigma needs a frozen order")
        self._check_schedule()

    def _check_schedule(self) -> None:
        schedule = self.noise_schedule
        if schedule is None:
            if self.mode == "fixed_sigma" and len(self.noise_levels) != 1:
                raise PlanInvalid("noise_levels", "fixed_sigma takes one level without a schedule")
            return
        if self.mode != "fixed_sigma":
            raise PlanInvalid(
                "noise_schedule", "adaptive_sigma chooses its levels online", "Use fixed_sigma."
            )
        if len(schedule.segments) < 2:
            raise PlanInvalid("noise_schedule", "one level throughout", "Leave the schedule out.")
        if schedule.levels != self.noise_levels:
            raise PlanInvalid("noise_levels", "not the levels of the schedule")
        if schedule.steps != self.steps_started_max:
            raise PlanInvalid("noise_schedule", "does not cover steps_started_max")

    @property
    def chunks_planned(self) -> int:
        """Windows of the run as planned; the last one may be shorter."""
        return -(-self.steps_planned // self.steps_per_chunk)

    @property
    def worst_schedule(self) -> NoiseSchedule:
        """The dearest course the job may take, to `steps_started_max`.

        In fixed mode the registered schedule, the only one; in adaptive mode every step at
        the menu's least noise.
        """
        if self.noise_schedule is not None:
            return self.noise_schedule
        return NoiseSchedule.constant(self.noise_levels[0], self.steps_started_max)

    def training_events(self) -> tuple[PoissonGaussian, ...]:
        """`worst_schedule` as what it releases, one event per level."""
        return self.worst_schedule.events(self.sampling_probability)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; floats never occur in it."""
        document = dataclasses.asdict(self)
        document["noise_levels"] = list(self.noise_levels)
        # A plan without one keeps the bytes and the digest it had before schedules existed.
        del document["noise_schedule"]
        if self.noise_schedule is not None:
            document["noise_schedule"] = self.noise_schedule.to_list()
        document["adapter"]["target_modules"] = list(self.adapter.target_modules)
        return document

    def digest(self) -> str:
        """SHA-256 of the canonical form; written into every charge."""
        return canonical_digest(self.to_dict())

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> RunPlan:
        """Inverse of `to_dict`. Unknown or missing fields are refused."""
        fields = dict(document)
        try:
            fields["clipping"] = ClippingPlan(**fields["clipping"])
            fields["telemetry"] = TelemetryPlan(**fields["telemetry"])
            if fields["validation"] is not None:
                fields["validation"] = ValidationPlan(**fields["validation"])
            adapter = dict(fields["adapter"])
            adapter["target_modules"] = tuple(adapter["target_modules"])
            fields["adapter"] = AdapterPlan(**adapter)
            fields["optimizer"] = OptimizerPlan(**fields["optimizer"])
            fields["noise_levels"] = tuple(fields["noise_levels"])
            if "noise_schedule" in fields:
                fields["noise_schedule"] = NoiseSchedule.from_list(fields["noise_schedule"])
            return cls(**fields)
        except (KeyError, TypeError):
            raise PlanInvalid("plan", "unknown or missing fields") from None


@dataclass(frozen=True, kw_only=True)
class Performance:
    """Settings that change speed and memory only; none may change a released distribution
    beyond float rounding.

    Raises:
        PlanInvalid: a value outside its closed set, or a combination that cannot run.
    """

    patients_per_microbatch: int = 8  # Poisson draws waste half a microbatch on average
    device: str = "cpu"
    threads: int | None = None
    engine: Engine = "one_backward"
    checkpointing: Checkpointing = "off"  # of activations
    base_dtype: BaseDtype = "float32"  # of the frozen base model
    autocast: bool = False  # bf16 arithmetic in the forward and backward pass

    def __post_init__(self) -> None:
        closed = {"engine": Engine, "checkpointing": Checkpointing, "base_dtype": BaseDtype}
        for name, offered in closed.items():
            if getattr(self, name) not in get_args(offered):
                raise PlanInvalid(name, f"not one of {', '.join(get_args(offered))}")
        if self.patients_per_microbatch < 1:
            raise PlanInvalid("patients_per_microbatch", "below 1")
        if self.engine == "opacus_hooks" and self.checkpointing == "non_reentrant":
            raise PlanInvalid(
                "checkpointing",
                "Opacus' hooks lose their gradients under non-reentrant checkpointing",
                "Use engine 'one_backward', or checkpointing 'reentrant' or 'off'.",
            )
