"""Databases for ledger tests: each behaviour on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.database import Database
from tests.service.ledger import world as w


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    context = w.sqlite_database(tmp_path) if request.param == "sqlite" else w.postgres_database()
    with context as database:
        yield database


@pytest.fixture
def world(db: Database) -> w.World:
    return w.open_world(db)


@pytest.fixture
def split_world(db: Database) -> w.World:
    return w.open_world(db, validation_fraction="0.1")
