"""Cancel, pause, resume and the end of old holds, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.database import Database, now_us
from service.jobs import leases, runtime, steering
from service.jobs.errors import FencedOut, JobNotFound, StateConflict
from service.jobs.lifecycle import FINISHING, Reason, State
from service.jobs.models import Job
from service.jobs.steering import DAY
from service.ledger import fsck
from service.ledger import service as ledger
from service.ledger.service import epsilon_limits
from service.worker.progress import JobProgress
from tests.service.jobs import world as w
from tests.service.jobs.test_service import subject_of
from tests.service.ledger import world as lw


# On PostgreSQL in every CI run; the default run is quick.
@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.ci)])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    context = lw.sqlite_database(tmp_path) if request.param == "sqlite" else lw.postgres_database()
    with context as database:
        yield database


Steer = Callable[[Session, Subject, str], dict[str, Any]]


def ask(world: lw.World, steer: Steer, job_id: str, role: str = "submitter") -> dict[str, Any]:
    with world.db.transaction() as session:
        return steer(session, subject_of(world, role), job_id)


def pausing_job(world: lw.World, **changes: Any) -> leases.Claim:
    claim = w.running_job(world, **changes)
    ask(world, steering.pause_job, claim.job_id)
    return claim


def close_window(world: lw.World, claim: leases.Claim, number: int = 0) -> None:
    """What the journal and the store do at a window's end."""
    with world.db.transaction() as session:
        runtime.fence(session, claim.job_id, claim.epoch, states=FINISHING)
        ledger.finish_window(
            session, job_id=claim.job_id, epoch=claim.epoch, window=number, steps_run=10
        )
    runtime.record_checkpoint(
        world.db,
        claim.job_id,
        claim.epoch,
        step=10 * (number + 1),
        window=number,
        directory="d",
        sha256="0" * 64,
    )


def paused_job(world: lw.World, **changes: Any) -> leases.Claim:
    claim = pausing_job(world, **changes)
    close_window(world, claim)
    left = leases.fail_attempt(world.db, claim.job_id, claim.epoch, "pause_requested", False)
    assert left is State.PAUSED
    return claim


class TestCancel:
    def test_a_waiting_job_is_over_at_once_and_all_of_it_returns(self, world: lw.World) -> None:
        job = w.queue_job(world)
        with world.db.transaction() as session:
            answer = steering.cancel_job(session, subject_of(world), job)
        assert (answer["status"], answer["state"]) == ("cancelled", "cancelled")
        with world.db.reading() as session:
            block = epsilon_limits(session, world.population).blocks[0]
        assert (block.held_pico, block.spent_pico) == (0, 0)
        assert leases.claim(world.db, worker_id="wk_a") is None

    def test_a_running_job_says_cancelling_until_its_process_is_gone(self, world: lw.World) -> None:
        claim = w.running_job(world)
        for _ in range(2):  # asked again: the same answer
            with world.db.transaction() as session:
                answer = steering.cancel_job(session, subject_of(world), claim.job_id)
            assert (answer["status"], answer["state"]) == ("running", "cancelling")
        assert leases.cancel_requested(world.db, claim.job_id)
        leases.fail_attempt(world.db, claim.job_id, claim.epoch, "worker_stopped", False)
        assert w.state(world.db, claim.job_id) == "cancelled"
        assert w.entry_types(world.db, claim.job_id).count("settle") == 1

    def test_a_finished_job_cannot_be_cancelled(self, world: lw.World) -> None:
        claim = w.running_job(world)
        leases.fail_attempt(world.db, claim.job_id, claim.epoch, "data_unreadable", True)
        with world.db.transaction() as session, pytest.raises(StateConflict):
            steering.cancel_job(session, subject_of(world), claim.job_id)

    def test_only_those_who_see_a_job_can_cancel_it(self, world: lw.World) -> None:
        job = w.queue_job(world)
        for role in ("auditor",):
            with world.db.transaction() as session, pytest.raises(JobNotFound):
                steering.cancel_job(session, subject_of(world, role), job)
        with world.db.transaction() as session:
            steering.cancel_job(session, subject_of(world, "admin"), job)
        assert w.state(world.db, job) == "cancelled"


class TestPause:
    def test_a_queued_job_is_paused_at_once_and_nobody_claims_it(self, world: lw.World) -> None:
        job = w.queue_job(world)
        answer = ask(world, steering.pause_job, job)
        assert (answer["status"], answer["reason_code"]) == ("paused", "pause_requested")
        assert leases.claim(world.db, worker_id="wk_a") is None
        assert w.entry_types(world.db, job) == ["reserve"]

    def test_a_running_job_may_end_its_window_and_open_no_other(self, world: lw.World) -> None:
        claim = pausing_job(world)
        assert w.state(world.db, claim.job_id) == "pausing"
        with pytest.raises(FencedOut):
            w.charge(world, claim, 1)
        assert leases.renew_lease(world.db, claim.job_id, claim.epoch, "wk_a")
        close_window(world, claim)
        assert w.entry_types(world.db, claim.job_id).count("window.charge") == 1
        assert w.entry_types(world.db, claim.job_id)[-1] == "window.done"

    def test_it_keeps_the_escrow_and_gives_the_lease_back(self, world: lw.World) -> None:
        held = _held(world, w.queue_job(world))
        claim = paused_job(world)
        row = w.row(world.db, claim.job_id)
        assert (row.state, row.lease_owner, row.lease_expires_at) == ("paused", None, None)
        with world.db.reading() as session:
            block = epsilon_limits(session, world.population).blocks[0]
            assert fsck.check_job(session, claim.job_id) == []
        assert block.held_pico + block.spent_pico == 2 * held and block.spent_pico > 0

    def test_asked_again_it_answers_with_the_job_as_it_stands(self, world: lw.World) -> None:
        claim = pausing_job(world)
        assert ask(world, steering.pause_job, claim.job_id)["status"] == "pausing"
        close_window(world, claim)
        leases.fail_attempt(world.db, claim.job_id, claim.epoch, "pause_requested", False)
        assert ask(world, steering.pause_job, claim.job_id)["status"] == "paused"
        assert w.history(world.db, claim.job_id).count("paused") == 1

    def test_the_trainer_hears_of_it_with_its_next_report(self, world: lw.World) -> None:
        claim, stop = w.running_job(world), threading.Event()
        progress = JobProgress(world.db, job_id=claim.job_id, epoch=claim.epoch, stop=stop)
        progress.step_finished(1)
        assert progress.stop_requested() is None
        ask(world, steering.pause_job, claim.job_id)
        progress.step_finished(2)
        assert progress.stop_requested() == "pause"
        stop.set()
        assert progress.stop_requested() == "cancel", "a cancel is the stronger wish"

    @pytest.mark.parametrize("state", ["cancelling", "succeeded"])
    def test_other_states_conflict(self, world: lw.World, state: str) -> None:
        claim = w.running_job(world)
        finished = now_us() if state == "succeeded" else None
        with world.db.transaction() as session:
            session.execute(update(Job).values(state=state, finished_at=finished))
        with pytest.raises(StateConflict):
            ask(world, steering.pause_job, claim.job_id)

    def test_one_that_only_starts_stops_before_it_has_paid_for_anything(
        self, world: lw.World
    ) -> None:
        claim = w.claimed_job(world)
        assert ask(world, steering.pause_job, claim.job_id)["status"] == "pausing"
        with pytest.raises(FencedOut):
            w.charge(world, claim, 0)
        left = leases.fail_attempt(world.db, claim.job_id, claim.epoch, "pause_requested", False)
        assert left is State.PAUSED and w.row(world.db, claim.job_id).pauses == 1
        assert "window.charge" not in w.entry_types(world.db, claim.job_id)
        assert ask(world, steering.resume_job, claim.job_id)["status"] == "queued"

    def test_one_that_waits_for_another_attempt_is_paused_at_once(self, world: lw.World) -> None:
        claim = w.running_job(world)
        leases.fail_attempt(world.db, claim.job_id, claim.epoch, "trainer_killed", False)
        assert ask(world, steering.pause_job, claim.job_id)["status"] == "paused"
        w.skip_back_off(world.db, claim.job_id)
        assert leases.claim(world.db, worker_id="wk_b") is None, "nobody takes it"
        assert ask(world, steering.resume_job, claim.job_id)["status"] == "queued"
        assert leases.claim(world.db, worker_id="wk_b") is not None

    def test_a_job_that_is_done_before_the_pause_succeeds(self, world: lw.World) -> None:
        claim = pausing_job(world)
        runtime.finish(
            world.db,
            claim.job_id,
            claim.epoch,
            final_state="succeeded",
            artifacts=[],
            certificate=None,
        )
        assert w.history(world.db, claim.job_id)[-2:] == ["pausing", "succeeded"]

    def test_a_worker_that_dies_leaves_it_paused(self, world: lw.World) -> None:
        claim = pausing_job(world)
        w.expire_lease(world.db, claim.job_id)
        assert leases.reap_expired(world.db) == [claim.job_id]
        row = w.row(world.db, claim.job_id)
        assert (row.state, row.reason_code, row.pauses) == ("paused", "pause_requested", 0)
        with pytest.raises(FencedOut):
            close_window(world, claim)
        with world.db.reading() as session:
            assert fsck.check_job(session, claim.job_id) == []

    def test_a_permanent_cause_fails_it(self, world: lw.World) -> None:
        claim = pausing_job(world)
        left = leases.fail_attempt(world.db, claim.job_id, claim.epoch, "data_unreadable", True)
        assert left is State.FAILED
        assert w.entry_types(world.db, claim.job_id)[-1] == "settle"

    def test_only_those_who_see_a_job_steer_it(self, world: lw.World) -> None:
        job = w.queue_job(world)
        for steer in (steering.pause_job, steering.resume_job):
            with pytest.raises(JobNotFound):
                ask(world, steer, job, "auditor")
        assert ask(world, steering.pause_job, job, "steward")["status"] == "paused"
        assert ask(world, steering.resume_job, job, "steward")["status"] == "queued"


def _held(world: lw.World, _job: str) -> int:
    with world.db.reading() as session:
        return epsilon_limits(session, world.population).blocks[0].held_pico


class TestResume:
    def test_it_rings_and_the_next_attempt_has_a_new_epoch(self, world: lw.World) -> None:
        claim = paused_job(world)
        answer = ask(world, steering.resume_job, claim.job_id)
        assert (answer["status"], answer["reason_code"]) == ("queued", "waiting_for_worker")
        assert w.outbox(world.db, claim.job_id)[-1] == ("doorbell", "queued")
        again = leases.claim(world.db, worker_id="wk_b")
        assert again == leases.Claim(job_id=claim.job_id, epoch=claim.epoch + 1)
        with pytest.raises(FencedOut):
            w.charge(world, claim, 1)
        saved = runtime.latest_checkpoint(world.db, claim.job_id)
        assert saved is not None and saved.step == 10
        w.charge(world, again, 1)
        types = w.entry_types(world.db, claim.job_id)
        assert types.count("window.charge") == 2 and "window.abandoned" not in types

    def test_asked_again_it_answers_with_the_job_as_it_stands(self, world: lw.World) -> None:
        claim = paused_job(world)
        ask(world, steering.resume_job, claim.job_id)
        assert ask(world, steering.resume_job, claim.job_id)["status"] == "queued"
        assert leases.claim(world.db, worker_id="wk_b") is not None
        assert ask(world, steering.resume_job, claim.job_id)["status"] == "running"
        assert w.history(world.db, claim.job_id).count("queued") == 2

    def test_a_job_still_on_its_way_to_the_pause_conflicts(self, world: lw.World) -> None:
        claim = pausing_job(world)
        with pytest.raises(StateConflict):
            ask(world, steering.resume_job, claim.job_id)

    def test_pauses_use_up_no_attempts(self, world: lw.World) -> None:
        claim = paused_job(world)
        ask(world, steering.resume_job, claim.job_id)
        again = leases.claim(world.db, worker_id="wk_b")
        assert again is not None
        left = leases.fail_attempt(
            world.db, claim.job_id, again.epoch, "trainer_killed", False, attempts_max=2
        )
        assert left is State.RECOVERING
        assert w.row(world.db, claim.job_id).not_before < now_us() + 5 * w.SECOND


class TestCancelOfAPause:
    def test_a_paused_job_is_over_at_once_and_only_executed_windows_are_spent(
        self, world: lw.World
    ) -> None:
        claim = paused_job(world)
        with world.db.reading() as session:
            spent = epsilon_limits(session, world.population).blocks[0].spent_pico
        answer = ask(world, steering.cancel_job, claim.job_id)
        assert answer["status"] == "cancelled"
        row = w.row(world.db, claim.job_id)
        assert row.epoch == claim.epoch + 1
        with world.db.reading() as session:
            block = epsilon_limits(session, world.population).blocks[0]
            assert fsck.check_job(session, claim.job_id) == []
        assert (block.held_pico, block.spent_pico) == (0, spent)
        assert w.entry_types(world.db, claim.job_id).count("settle") == 1

    def test_a_pausing_job_is_cancelled_when_its_process_is_gone(self, world: lw.World) -> None:
        claim = pausing_job(world)
        assert ask(world, steering.cancel_job, claim.job_id)["state"] == "cancelling"
        leases.fail_attempt(world.db, claim.job_id, claim.epoch, "pause_requested", False)
        assert w.history(world.db, claim.job_id)[-3:] == ["pausing", "cancelling", "cancelled"]


class TestHolds:
    @pytest.mark.parametrize(
        ("state", "days", "reason"),
        [("paused", 7, Reason.PAUSED_TOO_LONG), ("queued", 30, Reason.QUEUED_TOO_LONG)],
    )
    def test_an_old_hold_ends_and_its_escrow_returns(
        self, world: lw.World, state: str, days: int, reason: Reason
    ) -> None:
        job = w.queue_job(world)
        if state == "paused":
            ask(world, steering.pause_job, job)
        self._age(world, days * DAY - 60 * w.SECOND)
        assert steering.end_old_holds(world.db) == []
        self._age(world, days * DAY + w.SECOND)
        assert steering.end_old_holds(world.db) == [job]
        row = w.row(world.db, job)
        assert (row.state, row.reason_code) == ("cancelled", reason)
        assert _held(world, job) == 0

    def test_a_running_job_is_no_hold(self, world: lw.World) -> None:
        w.running_job(world)
        self._age(world, 90 * DAY)
        assert steering.end_old_holds(world.db) == []

    def _age(self, world: lw.World, microseconds: int) -> None:
        with world.db.transaction() as session:
            session.execute(update(Job).values(state_at=now_us() - microseconds))
