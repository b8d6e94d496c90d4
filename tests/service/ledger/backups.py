"""A ledger whose database was put back to an old backup, with witnesses that know better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Table, insert, select

from service.database import Database
from service.ids import new_id
from service.ledger import service as ledger
from service.ledger.keys import LedgerKeys, load_keys
from service.ledger.publisher import Publisher
from service.models import metadata
from service.settings import Settings
from tests.service.ledger import world as w
from tests.service.ledger.street import Street, open_street


@dataclass
class Scene:
    """One ledger, its witnesses, its publisher, and how another process makes one."""

    world: w.World
    street: Street
    publisher: Publisher
    make: Callable[[], Publisher]


def reserve(world: w.World) -> str:
    job = new_id("ftjob-")
    with world.db.transaction() as session:
        w.reserve(session, world, job=job)
    return job


def copy_rows(db: Database) -> dict[Table, list[dict[str, Any]]]:
    """Everything in the database, as a backup holds it."""
    with db.reading() as session:
        return {
            table: [dict(row) for row in session.execute(select(table)).mappings()]
            for table in metadata.sorted_tables
        }


def put_back(db: Database, kept: dict[Table, list[dict[str, Any]]]) -> None:
    """Replaces the database by what a backup held."""
    metadata.drop_all(db.engine)
    metadata.create_all(db.engine)
    with db.engine.begin() as connection:
        for table, rows in kept.items():
            if rows:
                connection.execute(insert(table), rows)


def restore_old_backup(
    tmp_path: Path,
    db: Database,
    before: Callable[[w.World, Publisher], object] = lambda world, publisher: None,
    lost: Callable[[w.World], object] = lambda world: None,
) -> Scene:
    """Publishes, copies all rows, charges a window more, publishes, puts the copy back.

    `before` runs, and is published, before the copy is made; `lost` between copy and charge.
    """
    keys = load_keys(Settings(data_dir=tmp_path))
    street = open_street(tmp_path / "street", keys)

    def make() -> Publisher:
        return publisher_of(db, street, load_keys(Settings(data_dir=tmp_path)), tmp_path)

    world = w.open_world(db)
    make().turn()
    before(world, make())
    make().turn()
    kept = copy_rows(db)
    lost(world)
    job = reserve(world)
    with db.transaction() as session:
        w.start(session, job)
    with db.transaction() as session:
        ledger.charge_window(session, job_id=job, epoch=1, charge=w.window(0))
    make().turn()
    put_back(db, kept)
    return Scene(world, street, make(), make)


def publisher_of(db: Database, street: Street, keys: LedgerKeys, tmp: Path) -> Publisher:
    return Publisher(
        db=db,
        keys=keys,
        witnesses=street.clients(),
        quorum=1,
        folder=tmp / "memory",
        post=street.post,
    )
