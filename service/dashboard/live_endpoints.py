"""Routes of open pages: the one stream of a tab, and the parts that it asks for.

A part is shared by all who see it alike, so it holds no form and no token: those stand
outside of it, on the page. Many tabs ask at once, so each route of a part looks up session
and content in one thread with one connection: were they dependencies, requests that hold a
connection and wait for a thread could block those that hold a thread and wait for one.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from service.dashboard.endpoints import SignerDep
from service.dashboard.job_page import job_page
from service.dashboard.operations_page import operations_page
from service.dashboard.overview import overview
from service.dashboard.rendering import page
from service.dashboard.sessions import SessionSigner, SignedIn, signed_in
from service.database import Database
from service.dependencies import DatabaseDep, SettingsDep
from service.hub import Hub, Topic, hub_of
from service.jobs.errors import JobNotFound
from service.jobs.repository import visible_job
from service.logged_reads import LoggedRoute


class LiveRoute(LoggedRoute):
    """Reads of parts are entered, once an hour. The stream tells only that one has changed."""

    hourly = frozenset({"/live/overview", "/live/operations", "/live/jobs/{job_id}"})
    logged = hourly


router = APIRouter(include_in_schema=False, route_class=LiveRoute)

RETRY_MS = 3000
RETRY_SECONDS = "60"


@router.get("/live/stream")
async def stream(
    request: Request,
    signer: SignerDep,
    database: DatabaseDep,
    job: Annotated[str, Query(max_length=64)] = "",
    workers: bool = False,
) -> Response:
    """Says `changed` when the overview, or one job, is no longer what was shown.

    With `workers`, for admins, also when a worker came, went or fell silent, and each minute.
    """
    found = await run_in_threadpool(_listener, signer, request, database, job, workers)
    if found is None:
        return Response(status_code=401)
    person, topic = found
    if topic is None:
        return Response(status_code=404)
    hub, principal_id = hub_of(request.app), person.subject.principal_id
    if not hub.has_room(principal_id):  # the page then asks every two seconds instead
        return Response(status_code=429, headers={"Retry-After": RETRY_SECONDS})
    return StreamingResponse(
        _messages(hub, topic, principal_id),
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},
    )


async def _messages(hub: Hub, topic: Topic, principal_id: str) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MS}\n\n"
    async for is_change in hub.listen(topic, principal_id):
        yield "event: changed\ndata: {}\n\n" if is_change else ": still here\n\n"


def _listener(
    signer: SessionSigner, request: Request, database: Database, job_id: str, workers: bool
) -> tuple[SignedIn, Topic | None] | None:
    """Who listens to what. Looked up apart: a stream must hold no transaction open."""
    with database.reading() as session:
        person = signed_in(signer, request, session)
        if person is None:
            return None
        if workers and person.subject.role != "admin":
            return person, None
        if not job_id:
            return person, Topic(person.subject.tenant_id, with_workers=workers)
        try:
            found = visible_job(session, person.subject, job_id)
        except JobNotFound:
            return person, None
        return person, Topic(found.tenant_id, found.id)


@router.get("/live/overview")
def show_overview_part(request: Request, signer: SignerDep, database: DatabaseDep) -> Response:
    with database.reading() as session:
        person = signed_in(signer, request, session)
        if person is None:
            return Response(status_code=401)  # the script then loads the whole page anew
        subject = request.state.subject = person.subject
        own = subject.principal_id if subject.role == "submitter" else ""

        def draw() -> bytes:
            shown = overview(session, subject)
            return bytes(page("overview_part.html", shown=shown, role=subject.role).body)

        part = hub_of(request.app).part(Topic(subject.tenant_id), f"{subject.role}{own}", draw)
    return _unless_known(request, part)


@router.get("/live/operations")
def show_operations_part(
    request: Request, signer: SignerDep, database: DatabaseDep, settings: SettingsDep
) -> Response:
    with database.reading() as session:
        person = signed_in(signer, request, session)
        if person is None:
            return Response(status_code=401)
        subject = request.state.subject = person.subject
        if subject.role != "admin":
            return page("not_found.html", status=404, person=person)

        def draw() -> bytes:
            shown = operations_page(session, subject, settings.data_dir)
            return bytes(page("operations_part.html", shown=shown).body)

        topic = Topic(subject.tenant_id, with_workers=True)
        part = hub_of(request.app).part(topic, subject.role, draw)
    return _unless_known(request, part)


@router.get("/live/jobs/{job_id}")
def show_job_part(
    request: Request, job_id: str, signer: SignerDep, database: DatabaseDep
) -> Response:
    with database.reading() as session:
        person = signed_in(signer, request, session)
        if person is None:
            return Response(status_code=401)
        subject = request.state.subject = person.subject
        try:
            job = visible_job(session, subject, job_id)
        except JobNotFound:
            return page("not_found.html", status=404, person=person)

        def draw() -> bytes:
            return bytes(page("job_part.html", shown=job_page(session, subject, job.id)).body)

        part = hub_of(request.app).part(Topic(job.tenant_id, job.id), subject.role, draw)
    return _unless_known(request, part)


def _unless_known(request: Request, part: bytes) -> Response:
    """The part, or 304 when it is what the browser already shows."""
    etag = f'"{hashlib.sha256(part).hexdigest()[:32]}"'
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"ETag": etag})
    return Response(part, media_type="text/html", headers={"ETag": etag})
