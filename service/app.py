"""Makes the HTTP application: every router, every handler, every layer, in one place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.telemetry import TelemetryConfig

from service.auth.endpoints import router as api_keys
from service.auth.subject import current_subject
from service.bodies import BodyGuard
from service.dashboard.approval_endpoints import router as approval_pages
from service.dashboard.endpoints import router as dashboard
from service.dashboard.ledger_endpoints import router as ledger_pages
from service.database import Database
from service.datasets import storage
from service.datasets.endpoints import router as datasets
from service.dependencies import SubjectDep
from service.edge import Edge
from service.errors import STATUS_OF_CODE
from service.health import router as health
from service.jobs.endpoints import router as jobs
from service.ledger import guard
from service.ledger.audit_endpoints import router as audits
from service.ledger.disclosure_endpoints import router as disclosures
from service.ledger.endpoints import router as ledger
from service.ledger.recovery_endpoints import router as recoveries
from service.models_endpoints import router as models
from service.populations.endpoints import router as populations
from service.problems import MEDIA_TYPE, install_handlers
from service.settings import Settings

TITLE = "rldp"
# Never let the framework's own tracing see requests: its logs quote faults and exceptions.
TELEMETRY_OFF: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
# Stands in the API's description in place of the framework's own error shape.
PROBLEM: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "A problem (RFC 9457) that also holds the `error` of the openai client.",
        "content": {
            MEDIA_TYPE: {
                "schema": {
                    "type": "object",
                    "required": ["type", "title", "status", "detail", "request_id", "error"],
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                        "instance": {"type": "string"},
                        "request_id": {"type": "string"},
                        "errors": {"type": "array", "items": {"type": "object"}},
                        "balance": {"type": "object"},
                        "error": {
                            "type": "object",
                            "properties": {
                                "message": {"type": "string"},
                                "type": {"type": "string"},
                                "param": {"type": ["string", "null"]},
                                "code": {"type": "string", "enum": sorted(STATUS_OF_CODE)},
                            },
                        },
                    },
                }
            }
        },
    }
}
# Every one of these asks for a key first, also on a route that forgets to.
AUTHENTICATED: tuple[APIRouter, ...] = (
    models,
    datasets,
    populations,
    ledger,
    audits,
    disclosures,
    recoveries,
    jobs,
    api_keys,
)
# These look after themselves: health is for anyone, the dashboard has its own sign-in.
OPEN: tuple[APIRouter, ...] = (health, dashboard, ledger_pages, approval_pages)


def create_app(settings: Settings, database: Database | None = None) -> FastAPI:
    """The application over one database. Makes the files folder; touches nothing else.

    A database given from outside stays open when the application ends.
    """
    app = FastAPI(
        title=TITLE,
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
    storage.prepare(settings.files_dir)
    for router in AUTHENTICATED:
        app.include_router(router, dependencies=[Depends(current_subject)], responses=PROBLEM)
    for router in OPEN:
        app.include_router(router)
    _add_openapi(app)
    install_handlers(app)
    app.add_middleware(BodyGuard, upload_bytes_max=settings.upload_bytes_max)
    app.add_middleware(Edge)  # added last, hence outermost
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    quorum = app.state.settings.witness_quorum
    if quorum > 0:  # from the first request on, a reservation needs a watched log
        with app.state.database.transaction() as session:
            guard.configure(session, quorum=quorum)
    yield
    if app.state.owns_database:
        app.state.database.dispose()


def _add_openapi(app: FastAPI) -> None:
    @app.get("/openapi.json", include_in_schema=False)
    def openapi(_subject: SubjectDep) -> dict[str, Any]:
        """The description of the API; there are no interactive pages."""
        return app.openapi()
