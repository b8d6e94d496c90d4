"""Coins of a job over its attempts: sealed, committed, the same again; or honestly absent."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from dp_core.audit.errors import AuditInvalid
from dp_core.base_model import load_base
from dp_core.lora import attach_adapters
from dp_core.plan import AdapterPlan, Performance, RunPlan
from service.demo import models
from service.jobs import leases, runtime
from service.ledger import service as ledger
from service.worker import run_audit
from service.worker.sealed import SealedPieces
from tests.service.jobs import world as w
from tests.service.ledger import world as lw

KEY = b"k" * 32


@pytest.fixture(scope="module")
def model() -> Any:
    base, _ = load_base(models.path(), Performance(patients_per_microbatch=2))
    return attach_adapters(base, AdapterPlan(r=4, alpha=8), seed=3)


def claimed(world: lw.World, directory: Path, name: str = "job") -> leases.Claim:
    _, version = w.add_dataset(world, directory)
    return w.claimed_job(world, version=version, job_dir=str(directory / name))


def opened(
    world: lw.World, claim: leases.Claim, model: Any
) -> tuple[run_audit.RunAudit | None, runtime.Work]:
    work = runtime.load_work(world.db, claim.job_id, claim.epoch)
    plan = RunPlan.from_dict(work.plan)
    return run_audit.open_run_audit(world.db, work, plan, model), work


def taken_over(world: lw.World, claim: leases.Claim) -> leases.Claim:
    leases.fail_attempt(world.db, claim.job_id, claim.epoch, "worker_stopped", False)
    w.skip_back_off(world.db, claim.job_id)
    again = leases.claim(
        world.db, worker_id="wk_b", job_id=claim.job_id, lease_seconds=w.LEASE_SECONDS
    )
    assert again is not None
    return again


class TestOverAttempts:
    def test_the_next_attempt_has_the_same_coins(
        self, world: lw.World, tmp_path: Path, model: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        claim = claimed(world, tmp_path)
        first, _ = opened(world, claim, model)
        w.charge(world, claim, 0)
        second, work = opened(world, taken_over(world, claim), model)
        assert first is not None and second is not None
        assert second.reference == first.reference
        assert (first.steps._is_member == second.steps._is_member).all()
        assert w.entry_types(world.db, claim.job_id).count("audit.committed") == 1
        seed = first.steps._seed.reveal()
        files = list(Path(work.job_dir).rglob("*"))
        assert any(f.name == "coins.sealed" for f in files)
        for place in (caplog.text, *(f.read_bytes().hex() for f in files if f.is_file())):
            assert seed not in place
            assert seed.encode().hex() not in place

    def test_lost_coins_end_the_audit_and_not_the_job(
        self, world: lw.World, tmp_path: Path, model: Any
    ) -> None:
        claim = claimed(world, tmp_path)
        _, work = opened(world, claim, model)
        next(Path(work.job_dir).rglob("coins.sealed")).unlink()
        assert opened(world, taken_over(world, claim), model)[0] is None

    def test_coins_put_in_their_place_afterwards_are_not_taken(
        self, world: lw.World, tmp_path: Path, model: Any
    ) -> None:
        """M32: seed and manifest must be those that the ledger holds the commitment to."""
        claim = claimed(world, tmp_path)
        _, work = opened(world, claim, model)
        path = next(Path(work.job_dir).rglob("coins.sealed"))
        other = claimed(world, tmp_path, "other")
        _, otherwise = opened(world, other, model)
        mine = SealedPieces(path.parent, split_key=work.split_key, job_id=work.job_id)
        theirs = Path(otherwise.job_dir) / "audit-run" / run_audit.COINS
        told = SealedPieces(theirs, split_key=work.split_key, job_id=other.job_id).load()
        mine.save(run_audit.COINS, told[run_audit.COINS])
        assert opened(world, taken_over(world, claim), model)[0] is None

    def test_a_job_that_began_without_canaries_goes_on_without(
        self, world: lw.World, tmp_path: Path, model: Any
    ) -> None:
        claim = claimed(world, tmp_path)
        w.charge(world, claim, 0)
        assert opened(world, claim, model)[0] is None
        with world.db.reading() as session:
            assert ledger.commitment_of(session, claim.job_id) is None


class TestSealedPieces:
    def test_what_is_sealed_comes_back_and_nothing_of_it_can_be_read(self, tmp_path: Path) -> None:
        pieces = SealedPieces(tmp_path / "a", split_key=KEY, job_id="ftjob-1")
        assert pieces.load() == {}
        pieces.save("window-1", b"drawn canaries")
        assert pieces.load() == {"window-1": b"drawn canaries"}
        (path,) = (tmp_path / "a").iterdir()
        assert b"drawn" not in path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("change", ["job", "key", "name", "content"])
    def test_another_job_key_name_or_content_is_refused(self, tmp_path: Path, change: str) -> None:
        SealedPieces(tmp_path, split_key=KEY, job_id="ftjob-1").save("coins", b"secret")
        path = tmp_path / "coins.sealed"
        if change == "name":
            path.rename(tmp_path / "window-1.sealed")
        if change == "content":
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        other = SealedPieces(
            tmp_path,
            split_key=b"o" * 32 if change == "key" else KEY,
            job_id="ftjob-2" if change == "job" else "ftjob-1",
        )
        with pytest.raises(AuditInvalid, match="not of this job"):
            other.load()
