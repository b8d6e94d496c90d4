"""Migrations give exactly the tables of the models, on both databases, and only once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import DatabaseError, IntegrityError

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
    "SELECT tablename, policyname, cmd, qual, with_check FROM pg_policies"
    " WHERE schemaname = current_schema() ORDER BY 1, 2",
    "SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class"
    " WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' ORDER BY 1",
)


OLD_JOB = (
    "INSERT INTO job (id, tenant_id, created_by, population_id, dataset_version_id,"
    " training_file_id, model, model_dir, job_dir, spec, labels, seed, plan, plan_digest,"
    " alpha_population, priority, state, cancel_requested, epoch, attempt, lease_seconds,"
    " not_before, rung_at, progress_at, step, window_no, created_at, started_at, finished_at)"
    " VALUES ('{id}', 'tn_a', 'usr_a', 'pop_a', 'dsv', 'file', 'm', 'd', 'd', '{{}}', '{{}}', 1,"
    " '{{}}', 'd', 4, 0, '{state}', FALSE, 0, 0, 60, 5, 5, 7, 0, 0, 5, {started}, {finished})"
)
OLD_ROWS = (
    "INSERT INTO tenant (id, created_at) VALUES ('tn_a', 1)",
    "INSERT INTO principal (id, tenant_id, role, created_at)"
    " VALUES ('usr_a', 'tn_a', 'submitter', 1)",
    "INSERT INTO population (id, tenant_id, code, unit, relation, patients_public,"
    " patients_public_basis, validation_fraction, split_key, created_by, created_at, frozen)"
    " VALUES ('pop_a', 'tn_a', 'c', 'patient', 'add_remove', 9, 'registry', '0', 'k', 'usr_a',"
    " 1, FALSE)",
    OLD_JOB.format(id="ftjob-1", state="queued", started="NULL", finished="NULL"),
    OLD_JOB.format(id="ftjob-2", state="succeeded", started="6", finished="9"),
    "INSERT INTO job_event (id, job_id, created_at, level, type, message, data)"
    " VALUES ('ftevent-1', 'ftjob-1', 5, 'info', 'message', 'm', '{}')",
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
    """The parts of a statement; their order, and the white space in them, mean nothing.

    A column added later stands behind the constraints in SQLite's text of its table.
    """
    flat = " ".join((sql or "").split())
    head, _, rest = flat.partition("(")
    body, closing, tail = rest.rpartition(")")
    parts, depth = [""], 0
    for character in body:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [head.strip(), closing, tail.strip(), *sorted(part.strip() for part in parts)]


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

    def test_a_database_with_jobs_learns_to_pause_them(self, url: str) -> None:
        """0005 edits a table that others refer to: its rows and all references stay."""
        migrate.upgrade(url, "0004")
        database = Database(url)
        with database.transaction() as session:
            for statement in OLD_ROWS:
                session.execute(text(statement))
        migrate.upgrade(url)
        with database.transaction() as session:
            rows = session.execute(
                text("SELECT id, state, pauses, state_at, labels FROM job ORDER BY id")
            ).all()
            assert [tuple(row)[:4] for row in rows] == [
                ("ftjob-1", "queued", 0, 5),
                ("ftjob-2", "succeeded", 0, 9),
            ]
            assert session.scalar(text("SELECT count(*) FROM job_event")) == 1
            session.execute(text("UPDATE job SET state = 'paused' WHERE id = 'ftjob-1'"))
        for broken in (
            "UPDATE job SET state = 'sleeping' WHERE id = 'ftjob-1'",
            "UPDATE job SET pauses = NULL",
            "DELETE FROM job WHERE id = 'ftjob-1'",
        ):
            with pytest.raises(IntegrityError), database.transaction() as session:
                session.execute(text(broken))
        database.dispose()

    def test_a_second_upgrade_changes_nothing(self, url: str) -> None:
        migrate.upgrade(url)
        migrate.upgrade(url)
        database = Database(url)
        assert migrate.is_at_head(database)
        database.dispose()

    def test_two_at_once_do_it_once(self, url: str) -> None:
        migrate.upgrade(url, "0010")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(migrate.upgrade, [url, url]))
        database = Database(url)
        assert migrate.is_at_head(database)
        database.dispose()

    def test_a_later_release_has_migrated_already(self, url: str) -> None:
        migrate.upgrade(url)
        database = Database(url)
        with database.transaction() as session:
            session.execute(text("UPDATE alembic_version SET version_num = 'of_a_later_release'"))
        assert migrate.schema_state(database) == "ahead"
        assert not migrate.is_at_head(database)
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
        return _facts_of(Database(f"{url}.models"))
    with postgres_url() as other:
        return _facts_of(Database(other))


def _facts_of(database: Database) -> list[list[tuple[object, ...]]]:
    with database.engine.connect() as connection:
        metadata.create_all(connection)
        found = facts(connection)
        connection.commit()
    database.dispose()
    return found
