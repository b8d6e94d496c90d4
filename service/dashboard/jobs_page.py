"""The list of jobs a reader may see, page by page, newest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.dashboard.overview import populations_of
from service.jobs import repository, views
from service.jobs.models import Job

PAGE_JOBS = 30


@dataclass(frozen=True, kw_only=True)
class JobLine:
    """One job; `answer` is what the API says of it."""

    job: Job
    population: str
    answer: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class JobsPage:
    """`following` is the id to go on after, None on the last page."""

    lines: tuple[JobLine, ...]
    after: str | None
    following: str | None


def jobs_page(session: Session, subject: Subject, after: str | None) -> JobsPage:
    """One page of the list.

    Raises:
        CursorInvalid: `after` names no job of it.
    """
    jobs, has_more = repository.page_of_jobs(
        session, subject, after=after or None, limit=PAGE_JOBS, metadata={}
    )
    codes = {one.id: one.code for one in populations_of(session, subject)}
    answers = views.jobs_answer(session, jobs)
    return JobsPage(
        lines=tuple(
            JobLine(job=job, population=codes.get(job.population_id, ""), answer=answer)
            for job, answer in zip(jobs, answers, strict=True)
        ),
        after=after or None,
        following=jobs[-1].id if has_more else None,
    )
