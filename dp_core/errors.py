"""Errors of dp_core. Their texts name a setting and a remedy, never data.

    DpCoreError
    ├── PlanError
    │   ├── PlanInvalid            a plan field has an unacceptable value
    │   │   └── SamplerNotPoisson  the accounting used here holds for Poisson draws only
    │   ├── PlanViolation          a bound run was asked to leave its plan
    │   ├── LeakyQuantity          a public quantity would be derived from private data
    │   └── CalibrationImpossible  no noise level meets (epsilon, delta)
    ├── UnsupportedError           a model or adapter that breaks the per-patient bound
    │   ├── UnsupportedAdapter
    │   ├── UnsupportedInitialisation
    │   ├── TrainableOutsideAdapters
    │   ├── TiedWeights
    │   ├── BatchCoupledModel
    │   ├── PackedSequences        rows of several patients in one sequence
    │   ├── PrecisionTooLow
    │   ├── UnsupportedBaseModel       files that are no plain base model, or other files
    │   └── QuantisationUnavailable    8-bit or 4-bit weights cannot be had here
    ├── BudgetError
    │   ├── BudgetExhausted        the filter holds no further chunk
    │   └── StepsExhausted         steps_started_max reached
    ├── JournalError
    │   ├── JournalUnavailable     the charge could not be confirmed
    │   ├── JournalRefused         the ledger said no
    │   ├── StaleAttempt           another attempt owns the job
    │   └── PermitExhausted        noise asked beyond the charged steps
    ├── EngineError
    │   ├── AdapterReused          an adapter ran twice in one microbatch
    │   ├── GradientMissing
    │   ├── SelfCheckFailed
    │   ├── RanksDiffer            the processes of one job do not hold the same state
    │   ├── RankLost               another process of the job failed or went silent
    │   └── StepFailed             a step broke; carries its index and nothing else
    ├── RecordsUnreadable          the frozen dataset version cannot be read
    └── CheckpointMismatch

`InvariantViolation` stands apart: it reports a broken promise of our own code.
"""

from __future__ import annotations


class DpCoreError(Exception):
    """Root of the family."""


class PlanError(DpCoreError):
    """The plan cannot be made or kept."""


class PlanInvalid(PlanError):
    """A plan field has an unacceptable value."""

    def __init__(self, field: str, problem: str, remedy: str = "") -> None:
        self.field = field
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{field}: {problem}. {remedy}".rstrip())


class SamplerNotPoisson(PlanInvalid):
    """Another sampler than Poisson was asked for."""


class PlanViolation(PlanError):
    """A bound run was asked to leave its plan."""


class LeakyQuantity(PlanError):
    """A public quantity would be derived from private data."""


class CalibrationImpossible(PlanError):
    """No noise level in the allowed range meets the requested (epsilon, delta)."""


class UnsupportedError(DpCoreError):
    """The model or adapter would break the per-patient bound."""


class UnsupportedAdapter(UnsupportedError):
    """DoRA, embeddings, convolutions, biases or `modules_to_save`."""


class UnsupportedInitialisation(UnsupportedError):
    """The adapter initialisation reads data."""


class TrainableOutsideAdapters(UnsupportedError):
    """A trainable tensor lies outside the LoRA adapters."""


class TiedWeights(UnsupportedError):
    """An adapter tensor is shared between modules."""


class BatchCoupledModel(UnsupportedError):
    """A row's output depends on the other rows of the batch."""


class PackedSequences(UnsupportedError):
    """Rows of several patients would share one sequence."""


class PrecisionTooLow(UnsupportedError):
    """Adapter tensors or sums are below float32."""


class UnsupportedBaseModel(UnsupportedError):
    """A directory that is no plain base model: pickles, code, an adapter, or other files."""


class QuantisationUnavailable(UnsupportedError):
    """The 8-bit or 4-bit base that was asked for cannot be had on this machine."""


class BudgetError(DpCoreError):
    """The job's own limits are reached."""


class BudgetExhausted(BudgetError):
    """The cheapest next step does not fit the filter."""


class StepsExhausted(BudgetError):
    """`steps_started_max` is reached."""


class JournalError(DpCoreError):
    """The privacy journal did not grant what was asked."""


class JournalUnavailable(JournalError):
    """The charge could not be confirmed; no step may run on it."""


class JournalRefused(JournalError):
    """The ledger refused the charge."""


class StaleAttempt(JournalError):
    """Another attempt owns the job now."""


class PermitExhausted(JournalError):
    """Noise was asked for beyond the charged steps."""


class EngineError(DpCoreError):
    """The training engine cannot go on."""


class AdapterReused(EngineError):
    """An adapter's backward ran more than once in one microbatch.

    A module used twice would be clipped per use, not per patient.
    """


class GradientMissing(EngineError):
    """A clip group receives no gradient."""


class SelfCheckFailed(EngineError):
    """The per-patient gradients disagree with a loop of single-patient backwards."""


class RanksDiffer(EngineError):
    """The processes of one job do not hold the same plan, records, weights or moments."""


class RankLost(EngineError):
    """Another process of the job failed or went silent; the attempt is over."""


class StepFailed(EngineError):
    """A step broke. Carries the step index and nothing from the data path."""

    def __init__(self, step_index: int) -> None:
        self.step_index = step_index
        super().__init__(f"Step {step_index} failed; its chunk stays charged.")


class RecordsUnreadable(DpCoreError):
    """The frozen dataset version cannot be read as the plan describes it."""


class CheckpointMismatch(DpCoreError):
    """A checkpoint has another format version or belongs to another plan."""


class InvariantViolation(AssertionError):
    """A promise of our own code is broken: stop before anything is released."""
