"""fsck finds what someone with the database file could change behind the service."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import text

from dp_core.events import canonical_json
from service.ledger import fsck, merkle
from service.ledger.entries import Draft, append, leaf_of, log_of
from service.ledger.entry_types import ELSEWHERE, VERSIONS
from service.ledger.errors import LedgerBroken
from tests.deploy.test_verify_ledger import verifier
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

    def test_an_entry_of_a_type_it_does_not_know_stops_it(self, tampered: w.World) -> None:
        """Even one that fits the chain, the tree and the head, as a newer release may write."""
        with tampered.db.transaction() as session:
            idx, row = session.execute(
                text("SELECT idx, body FROM entry ORDER BY idx DESC LIMIT 1")
            ).one()
            frontier: list[str] = []
            leaves = session.scalars(text("SELECT leaf FROM entry ORDER BY idx")).all()
            forged = canonical_json(json.loads(row) | {"type": "log.sealed"}).decode()
            leaf = leaf_of(forged.encode())
            for number, one in enumerate([*leaves[:-1], leaf]):
                frontier = merkle.grow(frontier, number, one)
            values = {"idx": idx, "body": forged, "leaf": leaf, "frontier": " ".join(frontier)}
            session.execute(
                text("UPDATE entry SET body=:body, leaf=:leaf, type='log.sealed' WHERE idx=:idx"),
                values,
            )
            session.execute(text("UPDATE log_head SET last_leaf=:leaf, frontier=:frontier"), values)
        with tampered.db.reading() as session:
            found = {f.problem for f in fsck.check_all(session)}
        assert "unknown type or version" in found


class TestTypes:
    def test_what_is_not_listed_is_never_written(self, tampered: w.World) -> None:
        for kind, version in (("log.sealed", 1), ("reserve.refused", 2)):
            draft = Draft(type=kind, idem="x", actor="system", data={}, v=version)
            with pytest.raises(LedgerBroken), tampered.db.transaction() as session:
                append(session, log_of(session, tampered.tenant), draft)

    def test_the_verifier_knows_the_same_types(self) -> None:
        second = {kind for kind, version in VERSIONS.items() if version == 2}
        assert set(verifier.TYPES) == set(VERSIONS) - set(ELSEWHERE)
        assert set(verifier.SECOND_VERSION) == second


def test_a_window_at_another_level_than_its_schedules_is_found(tmp_path: Path) -> None:
    schedule = (("1.000", 20), ("0.900", 20))
    with w.sqlite_database(tmp_path) as db:
        world = w.open_world(db)
        w.run_job(world, run_plan=w.plan(schedule=schedule), windows=3, crash=True)
        with db.reading() as session:
            assert fsck.check_all(session) == []
        with db.transaction() as session:
            session.execute(text("DROP TRIGGER entry_no_update"))
            session.execute(
                text(
                    'UPDATE entry SET body = replace(body, \'"level":"1.000","pol\','
                    ' \'"level":"0.900","pol\') WHERE type = \'window.charge\''
                )
            )
        with db.reading() as session:
            problems = [f.problem for f in fsck.check_all(session) if f.invariant == "I8"]
        assert problems == ["another level than the schedule has here"] * 2


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
