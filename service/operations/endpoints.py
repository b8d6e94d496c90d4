"""Routes for those who keep the service going: workers, queue, and the state of the house."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import AfterValidator, Field

from service.auth.subject import Subject, require_role
from service.dependencies import ReadDep, SessionDep, SettingsDep
from service.errors import NotFound
from service.exact_json import ExactRoute
from service.fleet import registry
from service.ledger.schemas import StrictModel, plain_text
from service.listing import LIMIT_DEFAULT, envelope
from service.operations.acknowledgements import NOTE_MAX, acknowledge
from service.operations.alerts import alert_answer
from service.operations.fleet import fleet_of, worker_answer
from service.operations.queue import count_waiting, queue_answer, waiting_jobs
from service.operations.summary import summary_answer, summary_of

router = APIRouter(prefix="/v1", tags=["operations"], route_class=ExactRoute)

Admin = Annotated[Subject, Depends(require_role("admin"))]
QueueReader = Annotated[Subject, Depends(require_role("admin", "steward"))]


class AcknowledgementCreate(StrictModel):
    """A few words for the other admins, if any. They are in no log."""

    note: Annotated[str, Field(min_length=1, max_length=NOTE_MAX), AfterValidator(plain_text)] | (
        None
    ) = None


@router.get("/operations")
def get_operations(subject: Admin, session: ReadDep, settings: SettingsDep) -> dict[str, Any]:
    """Alerts, numbers, failures by reason with advice, and the newest changes of jobs."""
    return summary_answer(summary_of(session, subject, settings.data_dir))


@router.post("/operations/alerts/{alert_id}/acknowledgement")
def acknowledge_alert(
    alert_id: str,
    body: AcknowledgementCreate,
    subject: Admin,
    session: SessionDep,
    settings: SettingsDep,
) -> dict[str, Any]:
    """The caller knows of it: it is told as known until its cause is over, or it gets worse.

    Known already, it stays as it was. The access log holds who called this, not the note.
    """
    known = acknowledge(session, subject, settings.data_dir, alert_id, body.note)
    return alert_answer(known)


@router.get("/workers")
def list_workers(subject: Admin, session: ReadDep) -> dict[str, Any]:
    """Those heard of within a day, oldest first. A job of another hospital is told as busy."""
    lines = fleet_of(session, subject).workers
    return envelope([worker_answer(line) for line in lines], has_more=False)


@router.post("/workers/{worker_id}/drain")
def drain_worker(worker_id: str, subject: Admin, session: SessionDep) -> dict[str, Any]:
    """It ends what it has and takes no more jobs, until it is started anew."""
    if registry.drain(session, worker_id) is None:
        raise NotFound
    lines = fleet_of(session, subject).workers
    return worker_answer(next(line for line in lines if line.worker.id == worker_id))


@router.get("/queue")
def get_queue(
    subject: QueueReader,
    session: ReadDep,
    after: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = LIMIT_DEFAULT,
) -> dict[str, Any]:
    """In the order in which workers take jobs, each with why it waits; then paused jobs."""
    fleet = fleet_of(session, subject)
    lines = waiting_jobs(session, subject, fleet, limit=limit + 1, after=after)
    shown = envelope(queue_answer(lines[:limit]), has_more=len(lines) > limit)
    return shown | {"total": count_waiting(session, subject)}
