"""What people may do to a live job: cancel, pause, resume; and how long one may be held.

A request asked again is answered with the job as it stands, since clients repeat what
they got no answer to (service.md 7, 12).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.database import Database
from service.jobs import repository
from service.jobs.errors import StateConflict
from service.jobs.lifecycle import CHARGING, CLAIMABLE, TERMINAL, WAITING, Reason, State
from service.jobs.models import Job
from service.jobs.transitions import (
    SECOND,
    change_state,
    clock_us,
    end_without_adapter,
    locked_job,
)
from service.jobs.views import job_answer

DAY = 86_400 * SECOND
# State -> (longest stay, why it is cancelled then): escrow is not held for ever.
HOLDS: dict[State, tuple[int, Reason]] = {
    State.PAUSED: (7 * DAY, Reason.PAUSED_TOO_LONG),
    State.QUEUED: (30 * DAY, Reason.QUEUED_TOO_LONG),
}


def cancel_job(session: Session, subject: Subject, job_id: str) -> dict[str, Any]:
    """Asks for the end of a job; while no worker holds it, that is the end.

    Raises:
        JobNotFound: absent, or not for this caller.
        StateConflict: the job is over.
    """
    job, state, now = _steered(session, subject, job_id)
    if state in (State.CANCELLING, State.CANCELLED):
        return job_answer(session, job)
    if state in TERMINAL:
        raise StateConflict(state=state, wanted=State.CANCELLED)
    job.cancel_requested = True
    if state in WAITING:
        end_without_adapter(session, job, State.CANCELLED, now=now, reason=Reason.CANCEL_REQUESTED)
    else:
        change_state(session, job, State.CANCELLING, now=now, reason=Reason.CANCEL_REQUESTED)
    return job_answer(session, job)


def pause_job(session: Session, subject: Subject, job_id: str) -> dict[str, Any]:
    """Asks a job in a worker's hands to stop at its window's end; a waiting one is paused at once.

    One that only starts stops before its first window. Nothing paid is lost, and the escrow
    stays held.

    Raises:
        JobNotFound: absent, or not for this caller.
        StateConflict: it is on its way to its end, or over.
    """
    job, state, now = _steered(session, subject, job_id)
    if state in (State.PAUSING, State.PAUSED):
        return job_answer(session, job)
    after = State.PAUSING if state in CHARGING else State.PAUSED
    change_state(session, job, after, now=now, reason=Reason.PAUSE_REQUESTED)
    return job_answer(session, job)


def resume_job(session: Session, subject: Subject, job_id: str) -> dict[str, Any]:
    """Puts a paused job back into the queue, with a doorbell.

    Its next attempt goes on from the newest checkpoint, with fresh noise and a new epoch.

    Raises:
        JobNotFound: absent, or not for this caller.
        StateConflict: it is on its way to a pause or to its end, or over.
    """
    job, state, now = _steered(session, subject, job_id)
    if state in CLAIMABLE | CHARGING:
        return job_answer(session, job)
    job.not_before = job.rung_at = now
    change_state(session, job, State.QUEUED, now=now, reason=Reason.WAITING_FOR_WORKER)
    return job_answer(session, job)


def _steered(session: Session, subject: Subject, job_id: str) -> tuple[Job, State, int]:
    repository.visible_job(session, subject, job_id)
    job = locked_job(session, job_id)
    return job, State(job.state), clock_us(session)


def end_old_holds(db: Database) -> list[str]:
    """Cancels jobs paused for 7 days or queued for 30; what they never started goes back."""
    with db.reading() as session:
        now = clock_us(session)
        stays = [
            and_(Job.state == state, Job.state_at <= now - longest)
            for state, (longest, _) in HOLDS.items()
        ]
        ids = session.scalars(select(Job.id).where(or_(*stays))).all()
    return [job_id for job_id in ids if _end_hold(db, job_id)]


def _end_hold(db: Database, job_id: str) -> bool:
    with db.transaction() as session:
        job, now = locked_job(session, job_id), clock_us(session)
        longest, reason = HOLDS.get(State(job.state), (now, Reason.QUEUED_TOO_LONG))
        if State(job.state) not in HOLDS or job.state_at > now - longest:
            return False
        end_without_adapter(session, job, State.CANCELLED, now=now, reason=reason)
        return True
