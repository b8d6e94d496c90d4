"""All reads of jobs; one method says which jobs a caller may see."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, and_, false, or_, select, tuple_
from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.datasets.models import Dataset, DatasetVersion, File
from service.errors import CursorInvalid, DatasetRequired, FileInvalid, NotFound
from service.jobs.errors import JobNotFound
from service.jobs.models import Job, JobCheckpoint, JobEvent, JobMetric
from service.ledger.models import ReservationBlock
from service.populations.models import Population


def visible_jobs(subject: Subject) -> Select[Job]:
    """A submitter's own jobs; all of the hospital for stewards and admins (service.md 16)."""
    statement = select(Job).where(Job.tenant_id == subject.tenant_id)
    if subject.role == "submitter":
        return statement.where(Job.created_by == subject.principal_id)
    return statement if subject.role in ("steward", "admin") else statement.where(false())


def visible_job(session: Session, subject: Subject, job_id: str) -> Job:
    """One job.

    Raises:
        JobNotFound: absent, or not for this caller.
    """
    job = session.scalar(visible_jobs(subject).where(Job.id == job_id))
    if job is None:
        raise JobNotFound()
    return job


def page_of_jobs(
    session: Session,
    subject: Subject,
    *,
    after: str | None,
    limit: int,
    metadata: Mapping[str, str],
) -> tuple[Sequence[Job], bool]:
    """Newest first, and whether more follow.

    Raises:
        CursorInvalid: `after` names no job of this list.
    """
    statement = visible_jobs(subject)
    for key, value in metadata.items():
        statement = statement.where(Job.labels[key].as_string() == value)
    if after is not None:
        last = session.scalar(visible_jobs(subject).where(Job.id == after))
        if last is None:
            raise CursorInvalid()
        statement = statement.where(tuple_(Job.created_at, Job.id) < (last.created_at, last.id))
    statement = statement.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit + 1)
    rows = session.scalars(statement).all()
    return rows[:limit], len(rows) > limit


def page_of_events(
    session: Session, job_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[JobEvent], bool]:
    """Newest first, and whether more follow.

    Raises:
        CursorInvalid: `after` names no event of this job.
    """
    statement = select(JobEvent).where(JobEvent.job_id == job_id)
    if after is not None:
        last = session.scalar(statement.where(JobEvent.id == after))
        if last is None:
            raise CursorInvalid()
        statement = statement.where(JobEvent.seq < last.seq)
    rows = session.scalars(statement.order_by(JobEvent.seq.desc()).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def page_of_checkpoints(
    session: Session, job_id: str, *, after: str | None, limit: int
) -> tuple[Sequence[JobCheckpoint], bool]:
    """Newest first, and whether more follow.

    Raises:
        CursorInvalid: `after` names no checkpoint of this job.
    """
    statement = select(JobCheckpoint).where(JobCheckpoint.job_id == job_id)
    if after is not None:
        last = session.scalar(statement.where(JobCheckpoint.id == after))
        if last is None:
            raise CursorInvalid()
        statement = statement.where(JobCheckpoint.seq < last.seq)
    rows = session.scalars(statement.order_by(JobCheckpoint.seq.desc()).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def metrics_of(
    session: Session, job_id: str, *, names: Sequence[str] | None = None
) -> Sequence[JobMetric]:
    """Points of a job's series, by name, group and step."""
    statement = select(JobMetric).where(JobMetric.job_id == job_id)
    if names is not None:
        statement = statement.where(JobMetric.name.in_(names))
    order = (JobMetric.name, JobMetric.group_id, JobMetric.step)
    return session.scalars(statement.order_by(*order)).all()


def whole_job_points(
    session: Session, job_ids: Sequence[str], name: str
) -> dict[str, list[tuple[int, float]]]:
    """One series of several jobs in one query: (step, value) by job, in order of steps."""
    rows = session.execute(
        select(JobMetric.job_id, JobMetric.step, JobMetric.value)
        .where(JobMetric.job_id.in_(job_ids), JobMetric.name == name, JobMetric.group_id == "")
        .order_by(JobMetric.job_id, JobMetric.step)
    )
    found: dict[str, list[tuple[int, float]]] = {}
    for job_id, step, value in rows:
        found.setdefault(job_id, []).append((step, float(value)))
    return found


def amounts_of(session: Session, job_ids: Sequence[str]) -> dict[str, dict[str, ReservationBlock]]:
    """What each job reserved and spent, by job and block, in one query."""
    rows = session.scalars(
        select(ReservationBlock)
        .where(ReservationBlock.job_id.in_(job_ids))
        .order_by(ReservationBlock.job_id, ReservationBlock.block)
    )
    found: dict[str, dict[str, ReservationBlock]] = {}
    for row in rows:
        found.setdefault(row.job_id, {})[row.block] = row
    return found


def training_data(
    session: Session, subject: Subject, file_id: str
) -> tuple[DatasetVersion, Dataset, Population]:
    """The dataset version that a file became, with the population that pays for it.

    Raises:
        NotFound: no such file for this caller.
        FileInvalid: it did not pass its validation.
        DatasetRequired: it belongs to no dataset.
    """
    statement = (
        select(File.status, DatasetVersion, Dataset, Population)
        .outerjoin(
            DatasetVersion,
            and_(DatasetVersion.file_id == File.id, DatasetVersion.state == "ready"),
        )
        .outerjoin(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .outerjoin(Population, Population.id == Dataset.population_id)
        .where(File.id == file_id, File.tenant_id == subject.tenant_id, File.deleted_at.is_(None))
    )
    if subject.role != "steward":
        statement = statement.where(File.uploaded_by == subject.principal_id)
    row = session.execute(statement).first()
    if row is None:
        raise NotFound()
    status, version, dataset, population = row
    if status != "processed":
        raise FileInvalid("training_file")
    if version is None:
        raise DatasetRequired()
    return version, dataset, population


def minutes_per_token(session: Session, tenant_id: str, model: str) -> list[float]:
    """Pace of the tenant's finished runs of a model that were not interrupted; newest first.

    By the tokens a run was planned to take: expected patients of its steps, whole rows.
    """
    rows = session.execute(
        select(Job.started_at, Job.finished_at, Job.step, Job.plan)
        .where(
            and_(Job.tenant_id == tenant_id, Job.model == model, Job.step > 0),
            and_(Job.attempt == 1, or_(Job.state == "succeeded", Job.state == "budget_stopped")),
        )
        .order_by(Job.finished_at.desc())
        .limit(5)
    )
    return [_pace(row) for row in rows]


def _pace(row: Any) -> float:
    plan = json.loads(row.plan)
    tokens = row.step * plan["batch_size_expected"] * plan["tokens_per_row"]
    return float(row.finished_at - row.started_at) / 60_000_000 / float(tokens)
