"""Coins in the ledger: committed before the first charge, revealed with the job's end, and what
the standalone verifier makes of a service that cheats about them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dp_core.audit.coins import CoinSeed
from service.artifacts.service import ArtifactFile
from service.audits.service import FoundAudit, summary_of
from service.database import now_us
from service.jobs import leases, runtime
from service.jobs.errors import FencedOut
from service.jobs.lifecycle import State
from service.ledger import fsck
from service.ledger import service as ledger
from service.ledger.errors import ChargeRefused
from service.webhooks.models import WebhookDelivery, WebhookEndpoint
from tests.deploy.test_verify_ledger import Parts, exported, put, run, take_apart
from tests.service.jobs import world as w
from tests.service.ledger import world as lw

MANIFEST, SEED = "a" * 64, bytes(range(32))
FILES = {"run_audit_report.json": "c" * 64, "run_audit_scores.npz": "d" * 64}


def commitment(seed: bytes = SEED) -> ledger.Commitment:
    return ledger.Commitment(
        commitment=CoinSeed(seed).commitment(MANIFEST), manifest_sha256=MANIFEST, canaries=1000
    )


def found(verdict: str = "PASS", *, tier: str = "T2", seed: bytes | None = SEED) -> FoundAudit:
    summary: dict[str, Any] = {
        "canaries": 1000,
        "one_run_lower_bound": None,
        "reasons": [],
        "report_sha256": FILES["run_audit_report.json"],
        "scores_sha256": FILES["run_audit_scores.npz"],
        "self_test": "FAIL" if verdict == "FAIL" else "PASS",
        "self_test_min_p": "0.2",
        "self_test_alarm_level": "1e-6",
        "steps": 10,
        "tier": tier,
        "verdict": verdict,
    }
    revealed = None if seed is None else seed.hex()
    return FoundAudit(verdict=verdict, summary=summary, report="{}", revealed_seed=revealed)


def committed_job(world: lw.World) -> leases.Claim:
    claim = w.claimed_job(world)
    runtime.commit_audit(world.db, claim.job_id, claim.epoch, commitment())
    for window in (0, 1):
        w.charge(world, claim, window)
        with world.db.transaction() as session:
            ledger.finish_window(
                session, job_id=claim.job_id, epoch=claim.epoch, window=window, steps_run=10
            )
    return claim


def finish(world: lw.World, claim: leases.Claim, audit: FoundAudit | None) -> None:
    with world.db.reading() as session:
        started = ledger.position(session, job_id=claim.job_id, epoch=claim.epoch).steps_started
    runtime.finish(
        world.db,
        claim.job_id,
        claim.epoch,
        final_state="succeeded",
        artifacts=[
            ArtifactFile(name=name, path=f"/{name}", sha256=digest, bytes=1)
            for name, digest in FILES.items()
        ],
        certificate=lw.claim_of(lw.plan(), started),
        audit=audit,
    )


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """The log of one audited job, as an auditor holds it."""
    directory = tmp_path_factory.mktemp("audited")
    with lw.sqlite_database(directory) as db:
        world = lw.open_world(db)
        finish(world, committed_job(world), found())
        yield take_apart(exported(world, directory), world)


class TestEntries:
    def test_the_order_in_the_log_is_commit_charge_reveal_settle(self, world: lw.World) -> None:
        claim = committed_job(world)
        finish(world, claim, found())
        assert w.entry_types(world.db, claim.job_id)[2:] == [
            "audit.committed",
            *["window.charge", "window.done"] * 2,
            "audit.revealed",
            "settle",
        ]
        with world.db.reading() as session:
            made = ledger.commitment_of(session, claim.job_id)
            assert made is not None and made.is_revealed
            assert fsck.check_job(session, claim.job_id) == []
            assert ledger.job_statement(session, claim.job_id)["disputed"] is False

    def test_a_commitment_is_entered_once_and_before_any_charge(self, world: lw.World) -> None:
        claim = committed_job(world)
        runtime.commit_audit(world.db, claim.job_id, claim.epoch, commitment())  # asked again
        assert w.entry_types(world.db, claim.job_id).count("audit.committed") == 1
        late = w.running_job(world)
        with pytest.raises(ChargeRefused, match="before the first charge"):
            runtime.commit_audit(world.db, late.job_id, late.epoch, commitment())

    def test_another_seed_reveals_nothing_and_the_job_does_not_end(self, world: lw.World) -> None:
        claim = committed_job(world)
        with pytest.raises(ChargeRefused, match="does not open"):
            finish(world, claim, found(seed=bytes(32)))
        assert w.state(world.db, claim.job_id) == State.RUNNING
        with world.db.reading() as session:
            assert summary_of(session, claim.job_id) is None

    def test_a_lost_attempt_commits_nothing(self, world: lw.World) -> None:
        claim = w.claimed_job(world)
        w.expire_lease(world.db, claim.job_id)
        with pytest.raises(FencedOut):
            runtime.commit_audit(world.db, claim.job_id, claim.epoch, commitment())

    def test_the_runs_audit_takes_the_place_of_the_preflights(self, world: lw.World) -> None:
        claim = committed_job(world)
        runtime.record_audit(
            world.db, claim.job_id, claim.epoch, found("INCONCLUSIVE", tier="T1", seed=None)
        )
        finish(world, claim, found())
        with world.db.reading() as session:
            assert (summary_of(session, claim.job_id) or {})["tier"] == "T2"


class TestFault:
    def test_a_fault_disputes_the_job_alerts_and_lets_no_adapter_out(self, world: lw.World) -> None:
        """Coins are revealed, an incident stands in the log, the spend stays."""
        claim = committed_job(world)
        _listen(world)
        runtime.record_audit(world.db, claim.job_id, claim.epoch, found("FAIL"))
        leases.fail_attempt(world.db, claim.job_id, claim.epoch, "audit_failed", True)
        kinds = w.entry_types(world.db, claim.job_id)
        assert kinds[-3:] == ["audit.revealed", "incident", "settle"]
        with world.db.reading() as session:
            statement = ledger.job_statement(session, claim.job_id)
            sent = session.query(WebhookDelivery).all()
            assert fsck.check_job(session, claim.job_id) == []
            assert ledger.has_incident(session, claim.job_id)
        assert statement["disputed"] is True
        assert statement["job_spent"] != "0"
        assert w.state(world.db, claim.job_id) == State.FAILED
        assert [d.type for d in sent] == ["ledger.alert"]
        assert "audit_failed" in sent[0].body and claim.job_id in sent[0].body

    def test_a_preflight_fault_is_an_incident_too(self, world: lw.World) -> None:
        claim = w.claimed_job(world)
        runtime.record_audit(
            world.db, claim.job_id, claim.epoch, found("FAIL", tier="T1", seed=None)
        )
        assert w.entry_types(world.db, claim.job_id)[-1] == "incident"


def _listen(world: lw.World) -> None:
    with world.db.transaction() as session:
        session.add(
            WebhookEndpoint(
                id="wh_test",
                tenant_id=world.tenant,
                created_by=world.proposer,
                url="https://alerts.example",
                events=["ledger.alert"],
                state="active",
                secret="sealed",
                version=1,
                created_at=now_us(),
            )
        )


class TestVerifier:
    def test_an_honest_log_passes(
        self, told: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, said = run(told.write(tmp_path / "b.zip"), capsys)
        assert code == 0, said

    @pytest.mark.parametrize(
        ("kind", "change", "problem"),
        [
            ("audit.committed", put("data", "commitment", to="0" * 64), "does not open"),
            ("audit.committed", put("data", "manifest", to="0" * 64), "does not open"),
            ("audit.committed", put("actor", to="wk_other"), "another worker"),
            ("audit.revealed", put("data", "seed", to="0" * 64), "does not open"),
            ("audit.revealed", put("data", "verdict", to="splendid"), "unknown verdict"),
            ("audit.revealed", put("data", "verdict", to="fail"), "found a fault"),
            ("audit.revealed", put("data", "report", to="0" * 64), "than revealed"),
            ("audit.revealed", put("data", "verdict", to="inconclusive"), "than revealed"),
        ],
    )
    def test_a_changed_entry_is_found(
        self,
        told: Parts,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        kind: str,
        change: Any,
        problem: str,
    ) -> None:
        forged = told.edited(told.find(kind), change)
        code, said = run(forged.write(tmp_path / "b.zip"), capsys)
        assert (code, problem in said) == (1, True), said

    @pytest.mark.parametrize(
        ("moved", "behind", "problem"),
        [
            ("audit.committed", "window.charge", "after the first charge"),
            ("audit.revealed", "window.charge", "inside a window"),
            ("audit.revealed", "window.done", "after the audit's coins were revealed"),
        ],
    )
    def test_another_order_is_found(
        self,
        told: Parts,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        moved: str,
        behind: str,
        problem: str,
    ) -> None:
        bodies = told.bodies()
        body = bodies.pop(told.find(moved))
        place = [b["type"] for b in bodies].index(behind)
        bodies.insert(place + 1, body)
        code, said = run(told.rechained(bodies).write(tmp_path / "b.zip"), capsys)
        assert (code, problem in said) == (1, True), said

    def test_files_of_a_disputed_job_are_found(
        self, told: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bodies = told.bodies()
        at = told.find("audit.revealed")
        data = {
            "epoch": 1,
            "job": bodies[at]["data"]["job"],
            "reason": "audit_failed",
            "report": "c" * 64,
        }
        bodies.insert(at, bodies[at] | {"type": "incident", "idem": "x/incident/1", "data": data})
        code, said = run(told.rechained(bodies).write(tmp_path / "b.zip"), capsys)
        assert (code, "files of a job whose audit found a fault" in said) == (1, True), said

    def test_coins_that_were_never_committed_are_found(
        self, told: Parts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bodies = told.bodies()
        del bodies[told.find("audit.committed")]
        code, said = run(told.rechained(bodies).write(tmp_path / "b.zip"), capsys)
        assert (code, "never committed" in said) == (1, True), said
