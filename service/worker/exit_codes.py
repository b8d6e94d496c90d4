"""What a trainer process can say when it ends: a closed table of numbers (service.md 10.3).

Exception text never leaves the process; these codes do.
"""

from __future__ import annotations

from enum import IntEnum

from service.jobs.lifecycle import Reason


class ExitCode(IntEnum):
    DONE = 0
    FENCED_OUT = 10
    BUDGET_STOP = 11
    PAUSED = 12
    CANCELLED = 13
    OUT_OF_MEMORY = 20
    DATA_UNREADABLE = 21
    MODEL_REFUSED = 22
    SELF_CHECK_FAILED = 23
    NO_CHECKPOINT = 24
    LEDGER_UNREACHABLE = 30
    LEDGER_REFUSED = 31


# Code -> (reason, permanent). Permanent: another attempt would end the same way.
FAILURES: dict[ExitCode, tuple[Reason, bool]] = {
    ExitCode.OUT_OF_MEMORY: (Reason.OUT_OF_MEMORY, False),
    ExitCode.DATA_UNREADABLE: (Reason.DATA_UNREADABLE, True),
    ExitCode.MODEL_REFUSED: (Reason.MODEL_REFUSED, True),
    ExitCode.SELF_CHECK_FAILED: (Reason.SELF_CHECK_FAILED, True),
    ExitCode.NO_CHECKPOINT: (Reason.NO_CHECKPOINT, True),
    ExitCode.LEDGER_UNREACHABLE: (Reason.LEDGER_UNREACHABLE, False),
    ExitCode.LEDGER_REFUSED: (Reason.LEDGER_REFUSED, True),
    ExitCode.CANCELLED: (Reason.WORKER_STOPPED, False),  # if the job was not being cancelled
}


def failure_of(return_code: int) -> tuple[Reason, bool]:
    """Why a process that left the job unfinished ended, and whether that is final."""
    if return_code < 0:  # by a signal
        return Reason.TRAINER_KILLED, False
    try:
        return FAILURES[ExitCode(return_code)]
    except (KeyError, ValueError):
        return Reason.TRAINER_CRASHED, False
