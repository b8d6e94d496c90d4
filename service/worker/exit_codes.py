"""What a trainer process can say when it ends: a closed table of numbers (service.md 10.3).

Exception text never leaves the process; these codes do.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    AUDIT_FAILED = 25
    RANK_LOST = 26
    RANKS_DIFFER = 27
    RANK_KILLED = 28
    DISK_FULL = 32
    KEY_UNAVAILABLE = 33
    MODEL_MISSING = 34
    LEDGER_UNREACHABLE = 30
    LEDGER_REFUSED = 31


# Code -> (reason, permanent). Permanent: another attempt would end the same way.
FAILURES: dict[ExitCode, tuple[Reason, bool]] = {
    ExitCode.OUT_OF_MEMORY: (Reason.OUT_OF_MEMORY, False),
    ExitCode.DATA_UNREADABLE: (Reason.DATA_UNREADABLE, True),
    ExitCode.MODEL_REFUSED: (Reason.MODEL_REFUSED, True),
    ExitCode.SELF_CHECK_FAILED: (Reason.SELF_CHECK_FAILED, True),
    ExitCode.AUDIT_FAILED: (Reason.AUDIT_FAILED, True),
    ExitCode.RANK_LOST: (Reason.RANK_LOST, False),
    ExitCode.RANKS_DIFFER: (Reason.RANKS_DIFFER, False),
    ExitCode.RANK_KILLED: (Reason.TRAINER_KILLED, False),
    ExitCode.DISK_FULL: (Reason.DISK_FULL, False),
    ExitCode.KEY_UNAVAILABLE: (Reason.KEY_UNAVAILABLE, False),
    ExitCode.MODEL_MISSING: (Reason.MODEL_MISSING, False),
    ExitCode.NO_CHECKPOINT: (Reason.NO_CHECKPOINT, True),
    ExitCode.LEDGER_UNREACHABLE: (Reason.LEDGER_UNREACHABLE, False),
    ExitCode.LEDGER_REFUSED: (Reason.LEDGER_REFUSED, True),
    ExitCode.CANCELLED: (Reason.WORKER_STOPPED, False),  # if the job was not being cancelled
}

_SAID = {int(code) for code in ExitCode} - {ExitCode.RANK_LOST}


def failure_of(return_code: int) -> tuple[Reason, bool]:
    """Why a process that left the job unfinished ended, and whether that is final."""
    if return_code < 0:  # by a signal
        return Reason.TRAINER_KILLED, False
    try:
        return FAILURES[ExitCode(return_code)]
    except (KeyError, ValueError):
        return Reason.TRAINER_CRASHED, False


def word_of_ranks(codes: Sequence[int]) -> int:
    """The code of an attempt on several processes, from those of the failed ones, oldest first.

    One rank's end takes the others with it, so that a cause stands beside its consequences:
    the first that could say what happened, or that a signal ended, speaks; then a crash.
    `RANK_LOST` alone is nobody's cause.
    """
    causes = [code for code in codes if code < 0 or code in _SAID]
    crashes = [code for code in codes if code > 0 and code not in {*_SAID, ExitCode.RANK_LOST}]
    first = next(iter([*causes, *crashes]), int(ExitCode.RANK_LOST))
    return int(ExitCode.RANK_KILLED) if first < 0 else first
