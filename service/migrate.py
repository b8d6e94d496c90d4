"""Brings a database to the schema of this release, and tells whether it is there.

Each migration is one transaction; on SQLite, and from an empty database, they are one together.
On PostgreSQL one migrator runs at a time; a second waits for it, a minute at most. It waits half
a second for a table, which is less than the server waits before it looks for deadlocks: of two
that wait for each other the upgrade is what gives way, never a charge. Then it goes back whole
and tries again.

A migration that needs more tables than it can hope to find idle at once names `pieces()`:
statements that each touch one table and do no harm when repeated. Each is a transaction of its
own, run before the migration, which then does only what is left.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from service.database import Database

SCRIPTS = Path(__file__).resolve().parents[1] / "migrations"
MIGRATOR_LOCK = 0x726C6470  # "rldp", an arbitrary but fixed advisory lock

TRIES = 100
GAVE_WAY = frozenset({"55P03", "40P01"})  # lock_not_available, deadlock_detected
logger = logging.getLogger(__name__)


def upgrade(database_url: str, revision: str = "head") -> None:
    """Applies every missing migration up to a revision; does nothing on a database at head.

    Raises:
        OperationalError: a table was busy at every one of 100 tries, or another migrator for a
            minute; what had been migrated by then stays, and the next call goes on from there.
    """
    database = Database(database_url)
    try:
        with _alone(database):
            for target, pieces in _stages(database, revision):
                for piece in pieces:
                    _patiently(database, partial(Connection.execute, statement=text(piece)))
                _patiently(database, partial(_migrate, revision=target))
    finally:
        database.dispose()


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    if database.is_sqlite:  # it has one writer at a time
        yield
        return
    with database.engine.connect() as held:
        held = held.execution_options(isolation_level="AUTOCOMMIT")
        held.execute(text("SET lock_timeout = '60s'"))
        held.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATOR_LOCK})
        try:
            yield
        finally:
            held.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATOR_LOCK})


def _stages(database: Database, revision: str) -> Iterator[tuple[str, list[str]]]:
    """The missing revisions in order, each with what is to be done before it."""
    with database.engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if database.is_sqlite or current is None:
        yield revision, []
        return
    scripts = ScriptDirectory.from_config(_config())
    for script in reversed(list(scripts.iterate_revisions(revision, current))):
        yield script.revision, script.module.pieces() if hasattr(script.module, "pieces") else []


def _patiently(database: Database, work: Callable[[Connection], object]) -> None:
    for left in reversed(range(TRIES)):
        try:
            with database.writer.connect() as connection, connection.begin():
                if not database.is_sqlite:
                    connection.execute(text("SET LOCAL lock_timeout = '500ms'"))
                work(connection)
            return
        except OperationalError as error:
            if not left or getattr(error.orig, "sqlstate", None) not in GAVE_WAY:
                raise
        logger.info("migration gave way to running work; it tries again")
        time.sleep(random.uniform(0.1, 1.0))


def _migrate(connection: Connection, revision: str) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def is_at_head(database: Database) -> bool:
    """Whether the schema is exactly the one of this release; False on an empty database."""
    return schema_state(database) == "ok"


def schema_state(database: Database) -> Literal["ok", "behind", "ahead"]:
    """Where the schema stands beside this release; `behind` too when it cannot be read.

    `ahead` is a revision this release does not know: the next release has migrated
    already. Migrations expand before they contract, so this release still works on it.
    """
    scripts = ScriptDirectory.from_config(_config())
    try:
        with database.engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
    except SQLAlchemyError:
        return "behind"
    if current == scripts.get_current_head():
        return "ok"
    known = {script.revision for script in scripts.walk_revisions()}
    return "behind" if current is None or current in known else "ahead"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
