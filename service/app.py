"""Makes the HTTP application: every router, every handler, every layer, in one place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.telemetry import TelemetryConfig

from service.answers import ANSWERS
from service.auth.endpoints import router as api_keys
from service.auth.subject import current_subject
from service.bodies import BodyGuard
from service.chat.endpoints import router as chat
from service.dashboard.alert_endpoints import router as alert_pages
from service.dashboard.approval_endpoints import router as approval_pages
from service.dashboard.chat_endpoints import router as chat_pages
from service.dashboard.endpoints import router as dashboard
from service.dashboard.evidence_endpoints import router as evidence_pages
from service.dashboard.file_endpoints import router as file_pages
from service.dashboard.file_endpoints import too_large_page
from service.dashboard.ledger_endpoints import router as ledger_pages
from service.dashboard.live_endpoints import router as live_pages
from service.dashboard.people_endpoints import open_router as accept_pages
from service.dashboard.people_endpoints import router as people_pages
from service.dashboard.provider_endpoints import router as provider_pages
from service.dashboard.steer_endpoints import router as steer_pages
from service.dashboard.submit_endpoints import router as submit_pages
from service.database import KEYS_AT_ONCE, REQUESTS_AT_ONCE, Database
from service.datasets import storage
from service.datasets.endpoints import router as datasets
from service.dependencies import SubjectDep
from service.edge import Edge
from service.gauges import http_seconds, registry_of
from service.health import router as health
from service.jobs.endpoints import router as jobs
from service.jobs.stream_endpoints import router as job_streams
from service.ledger import guard
from service.ledger.audit_endpoints import router as audits
from service.ledger.disclosure_endpoints import router as disclosures
from service.ledger.endpoints import router as ledger
from service.ledger.recovery_endpoints import router as recoveries
from service.membership.endpoints import open_router as invitations
from service.membership.endpoints import router as people
from service.models_endpoints import router as models
from service.openapi import install as install_openapi
from service.operations.endpoints import router as operations
from service.populations.endpoints import router as populations
from service.problems import install_handlers
from service.settings import Settings
from service.traces import open_traces
from service.webhooks.endpoints import router as webhooks

TITLE = "rldp"
API_VERSION = "1"
# Never let the framework's own tracing see requests: its logs quote faults and exceptions.
TELEMETRY_OFF: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
# Every one of these asks for a key first, also on a route that forgets to.
AUTHENTICATED: tuple[APIRouter, ...] = (
    jobs,  # first, since routers are tried in this order and these are asked for most
    job_streams,
    models,
    datasets,
    populations,
    ledger,
    audits,
    disclosures,
    recoveries,
    api_keys,
    people,
    webhooks,
    operations,
    chat,
)
# These look after themselves: health is for anyone, an invitation's token is its credential,
# the dashboard has its own sign-in.
OPEN: tuple[APIRouter, ...] = (
    health,
    invitations,
    submit_pages,  # before the pages of one job: /jobs/{job_id}
    file_pages,
    live_pages,
    dashboard,
    provider_pages,
    ledger_pages,
    evidence_pages,
    approval_pages,
    chat_pages,  # before the buttons: /jobs/{job_id}/{verb}
    steer_pages,
    alert_pages,
    people_pages,
    accept_pages,
)


def create_app(settings: Settings, database: Database | None = None) -> FastAPI:
    """The application over one database. Makes the files folder; touches nothing else.

    A database given from outside stays open when the application ends.
    """
    app = FastAPI(
        title=TITLE,
        version=API_VERSION,
        generate_unique_id_function=lambda route: route.name,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        telemetry=TELEMETRY_OFF,
    )
    app.state.settings = settings
    app.state.owns_database = database is None
    app.state.database = database or Database(settings.resolved_database_url)
    app.state.turns = asyncio.Semaphore(REQUESTS_AT_ONCE)
    app.state.looks = asyncio.Semaphore(KEYS_AT_ONCE)
    storage.prepare(settings.files_dir)
    for router in AUTHENTICATED:
        app.include_router(router, dependencies=[Depends(current_subject)])
    for router in OPEN:
        app.include_router(router)
    _add_openapi(app)
    install_handlers(app)
    app.add_middleware(
        BodyGuard, upload_bytes_max=settings.upload_bytes_max, too_large_page=too_large_page
    )
    app.state.metrics = registry_of(app.state.database)
    app.state.traces = open_traces(settings, "api")
    seconds = http_seconds(app.state.metrics)
    app.add_middleware(Edge, seconds=seconds, traces=app.state.traces)  # last, hence outermost
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    quorum = app.state.settings.witness_quorum
    if quorum > 0:  # from the first request on, a reservation needs a watched log
        with app.state.database.transaction() as session:
            guard.configure(session, quorum=quorum)
    yield
    if getattr(app.state, "speaker", None) is not None:
        app.state.speaker.close()
    await asyncio.to_thread(app.state.traces.close)
    if app.state.owns_database:
        app.state.database.dispose()


def _add_openapi(app: FastAPI) -> None:
    install_openapi(app, ANSWERS)

    @app.get("/openapi.json", include_in_schema=False)
    def openapi(_subject: SubjectDep) -> dict[str, Any]:
        """The description of the API; there are no interactive pages."""
        return app.openapi()
