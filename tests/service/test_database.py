"""Sessions of both databases: what a look may send, and connections that a restart has cut."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update

from service.database import FRESH_SECONDS, Database, now_us
from service.tenants.models import Tenant
from tests.service.ledger import world as lw


@pytest.fixture
def db() -> Iterator[Database]:
    with lw.postgres_database() as made:
        yield made


class TestReading:
    def test_sees_what_was_committed_meanwhile(self, db: Database) -> None:
        with db.reading() as looking:
            assert looking.scalars(select(Tenant.id)).all() == []
            with db.transaction() as writing:
                writing.execute(insert(Tenant).values(id="tn_a", created_at=now_us()))
            assert looking.scalars(select(Tenant.id)).all() == ["tn_a"]

    def test_refuses_to_write(self, db: Database) -> None:
        writes = (insert(Tenant).values(id="tn_a", created_at=1), update(Tenant).values(id="tn_b"))
        for statement in (*writes, text("DELETE FROM tenant")):
            with pytest.raises(AssertionError, match="writes nothing"), db.reading() as session:
                session.execute(statement)
        with db.reading() as session:
            assert session.scalars(select(Tenant.id)).all() == []

    def test_refuses_to_hold_locks(self, db: Database) -> None:
        with pytest.raises(AssertionError, match="writes nothing"), db.reading() as session:
            session.execute(select(Tenant.id).with_for_update())

    def test_a_snapshot_stays_as_of_its_moment(self, db: Database) -> None:
        with db.snapshot() as looking:
            assert looking.scalars(select(Tenant.id)).all() == []
            with db.transaction() as writing:
                writing.execute(insert(Tenant).values(id="tn_a", created_at=now_us()))
            assert looking.scalars(select(Tenant.id)).all() == []

    def test_leaves_nothing_to_the_next_user_of_its_connection(self, db: Database) -> None:
        with db.reading() as session:
            session.execute(text("SELECT 1"))
        with pytest.raises(ZeroDivisionError), db.transaction() as session:
            session.execute(insert(Tenant).values(id="tn_a", created_at=now_us()))
            raise ZeroDivisionError
        with db.reading() as session:
            assert session.scalars(select(Tenant.id)).all() == []


class TestConnections:
    def test_one_that_was_cut_is_replaced_before_its_use(self, db: Database) -> None:
        with db.reading() as session:
            cut = session.scalar(text("SELECT pg_backend_pid()"))
        other = Database(db.url)
        with other.reading() as session:
            session.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": cut})
        other.dispose()
        time.sleep(2 * FRESH_SECONDS)
        with db.reading() as session:
            assert session.scalar(text("SELECT pg_backend_pid()")) != cut

    def test_one_that_was_just_in_use_is_not_tried_again(
        self, db: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pings: list[Any] = []
        ping = db.engine.dialect.do_ping

        def counted(connection: Any) -> bool:
            pings.append(connection)
            return ping(connection)

        monkeypatch.setattr(db.engine.dialect, "do_ping", counted)
        with db.reading() as session:
            session.execute(text("SELECT 1"))
        for record_of in (0.0, 2 * FRESH_SECONDS):
            before = len(pings)
            connection = db.engine.raw_connection()
            record = connection._connection_record
            connection.close()
            record.info["used_at"] = time.monotonic() - record_of
            with db.reading() as session:
                session.execute(text("SELECT 1"))
            assert len(pings) - before == (record_of > 0)


def test_on_sqlite_a_look_is_one_moment(tmp_path: Path) -> None:
    with lw.sqlite_database(tmp_path) as db, db.reading() as looking:
        assert looking.scalars(select(Tenant.id)).all() == []
        with db.transaction() as writing:
            writing.execute(insert(Tenant).values(id="tn_a", created_at=now_us()))
        assert looking.scalars(select(Tenant.id)).all() == []
