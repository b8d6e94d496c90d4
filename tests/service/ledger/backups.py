"""A ledger whose database was put back to an old backup, with witnesses that know better."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from service.database import Database
from service.ids import new_id
from service.ledger import service as ledger
from service.ledger.keys import LedgerKeys, load_keys
from service.ledger.publisher import Publisher
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


def restore_old_backup(tmp_path: Path) -> Scene:
    """Publishes, copies the database, charges a window more, publishes, puts the copy back."""
    folder = tmp_path / "database"
    folder.mkdir()
    keys = load_keys(Settings(data_dir=tmp_path))
    street = open_street(tmp_path / "street", keys)
    with w.sqlite_database(folder) as db:
        world = w.open_world(db)
        publisher_of(db, street, keys, tmp_path).turn()
        with db.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(folder / "ledger.db", tmp_path / "backup.db")
        job = reserve(world)
        with db.transaction() as session:
            w.start(session, job)
        with db.transaction() as session:
            ledger.charge_window(session, job_id=job, epoch=1, charge=w.window(0))
        publisher_of(db, street, keys, tmp_path).turn()
    for path in folder.iterdir():
        path.unlink()
    shutil.copy(tmp_path / "backup.db", folder / "ledger.db")
    world.db = Database(f"sqlite:///{folder / 'ledger.db'}")

    def make() -> Publisher:
        return publisher_of(world.db, street, keys, tmp_path)

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
