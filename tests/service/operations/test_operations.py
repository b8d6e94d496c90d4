"""Workers, queue, alerts and failures, from rows to the API's answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import update

from service.audits.models import JobAudit
from service.auth.subject import Subject
from service.database import Database, now_us
from service.fleet import registry
from service.fleet.models import Worker
from service.jobs import leases
from service.jobs.lifecycle import Reason, State
from service.jobs.models import Job, Outbox
from service.ledger import guard
from service.operations import alerts
from service.operations.failures import ADVICE, failure_groups
from service.operations.fleet import Fleet, fleet_of
from service.operations.queue import count_waiting, waiting_jobs
from service.operations.summary import summary_answer, summary_of
from tests.service.jobs import world as jw
from tests.service.ledger import world as lw

MINUTE = 60_000_000


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with lw.sqlite_database(tmp_path) as made:
        yield made


@pytest.fixture
def world(db: Database) -> lw.World:
    return lw.open_world(db)


def admin_of(world: lw.World) -> Subject:
    return Subject(principal_id=world.admin, tenant_id=world.tenant, role="admin")


def join(db: Database, worker_id: str, **changes: Any) -> None:
    registry.join(db, worker_id, device="CPU, 2 cores", version="0.1.0", beat_seconds=15)
    if changes:
        with db.transaction() as session:
            session.execute(update(Worker).where(Worker.id == worker_id).values(**changes))


def fleet(world: lw.World) -> Fleet:
    with world.db.reading() as session:
        return fleet_of(session, admin_of(world))


def whys(world: lw.World, **asked: Any) -> list[tuple[str, int | None, str]]:
    with world.db.reading() as session:
        admin = admin_of(world)
        lines = waiting_jobs(session, admin, fleet_of(session, admin), limit=50, **asked)
        return [(line.job.id, line.place, line.code) for line in lines]


def codes(world: lw.World, directory: Path) -> dict[str, str]:
    with world.db.reading() as session:
        admin = admin_of(world)
        found = alerts.alerts_of(session, admin, fleet_of(session, admin), directory)
        return {alert.code: alert.subject for alert in found if alert.code != "disk_nearly_full"}


def change(db: Database, job: str, **values: Any) -> None:
    with db.transaction() as session:
        session.execute(update(Job).where(Job.id == job).values(**values))


class TestFleet:
    def test_standing_follows_beats_leases_and_goodbyes(self, world: lw.World) -> None:
        db = world.db
        for name in ("wk_a", "wk_idle", "wk_gone"):
            join(db, name)
        join(db, "wk_deaf", heard_at=now_us() - 46_000_000)
        join(db, "wk_late", heard_at=now_us() - 30_000_000)
        join(db, "wk_old", heard_at=now_us() - 25 * 60 * MINUTE)
        registry.leave(db, "wk_gone")
        job = jw.claimed_job(world).job_id  # held by wk_a
        found = fleet(world)
        standing = {line.worker.id: (line.standing, line.job) for line in found.workers}
        assert standing == {
            "wk_a": ("busy", job),
            "wk_idle": ("idle", None),
            "wk_gone": ("left", None),
            "wk_deaf": ("deaf", None),
            "wk_late": ("idle", None),
        }
        assert (found.alive, found.busy, found.idle, found.takers) == (3, 1, 2, 3)

    def test_a_beat_brings_a_silent_worker_back(self, world: lw.World) -> None:
        join(world.db, "wk_b", heard_at=now_us() - 5 * MINUTE)
        assert fleet(world).workers[0].standing == "deaf"
        registry.beat(world.db, "wk_b")
        assert fleet(world).workers[0].standing == "idle"

    def test_another_hospitals_job_is_busy_without_a_name(self, world: lw.World) -> None:
        join(world.db, "wk_a")
        jw.claimed_job(world)
        other = lw.open_world(world.db)
        with world.db.reading() as session:
            line = fleet_of(session, admin_of(other)).workers[0]
        assert (line.standing, line.job, line.is_busy) == ("busy", None, True)

    def test_a_lease_that_is_over_is_no_work(self, world: lw.World) -> None:
        join(world.db, "wk_a")
        jw.expire_lease(world.db, jw.claimed_job(world).job_id)
        assert fleet(world).workers[0].standing == "idle"


class TestQueue:
    def test_its_order_is_the_one_that_workers_take(self, world: lw.World) -> None:
        db, other = world.db, lw.open_world(world.db)
        jw.claimed_job(world)  # this hospital runs one already, so the other one's come first
        first, urgent = jw.queue_job(world), jw.queue_job(world, priority=1)
        theirs = jw.queue_job(other)
        assert [line[:2] for line in whys(world)] == [(urgent, 1), (first, 3)]
        taken = []
        for _ in range(3):
            claim = leases.claim(db, worker_id="wk_b")
            assert claim is not None
            taken.append(claim.job_id)
        assert taken == [urgent, theirs, first]

    def test_each_job_tells_why_it_waits(self, world: lw.World) -> None:
        db = world.db
        first, second = jw.queue_job(world), jw.queue_job(world)
        later = jw.queue_job(world, not_before=now_us() + 60 * MINUTE, reason_code="lease_expired")
        paused = jw.queue_job(world, state="paused", reason_code="pause_requested")
        dead = [(first, 1, "no_worker"), (second, 2, "no_worker"), (later, 3, "backing_off")]
        assert whys(world) == [*dead, (paused, None, "paused")]
        join(db, "wk_a")
        free = {job: code for job, _, code in whys(world)}
        assert (free[first], free[second]) == ("about_to_start", "waiting_for_worker")
        with db.transaction() as session:
            assert registry.drain(session, "wk_a") is not None
        assert whys(world)[0][2] == "workers_draining"

    def test_pages_follow_each_other_through_queue_and_pauses(self, world: lw.World) -> None:
        for state in ("queued", "queued", "paused", "paused"):
            jw.queue_job(world, state=state)
        whole = [line[0] for line in whys(world)]
        for index in range(4):
            assert [line[0] for line in whys(world, after=whole[index])] == whole[index + 1 :]
        with world.db.reading() as session:
            assert count_waiting(session, admin_of(world)) == 4


class TestAlerts:
    def test_a_quiet_house_has_none(self, world: lw.World, tmp_path: Path) -> None:
        join(world.db, "wk_a")
        jw.queue_job(world)
        assert codes(world, tmp_path) == {}

    def test_ledger_workers_and_queue(self, world: lw.World, tmp_path: Path) -> None:
        join(world.db, "wk_d", heard_at=now_us() - 10 * MINUTE)
        old = now_us() - 11 * MINUTE
        jw.queue_job(world, created_at=old, not_before=old, state_at=old)
        with world.db.transaction() as session:
            guard.halt(session, reason="invariant:I1", seen_size=0)
        found = codes(world, tmp_path)
        assert set(found) == {"ledger_halted", "worker_deaf", "queue_stuck"}
        assert found["worker_deaf"] == "wk_d"

    def test_a_busy_fleet_is_no_stuck_queue(self, world: lw.World, tmp_path: Path) -> None:
        join(world.db, "wk_a")
        jw.claimed_job(world)
        old = now_us() - 11 * MINUTE
        jw.queue_job(world, created_at=old, not_before=old, state_at=old)
        assert codes(world, tmp_path) == {}

    def test_lost_leases_and_repeated_failures(self, world: lw.World, tmp_path: Path) -> None:
        db = world.db
        claim = jw.running_job(world)
        jw.expire_lease(db, claim.job_id)
        leases.reap_expired(db)
        assert codes(world, tmp_path) == {"lease_lost": claim.job_id}
        jw.skip_back_off(db, claim.job_id)
        again = leases.claim(db, worker_id="wk_b", job_id=claim.job_id)
        assert again is not None
        assert codes(world, tmp_path) == {"lease_lost": claim.job_id}
        leases.fail_attempt(db, claim.job_id, again.epoch, Reason.TRAINER_CRASHED, False)
        assert codes(world, tmp_path) == {"failed_twice": claim.job_id}

    def test_a_dispatcher_that_reaps_nothing(self, world: lw.World, tmp_path: Path) -> None:
        job = jw.running_job(world).job_id
        change(world.db, job, lease_expires_at=now_us() - 3 * MINUTE)
        with world.db.transaction() as session:
            session.execute(update(Outbox).values(created_at=1, not_before=1))
        assert set(codes(world, tmp_path)) == {"lease_unreaped", "doorbells_unsent"}

    def test_failed_audits_and_budgets(self, world: lw.World, tmp_path: Path) -> None:
        job = jw.queue_job(world)
        change(world.db, job, state=State.PAUSED.value)
        with world.db.transaction() as session:
            session.add(
                JobAudit(
                    job_id=job, epoch=1, tenant_id=world.tenant, verdict="FAIL",
                    summary="{}", report="{}", created_at=now_us(),
                )
            )  # fmt: skip
        assert codes(world, tmp_path) == {"audit_failed": job}
        with world.db.reading() as session:
            admin, none = admin_of(world), Fleet(workers=())
            nearly = {(world.population, "train"): 0.8, (world.population, "validation"): 0.79}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(alerts.accounts, "used_ratios", lambda *_: nearly)
                told = alerts.alerts_of(session, admin, none, tmp_path)
        (budget,) = [alert for alert in told if alert.code == "budget_nearly_gone"]
        assert budget.cause == "80% of the train block's limit is spent or held."

    @pytest.mark.parametrize(
        ("change", "code", "said"),
        [
            ({"missing": ["noise_off"]}, "controls_failed", "did not find: noise_off. No audit"),
            ({"false_alarms": 1}, "controls_failed", "rang on the engine without a fault"),
            ({"why": "timed_out"}, "controls_not_run", "INCONCLUSIVE"),
        ],
    )
    def test_an_audit_whose_alarm_was_not_heard(
        self, world: lw.World, tmp_path: Path, change: dict[str, Any], code: str, said: str
    ) -> None:
        folder = tmp_path / "audit-controls"
        folder.mkdir()
        good = {"device": "cpu", "image_digest": None, "missing": [], "false_alarms": 0}
        (folder / "a.json").write_text(json.dumps(good))
        assert codes(world, tmp_path) == {}
        (folder / "a.json").write_text(json.dumps(good | change))
        assert codes(world, tmp_path) == {code: ""}
        with world.db.reading() as session:
            told = alerts.alerts_of(session, admin_of(world), Fleet(workers=()), tmp_path)
        (alert,) = [alert for alert in told if alert.code == code]
        assert said in alert.cause and "rldp audit --controls" in alert.advice

    def test_a_full_disk(
        self, world: lw.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = SimpleNamespace(total=100 * 2**30, free=9 * 2**30)
        monkeypatch.setattr(alerts.shutil, "disk_usage", lambda _: usage)
        with world.db.reading() as session:
            found = alerts.alerts_of(session, admin_of(world), Fleet(workers=()), tmp_path)
        assert [alert.code for alert in found] == ["disk_nearly_full"]
        assert "9 GiB" in found[0].cause

    def test_jobs_of_another_hospital_alarm_nobody_here(
        self, world: lw.World, tmp_path: Path
    ) -> None:
        jw.expire_lease(world.db, jw.running_job(world).job_id)
        leases.reap_expired(world.db)
        assert codes(lw.open_world(world.db), tmp_path) == {}


def test_failures_are_grouped_with_advice(world: lw.World, tmp_path: Path) -> None:
    db = world.db
    for reason in (Reason.OUT_OF_MEMORY, Reason.OUT_OF_MEMORY, Reason.AUDIT_FAILED):
        claim = jw.claimed_job(world)
        leases.fail_attempt(db, claim.job_id, claim.epoch, reason, True)
    with db.reading() as session:
        groups = failure_groups(session, admin_of(world))
        told = summary_answer(summary_of(session, admin_of(world), tmp_path))
        others = failure_groups(session, admin_of(lw.open_world(db)))
    assert [(group.reason, group.count, len(group.jobs)) for group in groups] == [
        ("out_of_memory", 2, 2),
        ("audit_failed", 1, 1),
    ]
    assert told["failures"][1]["advice"] == ADVICE[Reason.AUDIT_FAILED]
    assert told["jobs"]["failed"] == 3 and told["events"][0]["level"] == "error"
    assert others == []


def test_every_reason_to_fail_has_advice() -> None:
    """All but those that end a job well, by request or by time, and what waits."""
    fine = {"waiting_for_worker", "target_reached", "budget_used", "margin_used"}
    ended = {"cancel_requested", "pause_requested", "paused_too_long", "queued_too_long"}
    assert {reason.value for reason in Reason} - fine - ended == {r.value for r in ADVICE}
