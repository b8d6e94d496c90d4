"""Brings a database to the schema of this release, and tells whether it is there.

Each migration is one transaction, on SQLite too. On PostgreSQL one migrator runs at a
time and waits at most five seconds for any lock, so that it never stalls a live service.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from service.database import Database

SCRIPTS = Path(__file__).resolve().parents[1] / "migrations"
MIGRATOR_LOCK = 0x726C6470  # "rldp", an arbitrary but fixed advisory lock


def upgrade(database_url: str, revision: str = "head") -> None:
    """Applies every missing migration up to a revision; does nothing on a database at head."""
    database = Database(database_url)
    try:
        with database.engine.connect() as connection:
            connection = connection.execution_options(rldp_begin="immediate")
            with connection.begin():
                _guard(connection, is_sqlite=database.is_sqlite)
                config = _config()
                config.attributes["connection"] = connection
                command.upgrade(config, revision)
    finally:
        database.dispose()


def is_at_head(database: Database) -> bool:
    """Whether the schema is exactly the one of this release; False on an empty database."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    try:
        with database.engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision() == head
    except SQLAlchemyError:
        return False


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _guard(connection: Connection, *, is_sqlite: bool) -> None:
    if not is_sqlite:
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATOR_LOCK})
