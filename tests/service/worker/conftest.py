"""A hospital on SQLite with settings that make supervision quick."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import Settings
from tests.service.ledger import world as lw

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SECRET_OF_THE_SHELL", "x")
    return Settings(
        data_dir=tmp_path,
        database_url=f"sqlite:///{tmp_path / 'ledger.db'}",
        lease_seconds=20,
        cancel_grace_seconds=1,
        leave_seconds=2,
        poll_seconds=0.2,
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[lw.World]:
    with lw.sqlite_database(tmp_path) as db:
        yield lw.open_world(db)
