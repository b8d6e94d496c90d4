"""One job as it happens, as server-sent events: state, progress and released figures.

Each message holds what the route of the same thing answers, so that nobody learns here what a
question would not have told. Every look asks anew whose key it is: one that was revoked, or
whose role changed, hears nothing more.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service import hub as hubs
from service import openapi
from service.auth.bearer import owner_of_bearer
from service.auth.subject import Subject
from service.database import Database
from service.dependencies import DatabaseDep
from service.errors import RateLimited
from service.hub import Hub, Topic, hub_of
from service.jobs import repository, views
from service.jobs.endpoints import JobReader
from service.jobs.errors import JobNotFound
from service.jobs.lifecycle import TERMINAL, State
from service.jobs.models import Job, JobMetric

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["jobs"])

RETRY_MS = 3000
POINTS_MAX = 1000
NO_ROOM_SECONDS = 60
END = ".end"  # in the cursor of a caller who was told of the end
_CURSOR = re.compile(rf"(\d{{1,9}})\.(-1|\d{{1,9}})(?:{re.escape(END)})?")


@dataclass
class Follower:
    """What one connection has been told of its job.

    The cursor is the attempt and step of the newest figures. A window that was lost is run
    again by a later attempt, whose figures replace it; those of the cursor's own step may come
    again after a reconnection, since one step's figures are not all written at once.
    """

    epoch: int = 0
    step: int = -1
    told: set[tuple[str, str, int, int]] = field(default_factory=set)
    state: tuple[Any, ...] | None = None
    progress: dict[str, Any] | None = None

    @classmethod
    def after(cls, last_event_id: str | None) -> Follower:
        """From where the caller left off; from the start if it names nothing of ours."""
        found = _CURSOR.fullmatch(last_event_id or "")
        return cls(epoch=int(found[1]), step=int(found[2])) if found else cls()

    def news(self, session: Session, job: Job) -> Iterator[str]:
        """Messages of what changed: figures first, so that an end comes last."""
        yield from self._figures(session, job.id)
        answer = views.job_answer(session, job)
        if answer["progress"] != self.progress:
            self.progress = answer["progress"]
            yield message("progress", answer["progress"])
        state = (job.state, job.reason_code, job.attempt)
        if state != self.state:
            self.state = state
            is_over = State(job.state) in TERMINAL
            yield message("state", answer, f"{self.epoch}.{self.step}{END}" if is_over else None)

    def _figures(self, session: Session, job_id: str) -> Iterator[str]:
        newer = or_(
            JobMetric.epoch > self.epoch,
            and_(JobMetric.epoch == self.epoch, JobMetric.step >= self.step),
        )
        rows = session.scalars(
            select(JobMetric)
            .where(JobMetric.job_id == job_id, newer)
            .order_by(JobMetric.name, JobMetric.group_id, JobMetric.step)
        ).all()
        points = [row for row in rows if _name_of(row) not in self.told]
        if not points:
            return
        self.epoch, self.step = max((row.epoch, row.step) for row in points)
        self.told = {
            name for name in self.told | set(map(_name_of, points)) if name[2:] == self.cursor
        }
        series = views.metrics_answer(points, max_points=POINTS_MAX)["series"]
        for one in series[:-1]:
            yield message("metric", one)
        # The cursor moves with the last one: who is cut off before it hears them all again.
        yield message("metric", series[-1], f"{self.epoch}.{self.step}")

    @property
    def cursor(self) -> tuple[int, int]:
        return self.epoch, self.step


def _name_of(row: JobMetric) -> tuple[str, str, int, int]:
    return row.name, row.group_id, row.epoch, row.step


def message(kind: str, data: dict[str, Any], cursor: str | None = None) -> str:
    """One server-sent event; its data is one line of JSON."""
    head = "" if cursor is None else f"id: {cursor}\n"
    return f"{head}event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


ANSWERS: dict[int | str, dict[str, Any]] = {
    **openapi.events(
        state="FineTuningJob", progress="FineTuningJobProgress", metric="FineTuningJobSeries"
    ),
    204: {"description": "The job has ended and the caller has been told everything."},
}


@router.get("/{job_id}/stream", response_class=Response, responses=ANSWERS)
async def stream_job(
    job_id: str,
    request: Request,
    subject: JobReader,
    database: DatabaseDep,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> Response:
    """`state`, `progress` and `metric` events until the job has ended, for ten minutes at most.

    Each holds what the job, its `progress` and one of its series under `/metrics` show. Reconnect
    with `Last-Event-ID`; 204 says that the job has ended and everything was told.
    """
    follower = Follower.after(last_event_id)
    topic, is_over = await run_in_threadpool(_topic, database, subject, job_id)
    if is_over and last_event_id is not None and last_event_id.endswith(END):
        return Response(status_code=204)
    hub = hub_of(request.app)
    if not hub.has_room(subject.principal_id):
        raise RateLimited(f"{hubs.STREAMS_MAX} streams at once", NO_ROOM_SECONDS)

    def look() -> tuple[list[str], bool]:
        return _look(request, database, subject, job_id, follower)

    return StreamingResponse(
        _messages(hub, topic, subject.principal_id, look),
        media_type=openapi.EVENT_STREAM,
        headers={"X-Accel-Buffering": "no", "Cache-Control": "no-store"},
    )


async def _messages(
    hub: Hub, topic: Topic, principal_id: str, look: Callable[[], tuple[list[str], bool]]
) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MS}\n\n"
    async for is_change in hub.listen(topic, principal_id):
        if not is_change:
            yield ": still here\n\n"
            continue
        messages, is_over = await run_in_threadpool(look)
        for each in messages:
            yield each
        if is_over:
            return


def _topic(database: Database, subject: Subject, job_id: str) -> tuple[Topic, bool]:
    with database.reading() as session:
        job = repository.visible_job(session, subject, job_id)
        return Topic(job.tenant_id, job.id), State(job.state) in TERMINAL


def _look(
    request: Request, database: Database, subject: Subject, job_id: str, follower: Follower
) -> tuple[list[str], bool]:
    """What changed, and whether there is nothing more to come for this caller."""
    if not _is_still(request, subject):
        return [], True
    with database.reading() as session:
        try:
            job = repository.visible_job(session, subject, job_id)
        except JobNotFound:
            return [], True
        return list(follower.news(session, job)), State(job.state) in TERMINAL


def _is_still(request: Request, subject: Subject) -> bool:
    """Whether the credential that opened the stream would open it now."""
    credential = request.headers.get("authorization", "").partition(" ")[2].strip()
    owner = owner_of_bearer(request.app.state, credential)
    return owner is not None and (owner.principal_id, owner.tenant_id, owner.role) == (
        subject.principal_id,
        subject.tenant_id,
        subject.role,
    )
