"""A log written under an old schema keeps its bytes and root through every migration (T14)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, insert, select

from service import migrate
from service.database import Database
from service.ledger import checkpoints, fsck, merkle
from service.ledger.models import Entry
from tests.service.ledger.world import postgres_url

VECTORS = Path(__file__).resolve().parents[2] / "vectors"
GOLDEN = sorted(VECTORS.glob("golden_log_*.json"))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'golden.db'}"
    else:
        with postgres_url() as fresh:
            yield fresh


def load(database: Database, tables: dict[str, list[dict[str, Any]]]) -> None:
    """Writes the rows with the tables as that revision had them, not as today's models."""
    with database.engine.connect() as connection:
        connection = connection.execution_options(rldp_begin="immediate")
        with connection.begin():
            known = MetaData()
            known.reflect(connection)
            for table in known.sorted_tables:
                rows = tables.get(table.name, [])
                for row in rows:
                    connection.execute(insert(table).values({k: plain(v) for k, v in row.items()}))


def plain(value: Any) -> Any:
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value


def test_there_is_a_golden_log_of_the_first_schema() -> None:
    assert next(path.name for path in GOLDEN) == "golden_log_0001.json"


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_root_and_bytes_stay_the_same_through_every_migration(path: Path, url: str) -> None:
    golden = json.loads(path.read_text())
    migrate.upgrade(url, path.stem.rpartition("_")[2])
    database = Database(url)
    load(database, golden["tables"])
    migrate.upgrade(url)
    with database.reading() as session:
        rows = session.scalars(
            select(Entry).where(Entry.log_id == golden["log"]).order_by(Entry.idx)
        ).all()
        assert [row.body for row in rows] == [row["body"] for row in golden["tables"]["entry"]]
        assert merkle.root_of_leaves(row.leaf for row in rows) == golden["root"]
        head = checkpoints.head_of(session, golden["log"])
        assert (head.size, head.root) == (golden["size"], golden["root"])
        assert fsck.check_all(session) == []
    database.dispose()
