"""Databases for job tests: each behaviour on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.database import Database
from tests.service.ledger import world as lw


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    context = lw.sqlite_database(tmp_path) if request.param == "sqlite" else lw.postgres_database()
    with context as database:
        yield database


@pytest.fixture
def world(db: Database) -> lw.World:
    return lw.open_world(db)
