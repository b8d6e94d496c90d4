"""Canonical bytes, the chain, idempotency, and rows that cannot be changed (ledger.md 7, 8)."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.exc import DatabaseError

from service.database import Database
from service.ids import new_id
from service.ledger import entries, fsck, merkle
from service.ledger import service as ledger
from service.ledger.entries import Draft, Movement, append, body_of, leaf_of, log_of
from service.ledger.errors import IdempotencyConflict, LedgerBroken
from service.ledger.models import Entry, LogHead
from tests.service.ledger import world as w


class TestCanonicalBytes:
    def test_body_and_leaf_equal_the_published_vector(self) -> None:
        draft = Draft(
            type="log.opened",
            idem="open",
            actor="system",
            data={"origin": "ledger.example/tn_a/2026"},
        )
        body = body_of(
            draft, log_id="tn_a/2026", idx=0, prev=entries.NO_LEAF, ts="2026-01-01T00:00Z"
        )
        assert body == (
            b'{"actor":"system","data":{"origin":"ledger.example/tn_a/2026"},"idem":"open",'
            b'"idx":0,"log":"tn_a/2026","pop":null,"post":[],"prev":"' + b"0" * 64 + b'",'
            b'"ts":"2026-01-01T00:00Z","type":"log.opened","v":1}'
        )
        assert leaf_of(body) == "e2e33f9c2a96429eb566a8d1063adfe8476cc850fa66b31c81f7fd60db2f89a4"

    def test_postings_stand_in_the_order_of_accounts_as_text(self) -> None:
        draft = Draft(
            type="window.charge",
            idem="x",
            actor="wk_2",
            data={},
            movements=(
                Movement(account="spent", amount_pico=40673253488),
                Movement(account="escrow:ftjob-19", amount_pico=-40673253488),
            ),
        )
        assert draft.post() == [["escrow:ftjob-19", "-40673253488"], ["spent", "40673253488"]]

    def test_a_body_beyond_64_kib_is_refused(self) -> None:
        draft = Draft(type="x", idem="x", actor="x", data={"long": "a" * 70_000})
        with pytest.raises(LedgerBroken, match="bytes"):
            body_of(draft, log_id="l", idx=0, prev=entries.NO_LEAF, ts="2026-01-01T00:00Z")


def recursive_root(leaves: list[str]) -> str:
    """RFC 6962 section 2.1, word by word."""
    if not leaves:
        return hashlib.sha256().hexdigest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return merkle.node(recursive_root(leaves[:split]), recursive_root(leaves[split:]))


class TestMerkle:
    @given(st.integers(0, 70))
    def test_frontier_gives_the_root_of_the_recursive_definition(self, size: int) -> None:
        leaves = [hashlib.sha256(bytes([i])).hexdigest() for i in range(size)]
        assert merkle.root_of_leaves(leaves) == recursive_root(leaves)


class TestAppend:
    def test_the_log_opens_with_origin_and_the_founding_stewards(self, db: Database) -> None:
        world = w.found(db)
        with db.transaction() as session:
            log = log_of(session, world.tenant)
        with db.reading() as session:
            bodies = [
                json.loads(e.body) for e in session.scalars(select(Entry).order_by(Entry.idx))
            ]
        assert [b["type"] for b in bodies] == ["log.opened", *["principal.registered"] * 3]
        assert bodies[0]["data"] == {"origin": f"rldp.local/{log}"}
        keys = {s: k.public_key().public_bytes_raw().hex() for s, k in world.stewards.items()}
        assert {b["data"]["principal"]: b["data"]["key"] for b in bodies[1:]} == keys

    def test_each_entry_names_the_leaf_before_and_moves_head_and_tree(self, db: Database) -> None:
        world = w.open_world(db)
        with db.reading() as session:
            rows = session.scalars(select(Entry).order_by(Entry.idx)).all()
            head = session.scalars(select(LogHead)).one()
        prev = entries.NO_LEAF
        for index, row in enumerate(rows):
            body = json.loads(row.body)
            assert (body["idx"], body["prev"]) == (index, prev)
            assert leaf_of(row.body.encode()) == row.leaf
            prev = row.leaf
        assert (head.size, head.last_leaf) == (len(rows), prev)
        assert merkle.root_of(head.frontier.split()) == recursive_root([r.leaf for r in rows])
        assert world.tenant in head.log_id

    def test_a_repeat_gives_the_stored_receipt_and_writes_nothing(self, db: Database) -> None:
        world = w.found(db)
        draft = Draft(type="reserve.refused", idem="k", actor="usr_a", data={"free": "1"})
        with db.transaction() as session:
            first = append(session, log_of(session, world.tenant), draft)
        with db.transaction() as session:
            again = append(session, log_of(session, world.tenant), draft)
            size = session.scalars(select(LogHead.size)).one()
        assert again == first
        assert size == first.idx + 1

    def test_the_same_key_with_other_content_is_a_named_conflict(self, db: Database) -> None:
        world = w.found(db)
        with db.transaction() as session:
            log = log_of(session, world.tenant)
            append(
                session, log, Draft(type="reserve.refused", idem="k", actor="a", data={"f": "1"})
            )
        for changed in (
            Draft(type="reserve.refused", idem="k", actor="a", data={"f": "2"}),
            Draft(type="grant.rejected", idem="k", actor="a", data={"f": "1"}),
        ):
            with pytest.raises(IdempotencyConflict), db.transaction() as session:
                append(session, log, changed)

    def test_postings_that_do_not_sum_to_zero_are_refused(self, world: w.World) -> None:
        draft = Draft(
            type="correction",
            idem="k",
            actor="a",
            data={},
            population_id=world.population,
            movements=(Movement(account="spent", amount_pico=1),),
        )
        with pytest.raises(LedgerBroken, match="sum to 0"), world.db.transaction() as session:
            append(session, log_of(session, world.tenant), draft)

    def test_time_never_falls_when_the_clock_goes_back(
        self, db: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world = w.found(db)
        with db.transaction() as session:
            log = log_of(session, world.tenant)
            last = session.get_one(LogHead, log).last_ts
        monkeypatch.setattr(entries, "now_us", lambda: 0)
        with db.transaction() as session:
            append(session, log, Draft(type="reserve.refused", idem="k", actor="a", data={}))
            assert session.get_one(LogHead, log, populate_existing=True).last_ts == last

    def test_a_tenant_has_one_log_for_its_life(
        self, world: w.World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A job that lives over New Year, its repeats and its settle stay in one log."""
        job = new_id("ftjob-")
        with world.db.transaction() as session:
            log, reserved = log_of(session, world.tenant), w.reserve(session, world, job=job)
        next_year = entries.now_us() + 366 * 24 * 3600 * 1_000_000
        monkeypatch.setattr(entries, "now_us", lambda: next_year)
        with world.db.transaction() as session:
            assert w.reserve(session, world, job=job) == reserved
            settled = ledger.settle(
                session,
                job_id=job,
                final_state="cancelled",
                artifact_digests={},
                certificate_digest=None,
            )
            ts = session.get_one(Entry, (settled.log, settled.idx)).ts
            assert (log_of(session, world.tenant), settled.log) == (log, log)
            assert ts[:4] > log.rpartition("/")[2]
            assert fsck.check_all(session) == []


class TestAppendOnly:
    @pytest.mark.parametrize("table", ["entry", "posting", "approval", "window_settings"])
    @pytest.mark.parametrize("verb", ["update", "delete"])
    def test_standing_rows_refuse_every_change(self, world: w.World, table: str, verb: str) -> None:
        w.run_job(world, run_plan=w.plan())
        column = {"entry": "body", "posting": "log_id", "approval": "decision"}.get(table, "body")
        statement = f"UPDATE {table} SET {column} = {column}"
        if verb == "delete":
            statement = f"DELETE FROM {table}"
        with (
            pytest.raises(DatabaseError, match="append-only"),
            world.db.transaction() as session,
        ):
            session.execute(text(statement))

    def test_postgresql_refuses_truncate(self, world: w.World) -> None:
        if world.db.is_sqlite:
            with world.db.transaction() as session:  # SQLite has no such statement at all
                with pytest.raises(DatabaseError, match="syntax"):
                    session.execute(text("TRUNCATE entry"))
                session.rollback()
            return
        with (
            pytest.raises(DatabaseError, match="append-only"),
            world.db.transaction() as session,
        ):
            session.execute(text("TRUNCATE entry CASCADE"))

    def test_the_database_itself_refuses_an_overdrawn_account(self, world: w.World) -> None:
        with (
            pytest.raises(DatabaseError, match="not_overdrawn"),
            world.db.transaction() as session,
        ):
            session.execute(text("UPDATE account SET balance_pico = -1 WHERE kind = 'spent'"))
