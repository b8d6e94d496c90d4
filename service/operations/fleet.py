"""The workers as a reader sees them: alive or not, and what each one holds.

What a worker runs is read from the jobs' leases. A job of another hospital is told as `busy`
without its id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from service import row_fence
from service.auth.subject import Subject
from service.database import clock_us
from service.fleet import registry
from service.fleet.models import Worker
from service.jobs.lifecycle import LEASED
from service.jobs.models import Job

Standing = Literal["idle", "busy", "draining", "deaf", "left"]


@dataclass(frozen=True, kw_only=True)
class WorkerLine:
    """One worker; `job` only if the reader's hospital owns what it runs."""

    worker: Worker
    standing: Standing
    is_busy: bool
    job: str | None
    heard_seconds: int  # since its last sign of life


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """All workers of a day. A count of alive ones includes those that drain."""

    workers: tuple[WorkerLine, ...]

    @property
    def alive(self) -> int:
        return sum(one.standing not in ("deaf", "left") for one in self.workers)

    @property
    def busy(self) -> int:
        return sum(one.is_busy for one in self.workers if one.standing not in ("deaf", "left"))

    @property
    def idle(self) -> int:
        return sum(one.standing == "idle" for one in self.workers)

    @property
    def takers(self) -> int:
        """Those that take a job now or when theirs has ended."""
        return sum(one.standing in ("idle", "busy") for one in self.workers)


def fleet_of(session: Session, subject: Subject) -> Fleet:
    """Every worker heard of within a day, oldest first."""
    now = clock_us(session)
    held = _held(session, now)
    return Fleet(
        workers=tuple(_line(one, held, subject, now) for one in registry.known(session, now))
    )


def _held(session: Session, now: int) -> dict[str, tuple[str, str]]:
    """Worker -> (job, hospital), of live leases."""
    leased = select(Job.lease_owner, Job.id, Job.tenant_id).where(
        Job.state.in_(LEASED), Job.lease_expires_at > now
    )
    with row_fence.lifted(session):  # `_line` tells no other hospital's job
        return {row.lease_owner: (row.id, row.tenant_id) for row in session.execute(leased)}


def _line(
    worker: Worker, held: Mapping[str, tuple[str, str]], subject: Subject, now: int
) -> WorkerLine:
    job, tenant = held.get(worker.id, (None, None))
    return WorkerLine(
        worker=worker,
        standing=_standing(worker, job is not None, now),
        is_busy=job is not None,
        job=job if tenant == subject.tenant_id else None,
        heard_seconds=max(0, now - worker.heard_at) // registry.SECOND,
    )


def _standing(worker: Worker, is_busy: bool, now: int) -> Standing:
    if worker.left_at is not None:
        return "left"
    if registry.is_deaf(worker, now):
        return "deaf"
    if worker.draining:
        return "draining"
    return "busy" if is_busy else "idle"


def worker_answer(line: WorkerLine) -> dict[str, Any]:
    """As the API shows it. Times in Unix seconds."""
    worker = line.worker
    return {
        "object": "worker",
        "id": worker.id,
        "state": line.standing,
        "device": worker.device,
        "version": worker.version,
        "heartbeat_age_seconds": line.heard_seconds,
        "busy": line.is_busy,
        "job": line.job,
        "deaf": line.standing == "deaf",
        "draining": worker.draining,
        "started_at": worker.started_at // registry.SECOND,
    }
