"""The queue in the order in which workers take it, and why each job waits.

Places count the jobs of every hospital, since all of them share the workers; of other
hospitals nothing but that number is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service import row_fence
from service.auth.subject import Subject
from service.database import clock_us
from service.errors import CursorInvalid
from service.jobs.lifecycle import CLAIMABLE, LEASED, State, status_message
from service.jobs.models import Job
from service.jobs.repository import visible_jobs
from service.jobs.transitions import SECOND
from service.jobs.views import PRIORITIES
from service.operations.fleet import Fleet


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A job that no worker holds. `place` counts from 1; None: paused, hence in no queue."""

    job: Job
    place: int | None
    code: str
    why: str


def claim_order() -> Any:
    """Every claimable job's id and place, by the rule of `leases.claim` (service.md 9)."""
    running = (
        select(Job.tenant_id, func.count().label("jobs"))
        .where(Job.state.in_(LEASED))
        .group_by(Job.tenant_id)
        .subquery()
    )
    order = (Job.priority.desc(), func.coalesce(running.c.jobs, 0), Job.created_at, Job.id)
    return (
        select(Job.id, func.row_number().over(order_by=order).label("place"))
        .outerjoin(running, running.c.tenant_id == Job.tenant_id)
        .where(Job.state.in_(CLAIMABLE))
        .subquery()
    )


def waiting_jobs(
    session: Session, subject: Subject, fleet: Fleet, *, limit: int, after: str | None = None
) -> list[Waiting]:
    """The queue by place, as far as the reader may see it; then paused jobs, oldest first.

    Raises:
        CursorInvalid: `after` names no job that waits.
    """
    now, order = clock_us(session), claim_order()
    paused = Job.state == State.PAUSED
    found = (
        visible_jobs(subject)
        .outerjoin(order, order.c.id == Job.id)
        .add_columns(order.c.place)
        .where(Job.state.in_([*CLAIMABLE, State.PAUSED]))
    )
    if after is not None:
        found = _after(session, subject, found, order, after)
    found = found.order_by(paused, order.c.place, Job.created_at, Job.id).limit(limit)
    with row_fence.lifted(session):  # places count everybody's jobs; `visible_jobs` filters
        placed = session.execute(found).all()
    return [_waiting(job, place, fleet, now) for job, place in placed]


def _after(session: Session, subject: Subject, found: Any, order: Any, after: str) -> Any:
    asked = visible_jobs(subject).outerjoin(order, order.c.id == Job.id)
    this = asked.add_columns(order.c.place).where(
        Job.id == after, Job.state.in_([*CLAIMABLE, State.PAUSED])
    )
    with row_fence.lifted(session):
        last = session.execute(this).first()
    if last is None:
        raise CursorInvalid
    job, place = last
    if place is not None:
        return found.where((order.c.place > place) | (Job.state == State.PAUSED))
    later = (Job.created_at > job.created_at) | (
        (Job.created_at == job.created_at) & (Job.id > job.id)
    )
    return found.where(Job.state == State.PAUSED, later)


def count_waiting(session: Session, subject: Subject) -> int:
    """How many jobs the reader's queue holds in all, paused ones included."""
    waiting = visible_jobs(subject).where(Job.state.in_([*CLAIMABLE, State.PAUSED]))
    return session.scalar(select(func.count()).select_from(waiting.subquery())) or 0


def _waiting(job: Job, place: int | None, fleet: Fleet, now: int) -> Waiting:
    code, why = _why(job, place, fleet, now)
    return Waiting(job=job, place=place, code=code, why=why)


def _why(job: Job, place: int | None, fleet: Fleet, now: int) -> tuple[str, str]:
    if place is None:
        return "paused", status_message(job.reason_code) or ""
    if job.not_before > now:
        seconds = -(-(job.not_before - now) // SECOND)
        return "backing_off", f"{status_message(job.reason_code)} In {seconds} s at the earliest."
    if fleet.alive == 0:
        return "no_worker", "No worker gives a sign of life."
    if fleet.takers == 0:
        return "workers_draining", "Every worker drains: none takes another job."
    ahead = place - 1
    if fleet.idle > ahead:
        return "about_to_start", "A worker is free and takes it at its next look."
    jobs = f"{ahead} job{'' if ahead == 1 else 's'} ahead" if ahead else "First in line"
    return "waiting_for_worker", f"{jobs}; {fleet.takers - fleet.idle} of {fleet.takers} busy."


def queue_answer(lines: Sequence[Waiting]) -> list[dict[str, Any]]:
    """As the API shows it. Times in Unix seconds."""
    return [
        {
            "object": "queue.item",
            "id": line.job.id,
            "place": line.place,
            "state": line.job.state,
            "priority": PRIORITIES[line.job.priority],
            "attempt": line.job.attempt,
            "code": line.code,
            "why": line.why,
            "created_at": line.job.created_at // SECOND,
            "not_before": line.job.not_before // SECOND,
        }
        for line in lines
    ]
