"""The states of a job as data: every legal change, its trigger, and what to tell people.

A change that is not in `CHANGES` does not exist; `require_change` refuses it
(service.md 7). File validation and steward approval add rows here when they are offered.
"""

from __future__ import annotations

from enum import StrEnum

from service.jobs.errors import StateConflict


class State(StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"
    BUDGET_STOPPED = "budget_stopped"
    FAILED = "failed"


STATES = frozenset(State)

CHANGES: dict[tuple[State, State], str] = {
    (State.QUEUED, State.STARTING): "claim",
    (State.RECOVERING, State.STARTING): "claim",
    (State.STARTING, State.RUNNING): "first charge of the epoch",
    (State.STARTING, State.RECOVERING): "trainer ended badly, or lease expired",
    (State.RUNNING, State.RECOVERING): "trainer ended badly, or lease expired",
    (State.STARTING, State.FAILED): "permanent cause, or attempts used up",
    (State.RUNNING, State.FAILED): "permanent cause, or attempts used up",
    (State.RECOVERING, State.FAILED): "attempts used up",
    (State.STARTING, State.PAUSING): "pause request",
    (State.RUNNING, State.PAUSING): "pause request",
    (State.QUEUED, State.PAUSED): "pause request",
    (State.RECOVERING, State.PAUSED): "pause request",
    (State.PAUSING, State.PAUSED): "window ended and process gone, or process lost",
    (State.PAUSING, State.FAILED): "permanent cause",
    (State.PAUSED, State.QUEUED): "resume request",
    (State.QUEUED, State.CANCELLED): "cancel request, or queued for 30 days",
    (State.RECOVERING, State.CANCELLED): "cancel request",
    (State.PAUSED, State.CANCELLED): "cancel request, or paused for 7 days",
    (State.STARTING, State.CANCELLING): "cancel request",
    (State.RUNNING, State.CANCELLING): "cancel request",
    (State.PAUSING, State.CANCELLING): "cancel request",
    (State.CANCELLING, State.CANCELLED): "process gone, or lease expired",
    (State.RUNNING, State.SUCCEEDED): "last planned step done, artifact committed",
    (State.PAUSING, State.SUCCEEDED): "last planned step done, artifact committed",
    (State.RUNNING, State.BUDGET_STOPPED): "the cheapest next step does not fit",
    (State.PAUSING, State.BUDGET_STOPPED): "the cheapest next step does not fit",
}

CLAIMABLE = frozenset({State.QUEUED, State.RECOVERING})
WAITING = CLAIMABLE | {State.PAUSED}  # live, and in no worker's hands
CHARGING = frozenset({State.STARTING, State.RUNNING})  # a window may be opened
FINISHING = CHARGING | {State.PAUSING}  # an open window may be brought to its end
LEASED = FINISHING | {State.CANCELLING}
TERMINAL = frozenset({State.SUCCEEDED, State.BUDGET_STOPPED, State.FAILED, State.CANCELLED})
WITH_ADAPTER = frozenset({State.SUCCEEDED, State.BUDGET_STOPPED})

OPENAI_STATUS: dict[State, str] = {
    State.QUEUED: "queued",
    State.STARTING: "running",
    State.RUNNING: "running",
    State.RECOVERING: "running",
    State.PAUSING: "pausing",
    State.PAUSED: "paused",
    State.CANCELLING: "running",
    State.SUCCEEDED: "succeeded",
    State.BUDGET_STOPPED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
}


class Reason(StrEnum):
    """Why a job waits, ended or lost an attempt. Closed: codes leave a process, texts never."""

    WAITING_FOR_WORKER = "waiting_for_worker"
    CANCEL_REQUESTED = "cancel_requested"
    PAUSE_REQUESTED = "pause_requested"
    PAUSED_TOO_LONG = "paused_too_long"
    QUEUED_TOO_LONG = "queued_too_long"
    TARGET_REACHED = "target_reached"
    BUDGET_USED = "budget_used"
    MARGIN_USED = "margin_used"
    NO_CHECKPOINT = "no_checkpoint"
    TRAINER_CRASHED = "trainer_crashed"
    TRAINER_KILLED = "trainer_killed"
    TRAINER_STALLED = "trainer_stalled"
    LEASE_EXPIRED = "lease_expired"
    WORKER_STOPPED = "worker_stopped"
    OUT_OF_MEMORY = "out_of_memory"
    DATA_UNREADABLE = "data_unreadable"
    MODEL_REFUSED = "model_refused"
    LEDGER_UNREACHABLE = "ledger_unreachable"
    LEDGER_REFUSED = "ledger_refused"
    SELF_CHECK_FAILED = "self_check_failed"
    AUDIT_FAILED = "audit_failed"
    RANK_LOST = "rank_lost"
    RANKS_DIFFER = "ranks_differ"
    DISK_FULL = "disk_full"
    KEY_UNAVAILABLE = "key_unavailable"
    MODEL_MISSING = "model_missing"
    ATTEMPTS_USED = "attempts_used"


# These tell about the machine, not about the job: a second time proves nothing.
MACHINE_REASONS = frozenset(
    {
        Reason.LEASE_EXPIRED,
        Reason.WORKER_STOPPED,
        Reason.TRAINER_KILLED,
        Reason.RANK_LOST,
        Reason.LEDGER_UNREACHABLE,
        Reason.DISK_FULL,
        Reason.KEY_UNAVAILABLE,
        Reason.MODEL_MISSING,
    }
)

MESSAGES: dict[Reason, str] = {
    Reason.WAITING_FOR_WORKER: "Waiting for a free worker.",
    Reason.CANCEL_REQUESTED: "Cancelled on request. Windows never started went back.",
    Reason.PAUSE_REQUESTED: "Paused, or about to be. Resume it within 7 days.",
    Reason.PAUSED_TOO_LONG: "Paused for 7 days. Windows never started went back.",
    Reason.QUEUED_TOO_LONG: "No worker was free for 30 days. Everything reserved went back.",
    Reason.TARGET_REACHED: "All planned steps are done.",
    Reason.BUDGET_USED: "The next step no longer fits the job's own limit; the adapter is valid.",
    Reason.MARGIN_USED: "Spare windows are used up; the adapter so far is valid.",
    Reason.NO_CHECKPOINT: "The limit was reached before a first checkpoint. Raise margin_windows.",
    Reason.TRAINER_CRASHED: "The trainer ended unexpectedly; the last window stays charged.",
    Reason.TRAINER_KILLED: "The trainer was killed; the last window stays charged.",
    Reason.TRAINER_STALLED: "No step was finished for too long; the trainer was stopped.",
    Reason.LEASE_EXPIRED: "The worker was not heard of in time; another attempt takes over.",
    Reason.WORKER_STOPPED: "The worker was stopped; another attempt takes over.",
    Reason.OUT_OF_MEMORY: "Not enough memory. Choose a smaller model or adapter.",
    Reason.DATA_UNREADABLE: "The dataset version cannot be read as it was registered.",
    Reason.MODEL_REFUSED: "The base model or adapter breaks the per-patient bound.",
    Reason.LEDGER_UNREACHABLE: "The ledger could not be reached; training stopped before a window.",
    Reason.LEDGER_REFUSED: "The ledger refused a charge; training stopped before a window.",
    Reason.SELF_CHECK_FAILED: "The trainer's check of per-patient gradients failed.",
    Reason.AUDIT_FAILED: "The audit found a fault in this worker's noise, clipping or draws. No "
    "adapter leaves; what was charged stays charged. Tell the administrator.",
    Reason.RANK_LOST: "One of the job's processes was lost; another attempt takes over.",
    Reason.RANKS_DIFFER: "The job's processes did not hold the same model, records and versions. "
    "Tell the administrator.",
    Reason.DISK_FULL: "The worker's disk is full. The last window stays charged; an administrator "
    "must make room.",
    Reason.KEY_UNAVAILABLE: "The worker has no key that opens the stored data. Nothing was charged "
    "by this attempt; an administrator must put data.key in place.",
    Reason.MODEL_MISSING: "The base model is not on this worker. Nothing was charged by this "
    "attempt; an administrator must put the model in place.",
    Reason.ATTEMPTS_USED: "Too many attempts ended badly.",
}


def is_change(before: State, after: State) -> bool:
    """Whether the table knows this change."""
    return (before, after) in CHANGES


def require_change(before: State, after: State) -> None:
    """Passes for a legal change.

    Raises:
        StateConflict: the table does not know it.
    """
    if not is_change(before, after):
        raise StateConflict(state=before, wanted=after)


def status_message(reason_code: str | None) -> str | None:
    """Plain words for a reason code."""
    return None if reason_code is None else MESSAGES[Reason(reason_code)]
