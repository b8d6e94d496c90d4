"""Routes of jobs: OpenAI's shapes, so that its unmodified client is a client of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy.orm import Session

from service import openapi
from service.artifacts import endpoints as artifact_files
from service.audits import service as audits
from service.auth.subject import Subject, require_role
from service.dependencies import (
    DatabaseDep,
    KeyringDep,
    PublisherDep,
    ReadDep,
    SessionDep,
    SettingsDep,
    TurnDep,
)
from service.exact_json import ExactRoute
from service.idempotency.once import REPLAYED, KeyHeader
from service.jobs import repository, service, steering, views
from service.jobs.errors import JobNotFound
from service.jobs.schemas import JobRequest
from service.ledger import receipts
from service.ledger.errors import BudgetExceeded
from service.ledger.publisher import Publisher
from service.ledger.repository import reservation_of
from service.listing import envelope

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["jobs"], route_class=ExactRoute)

Submitter = Annotated[Subject, Depends(require_role("submitter"))]
Estimator = Annotated[Subject, Depends(require_role("submitter", "steward"))]
JobReader = Annotated[Subject, Depends(require_role("submitter", "steward", "admin"))]
ArtifactReader = Annotated[Subject, Depends(require_role("submitter", "steward"))]

AfterParam = Annotated[str | None, Query(max_length=64)]
LimitParam = Annotated[int, Query(ge=1, le=100)]

_METADATA = re.compile(r"metadata\[([\w.:/-]{1,64})\]")


@router.post("")
def create_job(
    body: JobRequest,
    subject: Submitter,
    database: DatabaseDep,
    settings: SettingsDep,
    publisher: PublisherDep,
    response: Response,
    _turn: TurnDep,
    idempotency_key: KeyHeader = None,
) -> dict[str, Any]:
    """Reserves the worst case of the job's privacy loss and queues it.

    A refused budget is answered with a signed receipt of the refusal's entry.
    """
    try:
        created = service.create_job(database, settings, subject, body, idempotency_key)
    except BudgetExceeded as refused:
        if refused.entry is not None:
            log_id, idem = refused.entry
            with database.reading() as session:
                refused.receipts = receipts.of_entries(session, publisher.keys, log_id, [idem])
        raise
    if created.is_replayed:
        response.headers[REPLAYED] = "true"
    with database.reading() as session:
        if created.reserved is None:
            return _with_receipts(session, publisher, created.answer)
        receipt = receipts.of_fresh(session, publisher.keys, created.reserved)
        return {**created.answer, "receipts": [receipt]}


def _with_receipts(session: Session, publisher: Publisher, job: dict[str, Any]) -> dict[str, Any]:
    """The job with signed receipts of what the call has entered, for its owner to keep."""
    log_id = reservation_of(session, job["id"]).log_id
    return {**job, "receipts": receipts.of_call(session, publisher.keys, log_id, job["id"])}


@router.post("/estimate")
def estimate_job(
    body: JobRequest, subject: Estimator, session: ReadDep, settings: SettingsDep
) -> dict[str, Any]:
    """What creation would reserve, exactly. Writes nothing."""
    return service.estimate_job(session, settings, subject, body)


@router.get("")
def list_jobs(
    request: Request,
    subject: JobReader,
    session: ReadDep,
    after: AfterParam = None,
    limit: LimitParam = 20,
) -> dict[str, Any]:
    """Newest first; `metadata[k]=v` filters."""
    jobs, has_more = repository.page_of_jobs(
        session,
        subject,
        after=after,
        limit=limit,
        metadata=_metadata_filter(request.query_params),
    )
    return envelope(views.jobs_answer(session, jobs), has_more=has_more)


def _metadata_filter(query: Mapping[str, str]) -> dict[str, str]:
    matches = ((_METADATA.fullmatch(name), value) for name, value in query.items())
    return {match[1]: value for match, value in matches if match}


@router.get("/{job_id}")
def get_job(job_id: str, subject: JobReader, session: ReadDep) -> dict[str, Any]:
    return views.job_answer(session, repository.visible_job(session, subject, job_id))


@router.post("/{job_id}/cancel")
def cancel_job(
    job_id: str, subject: JobReader, session: SessionDep, publisher: PublisherDep
) -> dict[str, Any]:
    """Asks for the end; windows never started go back to the population."""
    return _with_receipts(session, publisher, steering.cancel_job(session, subject, job_id))


@router.post("/{job_id}/pause")
def pause_job(job_id: str, subject: JobReader, session: SessionDep) -> dict[str, Any]:
    """Stops a running job at the end of its open window; what it reserved stays held."""
    return steering.pause_job(session, subject, job_id)


@router.post("/{job_id}/resume")
def resume_job(job_id: str, subject: JobReader, session: SessionDep) -> dict[str, Any]:
    """Queues a paused job; it goes on from its newest checkpoint."""
    return steering.resume_job(session, subject, job_id)


@router.get("/{job_id}/events")
def list_events(
    job_id: str,
    subject: JobReader,
    session: ReadDep,
    after: AfterParam = None,
    limit: LimitParam = 20,
) -> dict[str, Any]:
    """Newest first. Public and released values only."""
    job = repository.visible_job(session, subject, job_id)
    rows, has_more = repository.page_of_events(session, job.id, after=after, limit=limit)
    return envelope([views.event_answer(row) for row in rows], has_more=has_more)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    job_id: str,
    subject: JobReader,
    session: ReadDep,
    after: AfterParam = None,
    limit: LimitParam = 20,
) -> dict[str, Any]:
    """Newest first."""
    job = repository.visible_job(session, subject, job_id)
    rows, has_more = repository.page_of_checkpoints(session, job.id, after=after, limit=limit)
    return envelope(views.checkpoint_answers(session, job, rows), has_more=has_more)


@router.get("/{job_id}/metrics")
def get_metrics(
    job_id: str,
    subject: JobReader,
    session: ReadDep,
    max_points: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> dict[str, Any]:
    """Declared series, each with its release class."""
    job = repository.visible_job(session, subject, job_id)
    return views.metrics_answer(repository.metrics_of(session, job.id), max_points=max_points)


@router.get("/{job_id}/attempts")
def list_attempts(job_id: str, subject: JobReader, session: ReadDep) -> dict[str, Any]:
    """Oldest first, each with its windows: done, open, or abandoned and still charged."""
    return views.attempts_answer(session, repository.visible_job(session, subject, job_id))


@router.get("/{job_id}/audit")
def get_audit(job_id: str, subject: JobReader, session: ReadDep) -> Response:
    """The newest attempt's audit report, as the bytes its digest is of. Holds no private value."""
    job = repository.visible_job(session, subject, job_id)
    found = audits.newest(session, job.id)
    if found is None:
        raise JobNotFound
    return Response(found.report, media_type="application/json")


@router.get("/{job_id}/artifacts")
def list_artifacts(job_id: str, subject: JobReader, session: ReadDep) -> dict[str, Any]:
    """Names and digests; the files themselves wait for a release."""
    job = repository.visible_job(session, subject, job_id)
    return artifact_files.artifact_list(session, job.id)


@router.get(
    "/{job_id}/artifacts/{name}",
    response_class=Response,
    responses=openapi.files("application/octet-stream", "application/json"),
)
def download_artifact(
    job_id: str, name: str, subject: ArtifactReader, session: ReadDep, keys: KeyringDep
) -> Response:
    """One file of a published release."""
    job = repository.visible_job(session, subject, job_id)
    return artifact_files.artifact_file(session, keys, job.id, name)
