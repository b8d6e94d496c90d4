"""What an attempt reports and how it ends a job with its adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from dp_core.errors import PlanInvalid
from service.artifacts.models import Artifact
from service.artifacts.service import release_state
from service.certificates.models import Certificate
from service.jobs import leases, repository, runtime, views
from service.jobs.errors import FencedOut, StateConflict
from service.jobs.lifecycle import State
from service.jobs.models import Job
from service.ledger import service as ledger
from service.metrics import DECLARATIONS, UndeclaredMetric
from tests.service.jobs import world as w
from tests.service.ledger import world as lw

FILES = [
    runtime.ArtifactFile(name="adapter_model.safetensors", path="a", sha256="a" * 64, bytes=10),
    runtime.ArtifactFile(name="adapter_config.json", path="b", sha256="b" * 64, bytes=3),
]
CLAIM = lw.claim_of(lw.plan(), 10)


def finish(world: lw.World, claim: leases.Claim, **changes: Any) -> None:
    values: dict[str, Any] = {
        "final_state": "succeeded",
        "artifacts": FILES,
        "certificate": CLAIM,
    }
    runtime.finish(world.db, claim.job_id, claim.epoch, **(values | changes))


def metric(name: str = "loss_noised", value: str = "2.5", **changes: Any) -> runtime.Metric:
    return runtime.Metric(**({"name": name, "step": 10, "value_text": value} | changes))


def record(world: lw.World, claim: leases.Claim, *metrics: runtime.Metric, step: int = 10) -> None:
    runtime.record_window(
        world.db,
        claim.job_id,
        claim.epoch,
        step=step,
        window=0,
        metrics=metrics,
        event_message="Window 0 finished.",
        event_data={"step": step},
    )


def points(world: lw.World, job_id: str) -> list[tuple[str, str, int, str, int]]:
    with world.db.reading() as session:
        rows = repository.metrics_of(session, job_id)
        return [(row.name, row.group_id, row.step, row.value, row.epoch) for row in rows]


class TestLoadWork:
    def test_it_holds_all_a_trainer_needs(self, world: lw.World, tmp_path: Path) -> None:
        _, version = w.add_dataset(world, tmp_path)
        claim = w.claimed_job(world, version=version)
        work = runtime.load_work(world.db, claim.job_id, claim.epoch)
        assert (work.worker_id, work.epoch, work.tenant_id) == ("wk_a", 1, world.tenant)
        assert work.plan == lw.plan().to_dict() and work.plan_digest == lw.plan().digest()
        assert work.dataset_version == version
        assert len(work.split_key) == 32

    def test_the_split_key_stays_out_of_its_text(self, world: lw.World, tmp_path: Path) -> None:
        _, version = w.add_dataset(world, tmp_path)
        claim = w.claimed_job(world, version=version)
        work = runtime.load_work(world.db, claim.job_id, claim.epoch)
        assert repr(work.split_key) not in repr(work)


class TestReports:
    def test_a_window_stores_points_event_and_progress(self, world: lw.World) -> None:
        claim = w.running_job(world)
        record(world, claim, metric(), metric("clip_norm", "0.05", group="0.q.A"))
        job = w.row(world.db, claim.job_id)
        assert (job.step, job.window_no) == (10, 1)
        assert points(world, claim.job_id) == [
            ("clip_norm", "0.q.A", 10, "0.05", 1),
            ("loss_noised", "", 10, "2.5", 1),
        ]

    def test_an_undeclared_name_cannot_be_written(self, world: lw.World) -> None:
        claim = w.running_job(world)
        with pytest.raises(UndeclaredMetric):
            record(world, claim, metric(), metric("loss_raw"))
        assert points(world, claim.job_id) == []
        assert w.row(world.db, claim.job_id).step == 0

    @pytest.mark.parametrize("value", ["nan", "inf", "a note about a patient"])
    def test_a_value_that_is_no_finite_decimal_cannot_be_written(
        self, world: lw.World, value: str
    ) -> None:
        claim = w.running_job(world)
        with pytest.raises(PlanInvalid):
            record(world, claim, metric(value=value))
        assert points(world, claim.job_id) == []

    def test_a_redone_window_overwrites_the_lost_points(self, world: lw.World) -> None:
        claim = w.running_job(world)
        record(world, claim, metric(value="2.5"))
        leases.fail_attempt(world.db, claim.job_id, 1, "trainer_killed", False)
        w.skip_back_off(world.db, claim.job_id)
        again = leases.claim(world.db, worker_id="wk_b")
        assert again is not None
        record(world, again, metric(value="2.4"))
        assert points(world, claim.job_id) == [("loss_noised", "", 10, "2.4", 2)]

    def test_an_evaluation_stands_beside_the_entry_that_paid(self, world: lw.World) -> None:
        claim = w.running_job(world)
        runtime.record_evaluation(
            world.db,
            claim.job_id,
            claim.epoch,
            step=10,
            loss="3.1",
            std="0.2",
            reference="tn_a/2026#9",
        )
        with world.db.reading() as session:
            rows, _ = repository.page_of_events(session, claim.job_id, after=None, limit=1)
            assert json.loads(rows[0].data)["reference"] == "tn_a/2026#9"

    def test_series_are_thinned_with_their_ends_kept(self, world: lw.World) -> None:
        claim = w.running_job(world)
        record(world, claim, *(metric(value=str(n), step=n) for n in range(1, 100)), step=99)
        with world.db.reading() as session:
            rows = repository.metrics_of(session, claim.job_id)
            series = views.metrics_answer(rows, max_points=5)["series"]
        assert series[0]["class"] == "private_noised"
        assert len(series[0]["points"]) == 5
        assert series[0]["points"][0] == [1, "1"] and series[0]["points"][-1] == [99, "99"]

    def test_every_declared_metric_has_a_class_and_a_meaning(self) -> None:
        assert all(d.release_class and d.meaning for d in DECLARATIONS.values())
        noised = {n for n, d in DECLARATIONS.items() if d.release_class == "private_noised"}
        assert noised == {n for n in DECLARATIONS if n.endswith("_noised")}


class TestCheckpoints:
    def test_the_newest_committed_one_is_found(self, world: lw.World) -> None:
        claim = w.running_job(world)
        assert runtime.latest_checkpoint(world.db, claim.job_id) is None
        for step in (10, 20):
            runtime.record_checkpoint(
                world.db,
                claim.job_id,
                claim.epoch,
                step=step,
                window=step // 10 - 1,
                directory=f"attempt-1/step-{step}",
                sha256="c" * 64,
            )
        assert runtime.latest_checkpoint(world.db, claim.job_id) == runtime.CheckpointRow(
            step=20, window=1, epoch=1, directory="attempt-1/step-20", sha256="c" * 64
        )

    def test_it_shows_the_noised_loss_and_what_was_spent_by_then(self, world: lw.World) -> None:
        claim = w.running_job(world)
        record(world, claim, metric())
        runtime.record_checkpoint(
            world.db, claim.job_id, 1, step=10, window=0, directory="d", sha256="c" * 64
        )
        with world.db.reading() as session:
            job = session.get_one(Job, claim.job_id)
            rows, _ = repository.page_of_checkpoints(session, job.id, after=None, limit=5)
            shown = views.checkpoint_answers(session, job, rows)[0]
        assert shown["metrics"]["train_loss"] == 2.5
        assert float(shown["metrics"]["epsilon_so_far"]) > 0


class TestFinish:
    def test_state_settle_certificate_and_files_come_together(self, world: lw.World) -> None:
        claim = w.running_job(world)
        finish(world, claim)
        job = w.row(world.db, claim.job_id)
        assert (job.state, job.reason_code) == ("succeeded", "target_reached")
        assert job.lease_owner is None and job.finished_at is not None
        assert w.entry_types(world.db, claim.job_id)[-1] == "settle"
        with world.db.reading() as session:
            names = session.scalars(select(Artifact.name).order_by(Artifact.name)).all()
            certificate = session.get_one(Certificate, claim.job_id)
            statement = ledger.job_statement(session, claim.job_id)
            assert names == ["adapter_config.json", "adapter_model.safetensors"]
            assert statement["settled"]["certificate"] == certificate.digest
            assert statement["settled"]["artifacts"] == {f.name: f.sha256 for f in FILES}
            assert release_state(session, claim.job_id) == "none"

    def test_an_attempt_that_found_every_step_done_only_started_and_may_end_the_job(
        self, world: lw.World
    ) -> None:
        """Its worker left after the last window: the next one has nothing to charge."""
        claim = w.running_job(world)
        with world.db.transaction() as session:
            runtime.fence(session, claim.job_id, claim.epoch)
            ledger.finish_window(
                session, job_id=claim.job_id, epoch=claim.epoch, window=0, steps_run=10
            )
        leases.fail_attempt(
            world.db, claim.job_id, claim.epoch, "worker_stopped", False, is_saved=True
        )
        again = leases.claim(world.db, worker_id="wk_b", job_id=claim.job_id)
        assert again is not None and w.state(world.db, claim.job_id) == "starting"
        finish(world, again)
        assert w.history(world.db, claim.job_id)[-2:] == ["running", "succeeded"]

    def test_asked_again_after_a_lost_reply_it_changes_nothing(self, world: lw.World) -> None:
        claim = w.running_job(world)
        finish(world, claim)
        before = w.history(world.db, claim.job_id)
        finish(world, claim)
        assert w.history(world.db, claim.job_id) == before

    def test_a_budget_stop_has_an_adapter_too(self, world: lw.World) -> None:
        claim = w.running_job(world)
        finish(world, claim, final_state="budget_stopped", reason_code="margin_used")
        job = w.row(world.db, claim.job_id)
        assert (job.state, job.reason_code) == ("budget_stopped", "margin_used")

    def test_a_test_run_without_certificate_settles_without_one(self, world: lw.World) -> None:
        claim = w.running_job(world)
        finish(world, claim, certificate=None)
        with world.db.reading() as session:
            assert session.get(Certificate, claim.job_id) is None

    @pytest.mark.parametrize("state", ["cancelled", "failed", "recovering"])
    def test_other_ends_are_not_the_trainers_to_write(self, world: lw.World, state: str) -> None:
        claim = w.running_job(world)
        with pytest.raises(StateConflict):
            finish(world, claim, final_state=state)
        assert w.state(world.db, claim.job_id) == "running"

    def test_a_job_being_cancelled_cannot_succeed(self, world: lw.World) -> None:
        claim = w.running_job(world)
        with world.db.transaction() as session:
            w.ask_to_cancel(session, claim.job_id)
        with pytest.raises(FencedOut):
            finish(world, claim)
        assert (
            leases.fail_attempt(world.db, claim.job_id, claim.epoch, "worker_stopped", False)
            is State.CANCELLED
        )

    def test_nothing_stays_when_a_part_of_it_fails(self, world: lw.World) -> None:
        claim = w.running_job(world)
        with pytest.raises(PlanInvalid):
            # a float has no canonical form
            finish(world, claim, certificate={**CLAIM, "utility": 1.5})
        assert w.state(world.db, claim.job_id) == "running"
        with world.db.reading() as session:
            assert session.scalars(select(Artifact)).all() == []
        assert w.entry_types(world.db, claim.job_id)[-1] == "window.charge"
