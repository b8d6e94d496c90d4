"""Inserts that travel together: the same rows on both databases, in one statement on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import bindparam, event, select, update
from sqlalchemy.exc import IntegrityError

from service import rows
from service.database import Database
from service.tenants.models import Principal, Tenant
from tests.service.ledger import world as lw

RENAME = (
    update(Tenant.metadata.tables["tenant"])
    .where(Tenant.id == bindparam("tenant"))
    .values(created_at=bindparam("moment"))
)
ODD = "usr_%s%(x)s '); --"  # text that would be read as a parameter or as an end


def person(name: str, tenant: str = "tn_a") -> dict[str, Any]:
    unset = {"public_key": None, "created_at": 1}
    return {"id": name, "tenant_id": tenant, "role": "steward", **unset}


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        with lw.sqlite_database(tmp_path) as made:
            yield made
    else:
        with lw.postgres_database() as made:
            yield made


@pytest.fixture
def statements(db: Database) -> list[str]:
    found: list[str] = []

    @event.listens_for(db.engine, "before_cursor_execute")
    def _note(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        found.append(statement)

    return found


def people(db: Database) -> list[str]:
    with db.reading() as session:
        return list(session.scalars(select(Principal.id).order_by(Principal.id)))


class TestAdd:
    def test_parts_may_refer_to_each_other(self, db: Database, statements: list[str]) -> None:
        with db.transaction() as session:
            statements.clear()
            both = [person("usr_b"), person(ODD)]
            rows.add(session, (Tenant, [{"id": "tn_a", "created_at": 1}]), (Principal, both))
            assert len(statements) == (2 if db.is_sqlite else 1)
        assert people(db) == sorted(["usr_b", ODD])

    def test_nothing_is_no_statement(self, db: Database, statements: list[str]) -> None:
        with db.transaction() as session:
            statements.clear()
            rows.add(session, (Tenant, []), (Principal, []))
            assert statements == []

    def test_a_broken_rule_of_one_part_keeps_all_out(self, db: Database) -> None:
        tenant = {"id": "tn_a", "created_at": 1}
        with pytest.raises(IntegrityError), db.transaction() as session:
            rows.add(session, (Tenant, [tenant]), (Principal, [person("usr_b", "tn_else")]))
        with db.reading() as session:
            assert session.scalars(select(Tenant.id)).all() == []


class TestAddAndUpdate:
    def test_tells_how_many_rows_the_update_changed(
        self, db: Database, statements: list[str]
    ) -> None:
        with db.transaction() as session:
            rows.add(session, (Tenant, [{"id": "tn_a", "created_at": 1}]))
            statements.clear()
            parts = [(Principal, [person("usr_b"), person("usr_c")]), (Tenant, [])]
            to = {"tenant": "tn_a", "moment": 5}
            assert rows.add_and_update(session, parts, RENAME, to) == 1
            assert len(statements) == (2 if db.is_sqlite else 1)
            assert rows.add_and_update(session, [], RENAME, {**to, "tenant": "tn_none"}) == 0
        assert people(db) == ["usr_b", "usr_c"]
        with db.reading() as session:
            assert session.scalars(select(Tenant.created_at)).all() == [5]
