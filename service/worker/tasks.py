"""What a worker does when the bell rings, or when it looks by itself.

A doorbell carries an id and nothing else; it may come never, once or twice, late or out
of order, and all end well: only the claim decides (service.md 8, 10).
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from service.database import Database
from service.fleet import registry
from service.jobs.leases import Claim, claim
from service.settings import Settings
from service.traces import NoTraces, Traces
from service.worker.controls import IdleControls, are_wanted
from service.worker.device import device_name
from service.worker.supervisor import Supervisor

logger = logging.getLogger(__name__)

RING = "service.worker.tasks.ring"
Command = Callable[[Claim], Sequence[str]]


@dataclass
class Bell:
    """A job's id, or none for a look at whatever waits; told when it has been seen to."""

    job_id: str | None
    answered: threading.Event = field(default_factory=threading.Event)


@dataclass(kw_only=True)
class Slot:
    """Room for one attempt at a time, in the thread that is in `work_forever`.

    The main thread belongs to Celery, which ends it by a signal in the middle of whatever it
    does; a trainer dies with the thread that started it.
    """

    db: Database
    settings: Settings
    worker_id: str
    command: Command | None = None  # in tests, in place of the trainer
    traces: Traces = field(default_factory=NoTraces)
    stop: threading.Event = field(default_factory=threading.Event)
    occupied: threading.Event = field(default_factory=threading.Event)  # while an attempt runs
    _busy: threading.Lock = field(default_factory=threading.Lock)
    _bells: queue.SimpleQueue[Bell] = field(default_factory=queue.SimpleQueue)

    def ring(self, job_id: str) -> None:
        """Wakes the working thread for a job, and waits for it.

        While it waits, Celery leaves further bells to workers that have room.
        """
        bell = Bell(job_id)
        self._bells.put(bell)
        bell.answered.wait()

    def work(self, job_id: str | None = None) -> int:
        """Runs the named job if it can be claimed, then whatever else waits.

        Returns the number of attempts run. Does nothing while the slot is busy: who rang
        then is found by the look that follows the running attempt.
        """
        if not self._busy.acquire(blocking=False):
            return 0
        try:
            attempts = 0
            claimed = self._claim(job_id) or self._claim(None)
            while claimed is not None:
                self._supervise(claimed)
                attempts += 1
                claimed = None if self.stop.is_set() else self._claim(None)
            return attempts
        finally:
            self._busy.release()

    def _claim(self, job_id: str | None) -> Claim | None:
        if registry.is_draining(self.db, self.worker_id):
            return None
        return claim(
            self.db,
            worker_id=self.worker_id,
            job_id=job_id,
            lease_seconds=self.settings.lease_seconds,
            versions=installed_versions(),
        )

    def _supervise(self, claimed: Claim) -> None:
        self.occupied.set()
        try:
            Supervisor(
                db=self.db,
                settings=self.settings,
                worker_id=self.worker_id,
                claim=claimed,
                command=None if self.command is None else self.command(claimed),
                traces=self.traces,
                stop=self.stop,
            ).run()
        finally:
            self.occupied.clear()

    def leave(self, *, wait_seconds: float) -> None:
        """Takes no more work, and waits a while for the running attempt to be handed back."""
        self.stop.set()
        self._bells.put(Bell(None))
        if self._busy.acquire(timeout=wait_seconds):
            self._busy.release()
        with suppress(SQLAlchemyError):  # it will be called deaf instead
            registry.leave(self.db, self.worker_id)
        self.traces.close()

    def work_forever(self) -> None:
        """Answers bells, and looks by itself now and then: a silent broker costs latency only."""
        while not self.stop.is_set():
            bell = self._next_bell()
            try:
                if not self.stop.is_set():
                    self.work(bell.job_id)
            except Exception as error:  # this outlives every accident; texts stay inside
                logger.warning("look failed", extra={"code": type(error).__name__})
            finally:
                bell.answered.set()

    def _next_bell(self) -> Bell:
        try:
            return self._bells.get(timeout=self.settings.poll_seconds)
        except queue.Empty:
            return Bell(None)

    def plant_when_idle(self) -> None:
        """Has the audit's positive controls run, unless they were or are not wanted."""
        if not are_wanted(self.settings):
            return
        try:
            IdleControls(settings=self.settings, occupied=self.occupied, stop=self.stop).run()
        except Exception as error:  # a job's trainer does it then
            logger.warning("positive controls not planted", extra={"code": type(error).__name__})

    def beat_forever(self) -> None:
        """Says that the worker lives, four times a lease, also while its slot is busy."""
        beat_seconds = max(1, self.settings.lease_seconds // 4)
        has_joined = False
        while True:
            try:
                if has_joined:
                    registry.beat(self.db, self.worker_id)
                else:
                    self._join(beat_seconds)
                    has_joined = True
            except Exception as error:  # the database is away: others see the silence
                logger.warning("no sign of life", extra={"code": type(error).__name__})
            if self.stop.wait(beat_seconds):
                return

    def _join(self, beat_seconds: int) -> None:
        registry.join(
            self.db,
            self.worker_id,
            device=device_name(),
            version=installed_versions()["rldp"],
            beat_seconds=beat_seconds,
        )


def installed_versions() -> dict[str, str]:
    """Versions that decide what is released, read without importing the packages."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("rldp", "torch", "opacus", "dp-accounting"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
