"""Text canaries: public rows, coins of their own, one commitment, figures anyone recomputes."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pytest

from dp_core.audit.coins import CoinSeed
from dp_core.audit.errors import AuditInvalid
from dp_core.audit.in_job import FinishedAudit, InJobAudit, manifest_of
from dp_core.audit.report import statements
from dp_core.audit.saved import SavedAudit, differences
from dp_core.audit.text_canaries import LONG, SPREAD, TEN, TextCanaries, text_layout
from dp_core.audit.text_figures import (
    ALPHA_GATE,
    TextAudit,
    TextScores,
    canaries_of,
    text_manifest,
)
from dp_core.plan import RunPlan
from dp_core.records import Blocks, PatientRecords
from tests.dp_core.audit.test_in_job import SEED, Job, job_plan

VOCABULARY = 400


class HashTokenizer:
    """Words below 60, names from there to 200, rare ids above."""

    bos_token_id, eos_token_id, pad_token_id = 0, 1, 2
    all_special_ids = (0, 1, 2, VOCABULARY - 1)

    def __len__(self) -> int:
        return VOCABULARY

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[_id(word) for word in text.split()] for text in texts]}


def _id(word: str) -> int:
    number, dash, _ = word.partition("-")
    if dash:  # a canary's name
        return 60 + int(number) % 140
    return 3 + int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % 56


def plan_of(**changes: Any) -> RunPlan:
    fields = {"patients_public": 6_250, "batch_size": 400, "delta": "1e-5", "tokens_per_row": 32}
    return job_plan(**(fields | changes))


def made(plan: RunPlan) -> tuple[TextAudit, TextCanaries]:
    layout = text_layout(plan, HashTokenizer())
    text = TextAudit(manifest=text_manifest(plan, layout), layout=layout)
    return text, TextCanaries(text.manifest, layout, HashTokenizer())


class TestHowMany:
    @pytest.mark.parametrize(
        ("patients", "canaries"),
        [(100, 0), (4_999, 0), (5_000, 100), (10_049, 200), (50_000, 1000), (10**6, 1000)],
    )
    def test_two_percent_of_the_declared_patients_or_none(
        self, patients: int, canaries: int
    ) -> None:
        plan = plan_of(
            patients_public=patients, batch_size=50, delta="1e-7", validation_fraction="0"
        )
        assert canaries_of(plan) == canaries


class TestRows:
    plan = plan_of(rows_per_patient_max=3)
    text, canaries = made(plan)
    notes = canaries.patients(np.ones(text.manifest.m, dtype=bool))

    def test_the_same_manifest_gives_the_same_rows(self) -> None:
        again = TextCanaries(self.text.manifest, self.text.layout, HashTokenizer())
        other = made(self.plan)[1].patients(np.ones(self.text.manifest.m, dtype=bool))
        same = again.patients(np.ones(self.text.manifest.m, dtype=bool))
        assert _flat(same) == _flat(self.notes)
        assert _flat(other) != _flat(self.notes)  # a construction seed is never used again

    def test_secrets_are_four_to_eight_rare_tokens(self) -> None:
        lengths = set()
        for rows in self.notes:
            secret = [int(t) for row in _distinct(rows) for t in row if t >= VOCABULARY // 2]
            assert set(secret) <= set(range(VOCABULARY // 2, VOCABULARY - 1))
            lengths.add(len(secret))
        assert lengths == {4, 5, 6, 7, 8}

    def test_no_two_begin_alike(self) -> None:
        starts = {tuple(rows[0][:8].tolist()) for rows in self.notes}
        assert len(starts) == len(self.notes) == 100

    def test_rows_fit_and_each_patient_brings_as_many_as_may_be_drawn(self) -> None:
        for rows in self.notes:
            assert len(rows) >= 3
            assert all(2 <= len(row) <= 32 for row in rows)

    def test_one_in_ten_is_longer_than_a_row_and_one_in_ten_lies_in_several_notes(self) -> None:
        for number, rows in enumerate(self.notes):
            different = _distinct(rows)
            if number % TEN == LONG:
                assert sum(map(len, different)) > 32
                assert all(row[0] != 0 for row in different[1:])  # it goes on, without a start
            elif number % TEN == SPREAD:
                assert len([row for row in different if row[0] == 0]) == 3
            else:
                assert len(different) == 1

    def test_only_members_become_patients(self) -> None:
        is_member = np.zeros(self.text.manifest.m, dtype=bool)
        is_member[[4, 8]] = True
        assert _flat(self.canaries.patients(is_member)) == _flat([self.notes[4], self.notes[8]])

    def test_secrets_alone_are_scored_and_each_token_of_them_once(self) -> None:
        rows = self.canaries._scored()
        targets = rows.tokens[:, 1:]
        assert bool((targets[rows.is_scored] >= VOCABULARY // 2).all())
        scored = np.bincount(rows.owners, weights=rows.is_scored.sum(dim=1).numpy())
        assert scored.min() >= 4 and scored.max() <= 8

    def test_other_rows_and_a_small_vocabulary_are_refused(self) -> None:
        changed = dataclasses.replace(self.text.layout, tokens_per_row=16)
        with pytest.raises(AuditInvalid, match="other rows"):
            TextCanaries(self.text.manifest, changed, HashTokenizer())
        small = dataclasses.replace(self.text.layout, vocabulary=20)
        manifest = text_manifest(self.plan, small)
        with pytest.raises(AuditInvalid, match="rare tokens"):
            TextCanaries(manifest, small, HashTokenizer())


class TestAmongPatients:
    def test_they_join_in_an_order_of_chance_and_nobody_is_lost(self) -> None:
        own = [[np.asarray([3, p], dtype=np.int32)] for p in range(50)]
        records = PatientRecords(raw_rows=own, tokens_per_row=8, pad_id=2)
        joined = records.with_public_patients(
            [[np.asarray([7, 7], dtype=np.int32)]] * 9, np.random.default_rng(1)
        )
        found = [tuple(joined.raw_rows_of(p)[0].tolist()) for p in range(joined.raw_size)]
        assert sorted(found) == sorted([(3, p) for p in range(50)] + [(7, 7)] * 9)
        assert found[50:] != [(7, 7)] * 9


@pytest.fixture(scope="module")
def finished(shared_blocks: Blocks) -> tuple[InJobAudit, FinishedAudit]:
    return _run(shared_blocks, plan_of())


def _run(
    blocks: Blocks, plan: RunPlan, *, is_leaking: bool = False
) -> tuple[InJobAudit, FinishedAudit]:
    """A private job whose text scores are chance, or tell every member."""
    job, (text, _) = Job(blocks, plan), made(plan)
    job.manifest, job.text = manifest_of(plan, job.layout, text=text.manifest), text
    job.attempt().run()
    noise = np.random.default_rng(5).standard_normal(text.manifest.m)
    drop = noise + 20 * job.audit.text_members if is_leaking else noise
    return job.audit, job.finish(text_scores=TextScores(loss_drop=drop, min_k=noise))


class TestInAJob:
    def test_a_private_job_passes_and_says_what_it_could_have_seen(
        self, finished: tuple[InJobAudit, FinishedAudit]
    ) -> None:
        report = finished[1].saved.report
        assert (report.verdict, report.reasons) == ("PASS", ())
        assert report.text is not None and report.exposure is not None
        assert report.text.m == 100
        assert report.exposure.reference_size == 100 - report.text.n_included
        said = " ".join(statements(report))
        assert "Text canaries alone: Lower bound on epsilon" in said
        assert "Exposure of inserted secrets" in said

    def test_both_kinds_share_the_level_and_the_commitment_but_no_coin(
        self, finished: tuple[InJobAudit, FinishedAudit]
    ) -> None:
        saved = finished[1].saved
        assert saved.text is not None
        manifests = (saved.manifest, saved.text.manifest)
        assert {manifest.alpha_gate for manifest in manifests} == {ALPHA_GATE}
        assert saved.manifest.companion_sha256 == saved.text.manifest.digest()
        seed = CoinSeed(SEED)
        assert (seed.coins(100) != seed.coins(100, kind="text")).any()

    def test_an_outsider_recomputes_every_figure(
        self, finished: tuple[InJobAudit, FinishedAudit]
    ) -> None:
        saved, scores = finished[1].saved, finished[1].scores
        read = SavedAudit.from_json(saved.to_json())
        assert read.to_json() == saved.to_json()
        assert differences(read, scores) == ()

    @pytest.mark.parametrize("part", ["text", "exposure", "layout", "manifest", "left out"])
    def test_what_was_changed_afterwards_is_named(
        self, finished: tuple[InJobAudit, FinishedAudit], part: str
    ) -> None:
        saved, report, text = finished[1].saved, finished[1].saved.report, finished[1].saved.text
        assert report.text is not None and report.exposure is not None and text is not None
        if part == "text":
            told = dataclasses.replace(report.text, min_k_auc=0.1)
            saved = dataclasses.replace(saved, report=dataclasses.replace(report, text=told))
        if part == "exposure":
            bits = dataclasses.replace(report.exposure, max=0.0)
            saved = dataclasses.replace(saved, report=dataclasses.replace(report, exposure=bits))
        if part == "layout":
            rows = dataclasses.replace(text.layout, rows_per_patient=7)
            saved = dataclasses.replace(saved, text=dataclasses.replace(text, layout=rows))
        if part == "manifest":
            other = dataclasses.replace(text.manifest, construction_seed="0" * 64)
            saved = dataclasses.replace(saved, text=dataclasses.replace(text, manifest=other))
        if part == "left out":
            silent = dataclasses.replace(report, text=None, exposure=None)
            saved = dataclasses.replace(saved, report=silent, text=None)
        (found,) = differences(saved, finished[1].scores)
        assert "text canaries" in found

    def test_secrets_that_the_model_tells_are_a_fail(self, shared_blocks: Blocks) -> None:
        """Every guess right at a claim of 0.5: the gradient canaries are silent, these are not."""
        _, found = _run(shared_blocks, plan_of(target_epsilon="0.5", steps_max=5), is_leaking=True)
        report = found.saved.report
        assert report.verdict == "FAIL"
        assert report.reasons and all(r.startswith("text canaries: ") for r in report.reasons)
        assert differences(found.saved, found.scores) == ()

    def test_a_job_has_both_or_neither_of_manifest_and_canaries(
        self, shared_blocks: Blocks
    ) -> None:
        plan = plan_of()
        job, (text, _) = Job(shared_blocks, plan), made(plan)
        job.text = text
        with pytest.raises(AuditInvalid, match="other text canaries"):
            job.attempt()


def _distinct(rows: list[np.ndarray]) -> list[np.ndarray]:
    return list({tuple(row.tolist()): row for row in rows}.values())


def _flat(patients: list[list[np.ndarray]]) -> list[list[list[int]]]:
    return [[row.tolist() for row in rows] for rows in patients]
