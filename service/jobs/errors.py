"""Errors of jobs, and the status each becomes at the edge.

JobError
├── JobNotFound           absent, or in a scope the caller may not see
├── StateConflict         the lifecycle knows no such change
├── FencedOut             another attempt owns the job, or its lease is over
├── UnsupportedOption     a field asks for what is not offered
├── PrivacyRequired       no target epsilon
├── FieldInvalid          a known field with an unacceptable value
├── PlanInfeasible        no plan meets what is asked
├── DeviceTooSmall        the model cannot be held by a worker's device
├── ModelNotAllowed       the base model is not in the catalogue
└── ReleasePending        two stewards have not released the artifact yet
"""

from __future__ import annotations


class JobError(Exception):
    """Root of the family. `param` is the dotted name of the request field, if one is meant."""

    code = "internal"
    status = 500
    param: str | None = None


class JobNotFound(JobError):
    """The job does not exist for this caller."""

    code, status = "not_found", 404

    def __init__(self) -> None:
        super().__init__("No such object.")


class StateConflict(JobError):
    """The lifecycle knows no such change."""

    code, status = "state_conflict", 409

    def __init__(self, *, state: str, wanted: str) -> None:
        self.state, self.wanted = state, wanted
        super().__init__(f"A job in state {state} cannot become {wanted}.")


class FencedOut(JobError):
    """Another attempt owns the job, or this attempt's lease is over: stop at once."""

    code, status = "state_conflict", 409

    def __init__(self, *, job_id: str, epoch: int) -> None:
        self.job_id, self.epoch = job_id, epoch
        super().__init__(f"Attempt {epoch} no longer owns job {job_id}; nothing was written.")


class UnsupportedOption(JobError):
    """A field asks for what is not offered."""

    code, status = "unsupported_option", 400

    def __init__(self, param: str, advice: str) -> None:
        self.param = param
        super().__init__(advice)


class PrivacyRequired(JobError):
    """Nothing is trained without privacy."""

    code, status = "privacy_required", 400
    param = "privacy.target_epsilon"

    def __init__(self) -> None:
        super().__init__("Give privacy.target_epsilon: every job trains with a privacy guarantee.")


class FieldInvalid(JobError):
    """A known field with an unacceptable value. The text never repeats the value."""

    code, status = "field_invalid", 422

    def __init__(self, param: str, problem: str) -> None:
        self.param = param
        super().__init__(problem)


class PlanInfeasible(JobError):
    """No plan meets what is asked."""

    code, status = "plan_infeasible", 422

    def __init__(self, param: str, advice: str) -> None:
        self.param = param
        super().__init__(advice)


class DeviceTooSmall(JobError):
    """The least that the trainer holds exceeds the memory of a worker's device."""

    code, status = "plan_infeasible", 422
    param = "model"

    def __init__(self, *, needed_gib: float, device_gib: float, remedy: str) -> None:
        self.needed_gib, self.device_gib, self.remedy = needed_gib, device_gib, remedy
        operator = f" Or ask the operator: it may fit with {remedy}." if remedy else ""
        super().__init__(
            f"This job needs at least {needed_gib:.1f} GiB and a worker's device has "
            f"{device_gib:.1f}. Choose a smaller model, fewer privacy.tokens_per_row or a "
            f"smaller adapter.r.{operator}"
        )


class ModelNotAllowed(JobError):
    """The base model is not in the catalogue."""

    code, status = "model_not_allowed", 403
    param = "model"

    def __init__(self) -> None:
        super().__init__("This base model is not offered. GET /v1/models lists those that are.")


ERROR_TABLE: dict[type[Exception], tuple[int, str]] = {
    kind: (kind.status, kind.code)
    for kind in (
        JobNotFound,
        StateConflict,
        UnsupportedOption,
        PrivacyRequired,
        FieldInvalid,
        PlanInfeasible,
        DeviceTooSmall,
        ModelNotAllowed,
    )
}
