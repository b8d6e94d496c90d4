"""Many writers on one limit grant exactly the limit, on both databases (T4)."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import select

from service.database import Database
from service.ids import new_id
from service.ledger import fsck
from service.ledger import service as ledger
from service.ledger.entries import log_of
from service.ledger.errors import BudgetExceeded
from service.ledger.models import LogHead
from tests.service.ledger import world as w

THREADS = 8


class TestOneLimit:
    def test_racing_reserves_grant_exactly_the_limit(self, world: w.World) -> None:
        with world.db.reading() as session:
            view = ledger.epsilon_limits(session, world.population)
        limit = view.limit_pico or 0
        price = ledger.price_of_step("0.01", "1.000", view.alpha_star or 0)
        room = 21  # jobs that fit; each takes this share of all steps
        plan = w.plan(steps=limit // price // room, margin_steps=0)
        barrier = threading.Barrier(THREADS)

        def submit(_: int) -> int:
            barrier.wait()
            granted = 0
            for _ in range(5):
                try:
                    with world.db.transaction() as session:
                        w.reserve(session, world, job=new_id("ftjob-"), run_plan=plan)
                    granted += 1
                except BudgetExceeded:
                    continue
            return granted

        with ThreadPoolExecutor(THREADS) as pool:
            granted = sum(pool.map(submit, range(THREADS)))
        assert granted == room
        with world.db.reading() as session:
            after = ledger.epsilon_limits(session, world.population).blocks[0]
            assert fsck.check_all(session) == []
        assert after.held_pico == room * plan.steps_started_max * price
        assert 0 <= after.free_pico < plan.steps_started_max * price

    def test_the_same_charge_sent_by_all_at_once_is_paid_once(self, world: w.World) -> None:
        with world.db.transaction() as session:
            w.reserve(session, world, job="ftjob-x")
            w.start(session, "ftjob-x")
        barrier = threading.Barrier(THREADS)

        def charge(_: int) -> ledger.Receipt:
            barrier.wait()
            with world.db.transaction() as session:
                return ledger.charge_window(session, job_id="ftjob-x", epoch=1, charge=w.window(0))

        with ThreadPoolExecutor(THREADS) as pool:
            receipts = set(pool.map(charge, range(THREADS)))
        assert len(receipts) == 1
        with world.db.reading() as session:
            assert ledger.position(session, job_id="ftjob-x", epoch=1).steps_started == 10
            assert fsck.check_all(session) == []

    def test_a_log_is_opened_once_by_many(self, db: Database) -> None:
        world = w.found(db)
        barrier = threading.Barrier(4)

        def open_log(_: int) -> str:
            barrier.wait()
            with db.transaction() as session:
                return log_of(session, world.tenant)

        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(open_log, range(4)))) == 1
        with db.reading() as session:
            assert session.scalars(select(LogHead.size)).all() == [4]
            assert fsck.check_all(session) == []
