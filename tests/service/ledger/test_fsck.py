"""fsck finds what someone with the database file could change behind the service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import text

from service.ledger import fsck
from service.ledger.entries import leaf_of
from tests.service.ledger import world as w

TRIGGERS = ("entry_no_update", "entry_no_delete", "posting_no_update", "posting_no_delete")


@pytest.fixture
def tampered(tmp_path: Path) -> w.World:
    """A clean ledger on SQLite whose guards an owner of the file has removed."""
    with w.sqlite_database(tmp_path) as db:
        world = w.open_world(db, validation_fraction="0.1")
        world.jobs.append(w.run_job(world, run_plan=w.plan(validation=True), crash=True))
        with db.reading() as session:
            assert fsck.check_all(session) == []
        with db.transaction() as session:
            for trigger in TRIGGERS:
                session.execute(text(f"DROP TRIGGER {trigger}"))
        yield world


def findings(world: w.World, *statements: str) -> set[str]:
    with world.db.transaction() as session:
        for statement in statements:
            session.execute(text(statement))
    with world.db.reading() as session:
        return {finding.invariant for finding in fsck.check_all(session)}


class TestCheckAll:
    @pytest.mark.parametrize(
        ("statement", "invariant"),
        [
            ("UPDATE account SET balance_pico = balance_pico + 1 WHERE kind = 'budget'", "I1"),
            ("UPDATE posting SET amount_pico = amount_pico + 1 WHERE idx = 11", "I4"),
            ("UPDATE account SET balance_pico = 0 WHERE kind = 'spent'", "I4"),
            ("UPDATE entry SET body = replace(body, ',', ', ') WHERE idx = 3", "I14"),
            ("UPDATE entry SET type = 'settle' WHERE idx = 3", "I14"),
            ("UPDATE entry SET leaf = substr(leaf, 2) || '0' WHERE idx = 3", "I9"),
            ("UPDATE log_head SET size = size - 1", "I9"),
            ("UPDATE log_head SET frontier = ''", "I9"),
            ("UPDATE population SET alpha_star = 5", "I13"),
            ("UPDATE population SET unit = 'record'", "I13"),
            ("DELETE FROM window_settings WHERE 0", ""),
        ],
    )
    def test_each_change_breaks_its_invariant(
        self, tampered: w.World, statement: str, invariant: str
    ) -> None:
        found = findings(tampered, statement)
        assert invariant in found or (not invariant and not found)

    def test_an_entry_rewritten_with_its_own_leaf_breaks_the_chain(self, tampered: w.World) -> None:
        with tampered.db.transaction() as session:
            row = session.execute(text("SELECT body FROM entry WHERE idx = 5")).scalar_one()
            body = json.loads(row) | {"actor": "usr_mallory"}
            forged = json.dumps(body, sort_keys=True, separators=(",", ":"))
            session.execute(
                text(
                    "UPDATE entry SET body = :body, actor = 'usr_mallory', leaf = :leaf"
                    " WHERE idx = 5"
                ),
                {"body": forged, "leaf": leaf_of(forged.encode())},
            )
        assert "I9" in findings(tampered)

    def test_a_dropped_last_entry_is_noticed(self, tampered: w.World) -> None:
        last = "(SELECT max(idx) FROM entry)"
        assert "I9" in findings(
            tampered,
            f"DELETE FROM posting WHERE idx = {last}",
            f"DELETE FROM entry WHERE idx = {last}",
        )


class TestCheckJob:
    def test_a_clean_job_has_no_findings(self, tampered: w.World) -> None:
        with tampered.db.reading() as session:
            assert fsck.check_job(session, tampered.jobs[0]) == []

    def test_counters_that_differ_from_entries_are_found(self, tampered: w.World) -> None:
        with tampered.db.transaction() as session:
            session.execute(text("UPDATE reservation SET job_spent = job_spent - 1"))
        with tampered.db.reading() as session:
            found = fsck.check_job(session, tampered.jobs[0])
        assert [finding.invariant for finding in found] == ["I8"]
