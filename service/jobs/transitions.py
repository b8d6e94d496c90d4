"""Changes of a job's state: one place that moves it, writes its event and its message.

Every function takes the caller's open transaction, in which the job row is locked first
(service.md 8). The database's clock is read once per transaction and passed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from dp_core.events import canonical_json
from service import rows
from service.database import clock_us as clock_us
from service.ids import new_id
from service.jobs.errors import JobNotFound
from service.jobs.lifecycle import (
    CLAIMABLE,
    TERMINAL,
    WAITING,
    Reason,
    State,
    require_change,
    status_message,
)
from service.jobs.models import Job, JobEvent, Outbox
from service.ledger import service as ledger
from service.webhooks import events

SECOND = 1_000_000
# What webhooks tell; an adapter that a stopped budget left is a success to the client too.
TOLD: dict[State, events.EventType] = {
    State.SUCCEEDED: "fine_tuning.job.succeeded",
    State.BUDGET_STOPPED: "fine_tuning.job.succeeded",
    State.FAILED: "fine_tuning.job.failed",
    State.CANCELLED: "fine_tuning.job.cancelled",
    State.PAUSED: "fine_tuning.job.paused",
}


def locked_job(session: Session, job_id: str) -> Job:
    """The job row, locked until commit and fresh.

    Raises:
        JobNotFound: there is none.
    """
    session.flush()
    statement = select(Job).where(Job.id == job_id).with_for_update()
    job = session.scalar(statement.execution_options(populate_existing=True))
    if job is None:
        raise JobNotFound()
    return job


def announce(session: Session, job: Job, now: int) -> None:
    """Writes event, outgoing message and webhooks of the state the job is in now."""
    state = State(job.state)
    reason = Reason(job.reason_code) if job.reason_code else None
    level = "error" if state is State.FAILED else "warn" if state is State.RECOVERING else "info"
    explanation = status_message(job.reason_code)
    session.flush()  # the job's own row first
    facts = {"attempt": job.attempt, "reason_code": reason, "state": state.value}
    event = {
        "id": new_id("ftevent-"),
        "job_id": job.id,
        "created_at": now,
        "level": level,
        "type": "message",
        "message": f"Job is {state.value}." + (f" {explanation}" if explanation else ""),
        "data": canonical_json(facts).decode(),
    }
    rings = state in CLAIMABLE
    message = {
        "topic": "doorbell" if rings else "job_state",
        "job_id": job.id,
        "state": state.value,
        "created_at": now,
        "not_before": job.not_before if rings else now,
        "held_until": 0,
        "sent_at": None,
    }
    rows.add(session, (JobEvent, [event]), (Outbox, [message]))
    told = TOLD.get(state)
    if told is not None:
        data = {"id": job.id, "state": state.value, "reason_code": job.reason_code}
        events.emit(session, job.tenant_id, told, data)


def change_state(
    session: Session, job: Job, after: State, *, now: int, reason: Reason | None = None
) -> None:
    """Moves a locked job along the lifecycle, with event and message.

    Leaving the hands of a worker clears the lease; a forced end raises the epoch, so
    that whatever still runs can write nothing (service.md 7, rows 7, 10, 12).

    Raises:
        StateConflict: the lifecycle knows no such change.
    """
    require_change(State(job.state), after)
    job.state = after.value
    job.reason_code = None if reason is None else reason.value
    job.state_at = now
    if after in TERMINAL:
        job.finished_at = now
    if after in TERMINAL or after in WAITING:
        job.lease_owner = job.lease_expires_at = None
    if after in (State.CANCELLED, State.FAILED):
        job.epoch += 1
    announce(session, job, now)


def end_without_adapter(
    session: Session, job: Job, after: State, *, now: int, reason: Reason
) -> None:
    """Ends a job as cancelled or failed: escrow of windows never started goes back."""
    assert after in (State.CANCELLED, State.FAILED)
    change_state(session, job, after, now=now, reason=reason)
    ledger.settle(
        session,
        job_id=job.id,
        final_state=after.value,
        artifact_digests={},
        certificate_digest=None,
    )


def add_event(
    session: Session,
    job_id: str,
    *,
    now: int,
    message: str,
    data: Mapping[str, Any],
    type: str = "message",
    level: str = "info",
) -> None:
    """One line of history. `data` holds public and released values, numbers as text."""
    session.add(
        JobEvent(
            id=new_id("ftevent-"),
            job_id=job_id,
            created_at=now,
            level=level,
            type=type,
            message=message,
            data=canonical_json(dict(data)).decode(),
        )
    )
