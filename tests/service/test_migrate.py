"""Migrations give exactly the tables of the models, on both databases, and only once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import DatabaseError

from service import migrate
from service.database import Database
from service.models import metadata
from tests.service.ledger.world import postgres_url

POSTGRES_FACTS = (
    "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = current_schema()::regnamespace ORDER BY 1, 2",
    "SELECT tablename, indexname, replace(indexdef, current_schema() || '.', '') FROM pg_indexes"
    " WHERE schemaname = current_schema() ORDER BY 1, 2",
    "SELECT table_name, column_name, data_type, character_maximum_length, is_nullable,"
    " column_default FROM information_schema.columns WHERE table_schema = current_schema()"
    " ORDER BY 1, 2",
    "SELECT tgrelid::regclass::text, tgname, replace(pg_get_triggerdef(oid), current_schema() ||"
    " '.', '') FROM pg_trigger WHERE NOT tgisinternal AND tgrelid IN (SELECT oid FROM pg_class"
    " WHERE relnamespace = current_schema()::regnamespace) ORDER BY 1, 2",
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'migrated.db'}"
    else:
        with postgres_url() as fresh:
            yield fresh


def facts(connection: Connection) -> list[list[tuple[object, ...]]]:
    """Every table, column, constraint, index and trigger, as the database tells them."""
    if connection.dialect.name == "sqlite":
        rows = connection.execute(text("SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2"))
        kept = [row for row in rows if not str(row.name).startswith(("sqlite_", "alembic_"))]
        return [[(row.type, row.name, _plain(row.sql)) for row in kept]]
    found = [[tuple(row) for row in connection.execute(text(sql))] for sql in POSTGRES_FACTS]
    return [[row for row in rows if "alembic_version" not in str(row)] for rows in found]


def _plain(sql: str | None) -> list[str]:
    """The lines of a statement; the order of a table's constraints means nothing."""
    return sorted(line.strip(" \t,") for line in (sql or "").splitlines())


class TestUpgrade:
    def test_migrated_database_equals_the_models(self, url: str) -> None:
        migrate.upgrade(url)
        migrated = Database(url)
        with migrated.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []
            found = facts(connection)
            connection.rollback()
        migrated.dispose()
        assert sum(map(len, found)) > len(metadata.tables)
        assert found == _created_from_models(url)

    def test_a_second_upgrade_changes_nothing(self, url: str) -> None:
        migrate.upgrade(url)
        migrate.upgrade(url)
        database = Database(url)
        assert migrate.is_at_head(database)
        database.dispose()

    def test_an_empty_database_is_not_at_head(self, url: str) -> None:
        database = Database(url)
        assert not migrate.is_at_head(database)
        database.dispose()

    def test_an_unreachable_database_is_not_at_head(self) -> None:
        database = Database("sqlite:////nonexistent-directory/ledger.db")
        assert not migrate.is_at_head(database)
        database.dispose()

    def test_triggers_of_the_migration_keep_the_ledger_append_only(self, url: str) -> None:
        migrate.upgrade(url)
        database = Database(url)
        with database.transaction() as session:
            session.execute(text("INSERT INTO window_settings (digest, body) VALUES ('d', 'b')"))
        with pytest.raises(DatabaseError, match="append-only"), database.transaction() as session:
            session.execute(text("UPDATE window_settings SET body = 'c'"))
        database.dispose()

    def test_a_failing_migration_leaves_nothing_behind(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from alembic.operations import Operations

        create_index = Operations.create_index

        def fail_late(self: Operations, name: str, *args: object, **kwargs: object) -> object:
            if name == "ix_posting_account_id":
                raise RuntimeError("disk full")
            return create_index(self, name, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(Operations, "create_index", fail_late)
        with pytest.raises(RuntimeError, match="disk full"):
            migrate.upgrade(url)
        database = Database(url)
        with database.engine.connect() as connection:
            assert facts(connection)[0] == []
            connection.rollback()
        database.dispose()


def _created_from_models(url: str) -> list[list[tuple[object, ...]]]:
    """What `create_all` makes of the models, in a second place of the same kind."""
    if url.startswith("sqlite"):
        return _facts_of(Database("sqlite:///:memory:"))
    with postgres_url() as other:
        return _facts_of(Database(other))


def _facts_of(database: Database) -> list[list[tuple[object, ...]]]:
    with database.engine.connect() as connection:
        metadata.create_all(connection)
        found = facts(connection)
        connection.commit()
    database.dispose()
    return found
