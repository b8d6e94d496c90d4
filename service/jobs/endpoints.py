"""Routes of jobs: OpenAI's shapes, so that its unmodified client is a client of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import FileResponse

from service.artifacts import endpoints as artifact_files
from service.auth.subject import Subject, require_role
from service.dependencies import DatabaseDep, ReadDep, SessionDep, SettingsDep
from service.exact_json import ExactRoute
from service.jobs import repository, service, views
from service.jobs.schemas import JobRequest
from service.listing import envelope

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["jobs"], route_class=ExactRoute)

Submitter = Annotated[Subject, Depends(require_role("submitter"))]
Estimator = Annotated[Subject, Depends(require_role("submitter", "steward"))]
JobReader = Annotated[Subject, Depends(require_role("submitter", "steward", "admin"))]
ArtifactReader = Annotated[Subject, Depends(require_role("submitter", "steward"))]

AfterParam = Annotated[str | None, Query(max_length=64)]
LimitParam = Annotated[int, Query(ge=1, le=100)]
KeyHeader = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]

_METADATA = re.compile(r"metadata\[([\w.:/-]{1,64})\]")


@router.post("")
def create_job(
    body: JobRequest,
    subject: Submitter,
    database: DatabaseDep,
    settings: SettingsDep,
    response: Response,
    idempotency_key: KeyHeader = None,
) -> dict[str, Any]:
    """Reserves the worst case of the job's privacy loss and queues it."""
    created = service.create_job(database, settings, subject, body, idempotency_key)
    if created.is_replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return created.answer


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
def cancel_job(job_id: str, subject: JobReader, session: SessionDep) -> dict[str, Any]:
    """Asks for the end; windows never started go back to the population."""
    return service.cancel_job(session, subject, job_id)


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


@router.get("/{job_id}/artifacts")
def list_artifacts(job_id: str, subject: JobReader, session: ReadDep) -> dict[str, Any]:
    """Names and digests; the files themselves wait for a release."""
    job = repository.visible_job(session, subject, job_id)
    return artifact_files.artifact_list(session, job.id)


@router.get("/{job_id}/artifacts/{name}", response_class=FileResponse)
def download_artifact(
    job_id: str, name: str, subject: ArtifactReader, session: ReadDep
) -> Response:
    """One file of a published release."""
    job = repository.visible_job(session, subject, job_id)
    return artifact_files.artifact_file(session, job.id, name)
