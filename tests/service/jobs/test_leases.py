"""Claim, lease, fence and taking back, on both databases."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from sqlalchemy import func, select

from service.database import Database
from service.jobs import leases, runtime
from service.jobs.errors import FencedOut
from service.jobs.lifecycle import State
from service.jobs.models import JobCheckpoint, JobEvent, JobMetric
from service.ledger import service as ledger
from service.ledger.models import Attempt
from tests.service.jobs import world as w
from tests.service.ledger import world as lw
from tests.service.test_gauges import of_rows

MACHINE = "trainer_killed"
OWN = "trainer_crashed"


class TestClaim:
    def test_it_raises_the_epoch_and_enters_the_attempt(self, world: lw.World) -> None:
        job = w.queue_job(world)
        claim = leases.claim(world.db, worker_id="wk_a", versions={"torch": "2.13.0"})
        assert claim == leases.Claim(job_id=job, epoch=1)
        row = w.row(world.db, job)
        assert (row.state, row.attempt, row.lease_owner) == ("starting", 1, "wk_a")
        assert w.entry_types(world.db, job) == ["reserve", "attempt.started"]
        assert w.history(world.db, job) == ["queued", "starting"]

    def test_nothing_waiting_gives_nothing(self, world: lw.World) -> None:
        assert leases.claim(world.db, worker_id="wk_a") is None

    def test_a_redelivered_doorbell_finds_nothing_to_claim(self, world: lw.World) -> None:
        claim = w.claimed_job(world)
        assert leases.claim(world.db, worker_id="wk_b", job_id=claim.job_id) is None
        assert w.row(world.db, claim.job_id).lease_owner == "wk_a"

    def test_a_job_in_back_off_is_not_claimed(self, world: lw.World) -> None:
        job = w.queue_job(world, not_before=2**60)
        assert leases.claim(world.db, worker_id="wk_a", job_id=job) is None

    def test_priority_comes_before_age(self, world: lw.World) -> None:
        w.queue_job(world, priority=-1)
        urgent = w.queue_job(world, priority=0)
        claim = leases.claim(world.db, worker_id="wk_a")
        assert claim is not None and claim.job_id == urgent

    def test_the_tenant_with_fewer_running_jobs_comes_first(self, db: Database) -> None:
        busy, idle = lw.open_world(db), lw.open_world(db)
        w.claimed_job(busy)
        w.queue_job(busy)
        waiting = w.queue_job(idle)
        claim = leases.claim(db, worker_id="wk_a")
        assert claim is not None and claim.job_id == waiting

    def test_of_two_claimers_one_wins(self, world: lw.World) -> None:
        for _ in range(5):
            job = w.queue_job(world)
            gate = threading.Barrier(2)

            def take(worker: str, job: str = job, gate: threading.Barrier = gate) -> object:
                gate.wait()
                return leases.claim(world.db, worker_id=worker, job_id=job)

            with ThreadPoolExecutor(2) as pool:
                won = [claim for claim in pool.map(take, ["wk_a", "wk_b"]) if claim is not None]
            assert won == [leases.Claim(job_id=job, epoch=1)]
            assert w.entry_types(world.db, job).count("attempt.started") == 1

    def test_two_claimers_of_two_jobs_get_one_each(self, world: lw.World) -> None:
        jobs = {w.queue_job(world), w.queue_job(world)}
        gate = threading.Barrier(2)

        def take(worker: str) -> str | None:
            gate.wait()
            claim = leases.claim(world.db, worker_id=worker)
            return claim and claim.job_id

        with ThreadPoolExecutor(2) as pool:
            first = set(pool.map(take, ["wk_a", "wk_b"])) - {None}
        while (claim := leases.claim(world.db, worker_id="wk_c")) is not None:
            first.add(claim.job_id)
        assert first == jobs


class TestFence:
    def test_the_first_charge_makes_the_job_run(self, world: lw.World) -> None:
        claim = w.running_job(world)
        assert w.state(world.db, claim.job_id) == "running"
        assert w.history(world.db, claim.job_id)[-1] == "running"

    def test_it_extends_the_lease_by_the_claimed_length(self, world: lw.World) -> None:
        claim = w.claimed_job(world)
        before = w.row(world.db, claim.job_id).lease_expires_at
        w.charge(world, claim, 0)
        after = w.row(world.db, claim.job_id).lease_expires_at
        assert before is not None and after is not None and after > before

    def test_an_older_epoch_is_refused_and_charges_nothing(self, world: lw.World) -> None:
        old = w.running_job(world)
        w.expire_lease(world.db, old.job_id)
        leases.reap_expired(world.db)
        w.skip_back_off(world.db, old.job_id)
        assert leases.claim(world.db, worker_id="wk_b") is not None
        before = w.entry_types(world.db, old.job_id)
        with pytest.raises(FencedOut):
            w.charge(world, old, 1)
        assert w.entry_types(world.db, old.job_id) == before

    def test_an_expired_lease_is_refused_before_anyone_else_claims(self, world: lw.World) -> None:
        claim = w.running_job(world)
        w.expire_lease(world.db, claim.job_id)
        with pytest.raises(FencedOut):
            w.charge(world, claim, 1)
        assert not leases.renew_lease(world.db, claim.job_id, claim.epoch, "wk_a")

    def test_a_job_being_cancelled_charges_nothing_more(self, world: lw.World) -> None:
        claim = w.running_job(world)
        with world.db.transaction() as session:
            w.ask_to_cancel(session, claim.job_id)
        with pytest.raises(FencedOut):
            w.charge(world, claim, 1)

    def test_every_write_of_a_lost_attempt_is_refused(self, world: lw.World) -> None:
        old = w.running_job(world)
        w.expire_lease(world.db, old.job_id)
        before = _counts(world.db)
        common = (world.db, old.job_id, old.epoch)
        writes = {
            "step": lambda: runtime.record_step(*common, 3),
            "window": lambda: runtime.record_window(
                *common, step=10, window=0, metrics=[], event_message="x", event_data={}
            ),
            "evaluation": lambda: runtime.record_evaluation(
                *common, step=10, loss="1.0", std="0.1", reference="l#1"
            ),
            "checkpoint": lambda: runtime.record_checkpoint(
                *common, step=10, window=0, directory="d", sha256="0" * 64
            ),
            "finish": lambda: runtime.finish(
                *common, final_state="succeeded", artifacts=[], certificate=None
            ),
            "load": lambda: runtime.load_work(*common),
        }
        for name, write in writes.items():
            with pytest.raises(FencedOut):
                write()
            assert _counts(world.db) == before, name
        assert w.state(world.db, old.job_id) == "running"

    def test_another_worker_cannot_renew(self, world: lw.World) -> None:
        claim = w.claimed_job(world)
        assert leases.renew_lease(world.db, claim.job_id, claim.epoch, "wk_a")
        assert not leases.renew_lease(world.db, claim.job_id, claim.epoch, "wk_b")
        assert not leases.renew_lease(world.db, claim.job_id, claim.epoch + 1, "wk_a")


def _counts(db: Database) -> list[int | None]:
    with db.reading() as session:
        tables = (JobEvent, JobMetric, JobCheckpoint, Attempt)
        return [session.scalar(select(func.count()).select_from(table)) for table in tables]


class TestRecovery:
    def test_an_expired_lease_recovers_and_is_claimed_with_the_next_epoch(
        self, world: lw.World
    ) -> None:
        old = w.running_job(world)
        w.expire_lease(world.db, old.job_id)
        assert leases.reap_expired(world.db) == [old.job_id]
        row = w.row(world.db, old.job_id)
        assert (row.state, row.reason_code) == ("recovering", "lease_expired")
        assert w.outbox(world.db, old.job_id)[-1] == ("doorbell", "recovering")
        w.skip_back_off(world.db, old.job_id)
        again = leases.claim(world.db, worker_id="wk_b")
        assert again == leases.Claim(job_id=old.job_id, epoch=old.epoch + 1)
        assert w.entry_types(world.db, old.job_id)[-2:] == ["attempt.started", "window.abandoned"]

    def test_a_lost_lease_is_counted_and_another_end_is_not(self, world: lw.World) -> None:
        lost, crashed = w.running_job(world), w.claimed_job(world)
        assert leases.fail_attempt(world.db, crashed.job_id, crashed.epoch, MACHINE, False)
        assert of_rows(world.db)["rldp_lease_lost_total"] == {(): 0}
        w.expire_lease(world.db, lost.job_id)
        leases.reap_expired(world.db)
        assert of_rows(world.db)["rldp_lease_lost_total"] == {(): 1}
        w.skip_back_off(world.db, lost.job_id)
        assert leases.claim(world.db, worker_id="wk_b", job_id=lost.job_id)
        assert of_rows(world.db)["rldp_lease_lost_total"] == {(): 1}  # the reason stands

    def test_a_live_lease_is_left_alone(self, world: lw.World) -> None:
        claim = w.running_job(world)
        assert leases.reap_expired(world.db) == []
        assert w.state(world.db, claim.job_id) == "running"

    def test_a_redone_window_is_charged_again(self, world: lw.World) -> None:
        old = w.running_job(world)
        leases.fail_attempt(world.db, old.job_id, old.epoch, MACHINE, False)
        w.skip_back_off(world.db, old.job_id)
        again = leases.claim(world.db, worker_id="wk_b")
        assert again is not None
        with world.db.transaction() as session:
            position = ledger.position(session, job_id=again.job_id, epoch=again.epoch)
        assert (position.next_chunk, position.steps_started) == (1, 10)
        w.charge(world, again, 1)
        assert w.entry_types(world.db, old.job_id).count("window.charge") == 2

    def test_the_first_retry_is_quick_and_later_ones_back_off(self, world: lw.World) -> None:
        claim = w.claimed_job(world)
        waits = []
        for _ in range(4):
            leases.fail_attempt(world.db, claim.job_id, claim.epoch, MACHINE, False)
            row = w.row(world.db, claim.job_id)
            waits.append(row.not_before)
            w.skip_back_off(world.db, claim.job_id)
            taken = leases.claim(world.db, worker_id="wk_a")
            assert taken is not None
            claim = taken
        gaps = [later - earlier for earlier, later in pairwise(waits)]
        for gap, least in zip(gaps, (8, 9, 19), strict=True):
            assert gap > least * w.SECOND

    def test_attempts_run_out(self, world: lw.World) -> None:
        claim = w.running_job(world)
        state = leases.fail_attempt(
            world.db, claim.job_id, claim.epoch, MACHINE, False, attempts_max=1
        )
        row = w.row(world.db, claim.job_id)
        assert state is State.FAILED
        assert (row.reason_code, row.epoch) == ("attempts_used", claim.epoch + 1)
        assert w.entry_types(world.db, claim.job_id)[-2:] == ["window.abandoned", "settle"]

    def test_the_same_own_cause_twice_running_is_final(self, world: lw.World) -> None:
        claim = w.claimed_job(world)
        assert leases.fail_attempt(world.db, claim.job_id, 1, OWN, False) is State.RECOVERING
        w.skip_back_off(world.db, claim.job_id)
        assert leases.claim(world.db, worker_id="wk_a") is not None
        assert leases.fail_attempt(world.db, claim.job_id, 2, OWN, False) is State.FAILED
        assert w.row(world.db, claim.job_id).reason_code == OWN

    def test_a_machines_cause_twice_running_is_not(self, world: lw.World) -> None:
        claim = w.claimed_job(world)
        leases.fail_attempt(world.db, claim.job_id, 1, MACHINE, False)
        w.skip_back_off(world.db, claim.job_id)
        leases.claim(world.db, worker_id="wk_a")
        assert leases.fail_attempt(world.db, claim.job_id, 2, MACHINE, False) is State.RECOVERING

    def test_a_permanent_cause_returns_what_was_never_started(self, world: lw.World) -> None:
        claim = w.running_job(world)
        leases.fail_attempt(world.db, claim.job_id, claim.epoch, "data_unreadable", True)
        with world.db.reading() as session:
            block = ledger.epsilon_limits(session, world.population).blocks[0]
        assert w.state(world.db, claim.job_id) == "failed"
        assert block.held_pico == 0 and block.spent_pico > 0
        assert block.free_pico == block.limit_pico - block.spent_pico

    def test_an_attempt_that_lost_the_job_takes_nothing_back(self, world: lw.World) -> None:
        claim = w.claimed_job(world)
        assert leases.fail_attempt(world.db, claim.job_id, claim.epoch - 1, OWN, False) is None
        assert w.state(world.db, claim.job_id) == "starting"

    def test_a_dead_host_ends_a_cancel_by_the_lease(self, world: lw.World) -> None:
        claim = w.running_job(world)
        with world.db.transaction() as session:
            w.ask_to_cancel(session, claim.job_id)
        assert leases.reap_expired(world.db) == []
        w.expire_lease(world.db, claim.job_id)
        assert leases.reap_expired(world.db) == [claim.job_id]
        assert w.history(world.db, claim.job_id)[-2:] == ["cancelling", "cancelled"]
