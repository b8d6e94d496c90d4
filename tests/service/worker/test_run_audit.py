"""Coins of a job over its attempts: sealed, committed, the same again; or honestly absent."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from dp_core.audit.bounds import auc
from dp_core.audit.coins import new_manifest
from dp_core.audit.errors import AuditInvalid
from dp_core.audit.figures import exposure_figures
from dp_core.audit.text_canaries import TextCanaries
from dp_core.audit.text_figures import LOSS_DIFFERENCE, TextLayout
from dp_core.base_model import load_base
from dp_core.lora import attach_adapters
from dp_core.plan import AdapterPlan, Performance, RunPlan
from dp_core.records import Blocks, PatientRecords
from service.demo import models
from service.jobs import leases, runtime
from service.ledger import service as ledger
from service.worker import run_audit
from service.worker.sealed import SealedPieces
from tests.service.jobs import world as w
from tests.service.ledger import world as lw

KEY = b"k" * 32


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    base, tokenizer = load_base(models.path(), Performance(patients_per_microbatch=2))
    return attach_adapters(base, AdapterPlan(r=4, alpha=8), seed=3), tokenizer


@pytest.fixture(scope="module")
def model(loaded: tuple[Any, Any]) -> Any:
    return loaded[0]


@pytest.fixture(scope="module")
def tokenizer(loaded: tuple[Any, Any]) -> Any:
    return loaded[1]


def claimed(world: lw.World, directory: Path, name: str = "job") -> leases.Claim:
    _, version = w.add_dataset(world, directory)
    return w.claimed_job(world, version=version, job_dir=str(directory / name))


def opened(
    world: lw.World, claim: leases.Claim, model: Any, tokenizer: Any = None
) -> tuple[run_audit.RunAudit | None, runtime.Work]:
    """`tokenizer`: for text canaries too, of which this plan's 100,000 patients allow 1,000."""
    work = runtime.load_work(world.db, claim.job_id, claim.epoch)
    plan, with_text = RunPlan.from_dict(work.plan), tokenizer is not None
    found = run_audit.open_run_audit(world.db, work, plan, model, tokenizer, with_text=with_text)
    return found, work


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


class TestTextCanaries:
    def test_the_next_attempt_trains_on_the_same_made_up_patients(
        self, world: lw.World, tmp_path: Path, model: Any, tokenizer: Any
    ) -> None:
        claim = claimed(world, tmp_path)
        first, _ = opened(world, claim, model, tokenizer)
        w.charge(world, claim, 0)
        second, _ = opened(world, taken_over(world, claim), model, tokenizer)
        assert first is not None and second is not None
        own = PatientRecords(
            raw_rows=[[np.asarray([1, 2, p], dtype=np.int32)] for p in range(40)],
            tokens_per_row=256,
            pad_id=0,
        )
        blocks = Blocks(training=own, validation=None)
        rows = [_rows(audit.with_canaries(blocks)) for audit in (first, second)]
        assert sorted(rows[0]) == sorted(rows[1])
        assert rows[0] != rows[1]  # in an order of chance
        added = int(first.steps.text_members.sum())
        assert 400 < added < 600
        assert first.with_canaries(blocks).training.raw_size == 40 + added
        assert set(_rows(blocks)) < set(rows[0])
        assert w.entry_types(world.db, claim.job_id).count("audit.committed") == 1

    def test_without_them_the_records_stay_as_they_are(
        self, world: lw.World, tmp_path: Path, model: Any
    ) -> None:
        found, _ = opened(world, claimed(world, tmp_path), model)
        assert found is not None
        blocks = Blocks(
            training=PatientRecords(raw_rows=[], tokens_per_row=8, pad_id=0), validation=None
        )
        assert found.with_canaries(blocks) is blocks

    def test_another_tokenizer_than_they_were_made_for_ends_the_audit(
        self, world: lw.World, tmp_path: Path, model: Any, tokenizer: Any
    ) -> None:
        claim = claimed(world, tmp_path)
        assert opened(world, claim, model, tokenizer)[0] is not None
        other = copy.deepcopy(tokenizer)
        other.add_tokens(["fever-curve"])
        assert opened(world, taken_over(world, claim), model, other)[0] is None

    def test_a_model_that_learnt_secrets_by_heart_is_told_from_one_that_did_not(
        self, tokenizer: Any
    ) -> None:
        """Trained on members alone and without privacy, every member's secret stands out."""
        performance = Performance(patients_per_microbatch=2)
        base, _ = load_base(models.path(), performance)
        model = attach_adapters(base, AdapterPlan(r=8, alpha=16), seed=3)
        layout = TextLayout(
            base_model_digest="0" * 64,
            tokens_per_row=64,
            rows_per_patient=1,
            vocabulary=len(tokenizer),
            special_ids=tuple(sorted(tokenizer.all_special_ids)),
            start_id=tokenizer.bos_token_id,
            end_id=tokenizer.eos_token_id,
        )
        manifest = new_manifest(
            kind="text",
            canaries=20,
            layout_digest=layout.digest(),
            steps_planned=1,
            score=LOSS_DIFFERENCE,
        )
        canaries, is_member = TextCanaries(manifest, layout, tokenizer), np.arange(20) % 3 != 0
        before = canaries.scores(model, performance)
        assert np.allclose(before.loss_drop, 0, atol=1e-6)  # an adapter starts as no change
        members = canaries.patients(is_member)
        rows = [torch.from_numpy(row.astype(np.int64)) for patient in members for row in patient]
        tokens = pad_sequence(rows, batch_first=True, padding_value=layout.end_id or 0)
        labels = pad_sequence(rows, batch_first=True, padding_value=-100)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
        for _ in range(60):
            model(input_ids=tokens, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        after = canaries.scores(model, performance)
        assert auc(after.loss_drop[is_member], after.loss_drop[~is_member]).value > 0.9
        assert exposure_figures(after.loss_drop, is_member).median > 2  # of log2 7 = 2.8 bits


def _rows(blocks: Blocks) -> list[tuple[int, ...]]:
    records = blocks.training
    each = (row for p in range(records.raw_size) for row in records.raw_rows_of(p))
    return [tuple(row.tolist()) for row in each]


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
