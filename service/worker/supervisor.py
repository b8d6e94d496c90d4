"""Watches over one attempt: a fresh interpreter that trains, and the row that says whose it is.

Guarantee: when `supervise` returns, no process of the attempt runs any more, and the job
is finished, paused, waits for another attempt, or belongs to somebody else. It writes no charge
and no result; those are the trainer's, under its fence.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from service.database import Database
from service.jobs.leases import Claim, Hold, fail_attempt, hold_of, renew_lease
from service.jobs.lifecycle import LEASED, WITH_ADAPTER, Reason, State
from service.settings import Settings
from service.traces import NoTraces, Traces
from service.worker.exit_codes import ExitCode, failure_of
from service.worker.processes import (
    LEAVE_NOTE,
    child_environment,
    kill_group,
    start_tied,
    stop_group,
)

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
LEAVING_SECONDS = 15.0
SECOND = 1_000_000


def runner_command(claim: Claim, processes: int = 1) -> list[str]:
    """The trainer of a claimed job, in a fresh interpreter: CUDA never meets fork.

    With several processes it is torchrun, which starts the trainer on each rank.
    """
    module = "runner" if processes == 1 else "rank_agent"
    return [
        *(sys.executable, "-m", f"service.worker.{module}"),
        *("--job", claim.job_id, "--epoch", str(claim.epoch)),
    ]


@dataclass(kw_only=True)
class Supervisor:
    """Runs the trainer of one claim. `command` replaces the trainer in tests.

    `stop` is set when the worker itself leaves. The trainer then has `leave_seconds` to end its
    window and save it, and the job goes on elsewhere from there; after that it is killed, the
    open window is lost with its charge, and the job has one attempt less. One that still loads
    has nothing to save and is killed at once.
    """

    db: Database
    settings: Settings
    worker_id: str
    claim: Claim
    command: Sequence[str] | None = None
    poll_seconds: float = POLL_SECONDS
    traces: Traces = field(default_factory=NoTraces)
    stop: threading.Event = field(default_factory=threading.Event)
    _leave_by: float | None = None
    _given_up_for: Reason | None = None

    def run(self) -> State | None:
        """Starts the trainer and stays until it and the attempt are over.

        Returns the state in which the job was left; None if it belongs to another attempt.
        """
        began = time.time_ns()
        state: State | None = None
        try:
            state = self._run()
            return state
        finally:
            told = {**self._context(), "state": state, "code": self._given_up_for}
            self.traces.attempt(told, began)

    def _run(self) -> State | None:
        with tempfile.TemporaryDirectory(prefix="rldp-attempt-") as folder:
            note = Path(folder) / "leave"
            process = self._start(note)
            logger.info("attempt started", extra=self._context())
            try:
                reason = self._watch(process, note)
            except BaseException:  # this thread itself is being ended
                self.stop.set()
                self._conclude(process, Reason.WORKER_STOPPED)
                raise
            return self._conclude(process, reason)

    def _start(self, note: Path) -> subprocess.Popen[bytes]:
        environment = child_environment(self.settings, os.environ)
        environment["RLDP_WORKER_ID"] = self.worker_id
        environment[LEAVE_NOTE] = str(note)
        # Waiting threads sleep instead of spinning: on a busy host a step is five times faster.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        return start_tied(
            self.command or runner_command(self.claim, self.settings.ranks_per_job),
            environment=environment,
            quiet=True,
        )

    def _watch(self, process: subprocess.Popen[bytes], note: Path) -> Reason | None:
        """Until the trainer ends, or must end; the reason if another attempt must follow."""
        over_since: float | None = None
        while True:
            try:
                process.wait(timeout=self.poll_seconds)
                return None
            except subprocess.TimeoutExpired:
                pass
            if self.stop.is_set() and not self._has_time_to_leave(note):
                return Reason.WORKER_STOPPED
            hold = self._look()
            if hold is None:
                continue
            if self._is_ours_and_over(hold):  # finished in the row: on its way out
                over_since = over_since or time.monotonic()
                if time.monotonic() - over_since > LEAVING_SECONDS:
                    return None
                continue
            reason = self._must_end(hold)
            if reason is not None:
                return reason
            if hold.state is State.STARTING:
                # Until its first charge the trainer may be busy loading; the bound on this
                # is the stall watch. From then on only the trainer itself renews.
                self._renew()

    def _has_time_to_leave(self, note: Path) -> bool:
        """Asks the trainer to save and end, once; whether it still has time to."""
        if self._leave_by is None:
            self._leave_by = time.monotonic() + self.settings.leave_seconds
            note.touch()
            logger.info("attempt asked to leave", extra=self._context())
        return time.monotonic() < self._leave_by

    def _look(self) -> Hold | None:
        try:
            return hold_of(self.db, self.claim.job_id)
        except DBAPIError:
            return None  # the trainer meets the same outage and stops before its next window

    def _renew(self) -> None:
        try:
            renew_lease(self.db, self.claim.job_id, self.claim.epoch, self.worker_id)
        except DBAPIError:
            logger.warning("lease not renewed: database unreachable", extra=self._context())

    def _must_end(self, hold: Hold) -> Reason | None:
        if hold.state is State.CANCELLING or hold.cancel_requested:
            return Reason.CANCEL_REQUESTED
        if hold.epoch != self.claim.epoch or hold.state not in LEASED:
            return Reason.LEASE_EXPIRED
        if hold.lease_left is None or hold.lease_left <= 0:
            return Reason.LEASE_EXPIRED
        if self._leave_by is not None and hold.state is State.STARTING:
            return Reason.WORKER_STOPPED
        if hold.progress_age > self.settings.stall_seconds * SECOND:
            return Reason.TRAINER_STALLED
        return None

    def _is_ours_and_over(self, hold: Hold) -> bool:
        return hold.epoch == self.claim.epoch and hold.state in WITH_ADAPTER

    def _conclude(self, process: subprocess.Popen[bytes], reason: Reason | None) -> State | None:
        if reason is Reason.CANCEL_REQUESTED:
            gone = stop_group(process, grace_seconds=self.settings.cancel_grace_seconds)
        else:
            gone = kill_group(process)
        if not gone:  # never "cancelled" while a process lives; the lease's end decides
            logger.error("process group outlives its kill", extra=self._context())
            return None
        if reason is None:
            return self._after_exit(process.returncode)
        return self._give_up(reason, permanent=False)

    def _after_exit(self, return_code: int) -> State | None:
        hold = self._wait_for_look()
        if hold.epoch != self.claim.epoch or hold.state not in LEASED:
            return hold.state if hold.epoch == self.claim.epoch else None
        if hold.state is State.PAUSING and return_code in (ExitCode.PAUSED, ExitCode.FENCED_OUT):
            # Fenced out of a new window: the pause came just after the last one's end.
            reason, permanent = Reason.PAUSE_REQUESTED, False
        elif return_code == ExitCode.PAUSED and self._leave_by is not None:
            return self._give_up(Reason.WORKER_STOPPED, permanent=False, is_saved=True)
        elif return_code == ExitCode.FENCED_OUT:
            reason, permanent = Reason.LEASE_EXPIRED, False
        else:  # `DONE` while the row says otherwise is a crash as well
            reason, permanent = failure_of(return_code)
        return self._give_up(reason, permanent=permanent)

    def _give_up(self, reason: Reason, *, permanent: bool, is_saved: bool = False) -> State | None:
        """Hands the job back; keeps trying while the database is away, unless the worker leaves."""
        while True:
            try:
                state = fail_attempt(
                    self.db,
                    self.claim.job_id,
                    self.claim.epoch,
                    reason,
                    permanent,
                    attempts_max=self.settings.attempts_max,
                    is_saved=is_saved,
                )
            except DBAPIError:
                if self.stop.is_set():
                    logger.warning("job not handed back: lease runs out", extra=self._context())
                    return None
                time.sleep(self.poll_seconds)
                continue
            logger.info("attempt ended", extra={**self._context(), "code": reason.value})
            self._given_up_for = reason
            return state

    def _wait_for_look(self) -> Hold:
        while (hold := self._look()) is None:
            time.sleep(self.poll_seconds)
        return hold

    def _context(self) -> dict[str, object]:
        return {"job_id": self.claim.job_id, "attempt": self.claim.epoch}
