"""Tells whether the process lives and whether it can take requests."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from service.database import Database
from service.dependencies import DatabaseDep
from service.errors import NotReady

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """The process answers; says nothing of the database."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(database: DatabaseDep) -> dict[str, Any]:
    """The database answers and its schema is the one of this release, or a later one.

    In a rolling upgrade the next release migrates first; the old one serves until replaced.
    """
    checks = {"database": _database_check(database), "schema": "unknown"}
    if checks["database"] == "ok":
        checks["schema"] = _schema_check(database)
    if not set(checks.values()) <= {"ok", "ahead"}:
        raise NotReady(checks)
    return {"status": "ready", "checks": checks}


def _database_check(database: Database) -> str:
    try:
        with database.reading() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return "unreachable"
    return "ok"


def _schema_check(database: Database) -> str:
    from service.migrate import schema_state  # Alembic is loaded by this check alone

    return schema_state(database)
