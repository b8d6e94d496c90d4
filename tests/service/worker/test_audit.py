"""An attempt audits itself before it opens data: what is kept, shown, and what a fault does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dp_core.audit.saved import REPORT_FILE, SCORES_FILE, SavedAudit, differences
from dp_core.base_model import load_base
from dp_core.events import canonical_json
from dp_core.lora import attach_adapters
from dp_core.noise import NoiseSource, SeededSource
from dp_core.plan import AdapterPlan, Performance, RunPlan
from service.audits import service as audits
from service.audits.models import JobAudit
from service.certificates.facts import sections_of
from service.certificates.label import label_text
from service.certificates.service import visible_certificate
from service.demo import models
from service.jobs import errors as runtime_errors
from service.jobs import leases, runtime
from service.jobs.lifecycle import State
from service.jobs.models import Job
from service.jobs.repository import page_of_events
from service.jobs.views import job_answer
from service.ledger import service as ledger
from service.ledger.anomalies import anomalies_of
from service.worker import audit
from service.worker.exit_codes import ExitCode, failure_of
from service.worker.runner import exit_code_of
from tests.service.jobs import world as w
from tests.service.ledger import world as lw

PERFORMANCE = Performance(patients_per_microbatch=2)


class HalvedNoise(SeededSource):
    def _gaussian(self, length: int) -> torch.Tensor:
        return super()._gaussian(length) / 2


@pytest.fixture(scope="module")
def model() -> Any:
    base, _ = load_base(models.path(), PERFORMANCE)
    return attach_adapters(base, AdapterPlan(r=4, alpha=8), seed=3)


def claimed(world: lw.World, directory: Path) -> leases.Claim:
    _, version = w.add_dataset(world, directory)
    return w.claimed_job(world, version=version, job_dir=str(directory / "job"))


def audited(world: lw.World, directory: Path, model: Any) -> leases.Claim:
    claim = claimed(world, directory)
    work = runtime.load_work(world.db, claim.job_id, claim.epoch)
    plan = RunPlan.from_dict(work.plan)
    audit.audit_before_data(world.db, work, plan, model, PERFORMANCE)
    return claim


def summary(world: lw.World, job_id: str) -> dict[str, Any]:
    with world.db.reading() as session:
        found = audits.summary_of(session, job_id)
    assert found is not None
    return found


class TestSilent:
    def test_report_and_scores_lie_with_the_job_and_recompute(
        self, world: lw.World, tmp_path: Path, model: Any
    ) -> None:
        claim = audited(world, tmp_path, model)
        directory = tmp_path / "job" / "audit-1"
        content = (directory / REPORT_FILE).read_bytes()
        saved = SavedAudit.from_json(content)
        assert differences(saved, (directory / SCORES_FILE).read_bytes()) == ()
        told = summary(world, claim.job_id)
        assert (told["self_test"], told["verdict"]) == ("PASS", "INCONCLUSIVE")
        with world.db.reading() as session:
            row = session.get_one(JobAudit, (claim.job_id, 1))
            shown = job_answer(session, session.get_one(Job, claim.job_id))
            assert [a.kind for a in anomalies_of(session, world.tenant)].count("audit_failed") == 0
        assert row.report.encode() == content
        assert shown["audit"] == told
        assert canonical_json(told) == row.summary.encode()

    def test_the_words_claim_no_more_than_was_attacked(
        self, world: lw.World, tmp_path: Path, model: Any
    ) -> None:
        """AU34: never verified, measured, certified epsilon, attack-proof."""
        told = summary(world, audited(world, tmp_path, model).job_id)
        words = f"{audits.headline(told)}. {audits.limits(told)}. {told['statement']}".lower()
        assert "on synthetic text: no fault found in 5 steps" in words
        assert "the run on patients' records was not attacked" in words
        assert "t2 was not run" in words
        assert not [w for w in ("verified", "measured", "certified", "proof") if w in words]
        assert told["one_run_lower_bound"] is None


class TestFault:
    @pytest.fixture
    def failed(
        self, world: lw.World, tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> leases.Claim:
        def halved(_: str) -> NoiseSource:
            return HalvedNoise(3)

        monkeypatch.setattr(audit, "make_noise_source", halved)
        with pytest.raises(audit.AuditFailed) as raised:
            audited(world, tmp_path, model)
        code = exit_code_of(raised.value)
        assert code is ExitCode.AUDIT_FAILED
        with world.db.reading() as session:
            job_id = session.query(Job.id).scalar()
        reason, permanent = failure_of(code)
        state = leases.fail_attempt(world.db, job_id, 1, reason, permanent)
        assert state is State.FAILED
        return leases.Claim(job_id=job_id, epoch=1)

    def test_it_ends_the_job_before_any_charge(self, world: lw.World, failed: leases.Claim) -> None:
        row = w.row(world.db, failed.job_id)
        assert (row.state, row.reason_code) == ("failed", "audit_failed")
        with world.db.reading() as session:
            statement = ledger.job_statement(session, failed.job_id)
            assert statement["windows"] == []
            assert {b["spent_pico"] for b in statement["blocks"]} == {"0"}

    def test_admin_and_owner_are_told_with_the_figures(
        self, world: lw.World, failed: leases.Claim
    ) -> None:
        with world.db.reading() as session:
            found = next(a for a in anomalies_of(session, world.tenant) if a.kind == "audit_failed")
            told = job_answer(session, session.get_one(Job, failed.job_id))["audit"]
            events = page_of_events(session, failed.job_id, after=None, limit=20)[0]
        assert found.subject == f"{failed.job_id}/1"
        assert found.to_dict()["detail"]["report_sha256"] == told["report_sha256"]
        assert float(told["self_test_min_p"]) < 1e-9
        assert (told["verdict"], told["self_test"]) == ("FAIL", "FAIL")
        assert any("self-test: variance at step 1" in reason for reason in told["reasons"])
        line = next(e for e in events if "Audit before training" in e.message)
        assert line.level == "error"
        assert json.loads(line.data)["audit"]["verdict"] == "FAIL"


def test_an_attempt_that_lost_its_job_stores_nothing(
    world: lw.World, tmp_path: Path, model: Any
) -> None:
    claim = claimed(world, tmp_path)
    work = runtime.load_work(world.db, claim.job_id, claim.epoch)
    leases.fail_attempt(world.db, claim.job_id, 1, "worker_stopped", False)
    with pytest.raises(runtime_errors.FencedOut):
        audit.audit_before_data(world.db, work, RunPlan.from_dict(work.plan), model, PERFORMANCE)
    with world.db.reading() as session:
        assert audits.newest(session, claim.job_id) is None


def test_a_certificate_without_an_audit_says_so(world: lw.World) -> None:
    job = lw.run_job(world, run_plan=lw.plan())
    with world.db.reading() as session:
        statement = json.loads(visible_certificate(session, world.tenant, job).body)
    assert "Empirical audit: none was made" in label_text(statement["predicate"])
    evidence = next(s for s in sections_of(statement) if s.title == "Evidence")
    assert [f.value for f in evidence.facts if f.name == "Empirical audit"] == ["none was made"]
