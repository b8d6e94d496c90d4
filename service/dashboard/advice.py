"""What to do next, in plain words, for each refusal and remedy a page may meet."""

from __future__ import annotations

from dataclasses import dataclass

from service.error_table import as_service_error

NEXT_STEPS = {
    "privacy_budget_exceeded": "Lower ε or the steps, or ask two stewards for a larger limit.",
    "plan_infeasible": "Raise ε, lower the steps, or take a smaller batch.",
    "privacy_required": "Give an ε: nothing is trained without one.",
    "dataset_required": "Upload the file again and choose its dataset.",
    "file_invalid": "Open the file's row report, mend the rows, and upload the file again.",
    "model_not_allowed": "Choose one of the models in the list.",
    "not_found": "Choose one of your files in the list.",
    "request_in_progress": "Wait a moment, then look under Jobs: the first click is still at work.",
    "idempotency_key_reused": "Press Estimate once more and submit what it then shows.",
    "ledger_halted": "Nothing new can be reserved. Two stewards must end the halt.",
    "not_ready": "Try again in a minute.",
    "body_too_large": "Split the file and upload its parts as versions of the same dataset.",
    "malformed_json": "Reload this page and send the form again.",
    "unknown_field": "Reload this page and send the form again.",
}
REMEDIES = {
    "fewer_steps": "Lower the steps: each one is paid for.",
    "smaller_batch": "Take a smaller batch: fewer patients a step cost less.",
    "smaller_model": "Choose a smaller model: this one does not fit a worker's device.",
    "shorter_rows": "Take fewer tokens a row.",
    "smaller_adapter": "Take a smaller adapter rank.",
    "smaller_epsilon": "Lower ε: more noise makes each step cheaper.",
    "larger_epsilon": "Raise ε: the noise that it needs now is beyond what can be planned.",
    "ask_grant": "Ask two stewards for a larger limit of this population.",
}
WARNINGS = {
    "utility_low_batch": "A batch below 256 patients usually drowns in its noise.",
    "minutes_above_limit": "It will take longer than the minutes you gave.",
}


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """What went wrong, where in the form, and what to do next. Repeats nothing that was sent."""

    message: str
    next_step: str = ""
    param: str | None = None
    status: int = 422


def trouble_of(error: Exception) -> Trouble | None:
    """The error as a page tells it; None for one that no table knows."""
    known = as_service_error(error)
    if known is None:
        return None
    return Trouble(
        message=known.message,
        next_step=NEXT_STEPS.get(known.code, ""),
        param=known.param,
        status=known.status,
    )
