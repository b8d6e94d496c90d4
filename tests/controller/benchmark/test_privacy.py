"""The privacy benchmark: canaries, attacks and table on cases whose answer is known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from controller.benchmark.attacks import canary_rows, note_rows
from controller.benchmark.inserted import make_canaries
from controller.benchmark.privacy import PrivacyRequest, bench_audit
from controller.benchmark.privacy_suites import CEILING, SUITES, PrivacySuite, key_of, run_of
from controller.benchmark.privacy_table import markdown, rows_of
from controller.benchmark.results import Result, ResultsFile
from controller.errors import ControllerUnknown, SettingInvalid
from dp_core.audit.text_scores import Rows, scores_of
from dp_core.plan import Performance
from service.demo import models

SMALL = SUITES["small"]
TINY = dataclasses.replace(
    SMALL,
    arms=("reference", CEILING),
    seeds=2,
    workload=dataclasses.replace(SMALL.workload, patients=40, notes_test=40),
)


class TestCanaries:
    def test_every_repetition_is_a_patient_and_no_secret_is_shared(self) -> None:
        made = make_canaries((1, 4), each=3, left_out=20, seed=1)
        assert [c.repeats for c in made] == [1, 1, 1, 4, 4, 4, *[0] * 20]
        patients = [note for canary in made for note in canary.patients()]
        assert len({note.patient for note in patients}) == len(patients) == 15
        assert len({c.prefix for c in made}) == 26
        assert all(c.text.endswith(c.secret) and len(c.secret.strip()) == 6 for c in made)

    def test_the_same_for_every_arm_and_seed(self) -> None:
        assert SMALL.canaries() == SMALL.canaries()


class Fixed(torch.nn.Module):
    """Gives token 1 the logit 2 everywhere, all others 0."""

    def forward(self, input_ids: torch.Tensor) -> Any:
        logits = torch.zeros(*input_ids.shape, 5)
        logits[..., 1] = 2.0
        return type("Out", (), {"logits": logits})()


class TestScores:
    def test_loss_and_min_k_by_hand(self) -> None:
        """log p of token 1 is 2 - log(e^2 + 4); Min-K%++ takes the lowest fifth, one of three."""
        rows = Rows(
            tokens=torch.tensor([[0, 1, 1, 2]]),
            is_scored=torch.ones(1, 3, dtype=torch.bool),
            owners=np.zeros(1, dtype=np.int64),
        )
        found = scores_of(Fixed(), rows, Performance())
        p = np.exp([0.0, 2.0, 0.0, 0.0, 0.0]) / (np.e**2 + 4)
        log_p = np.log(p)
        assert found.loss[0] == pytest.approx(-(2 * log_p[1] + log_p[2]) / 3, rel=1e-5)
        mean = (p * log_p).sum()
        spread = np.sqrt((p * (log_p - mean) ** 2).sum())
        assert found.min_k[0] == pytest.approx((log_p[2] - mean) / spread, rel=1e-4)

    def test_only_the_secret_of_a_canary_is_scored(self) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(models.path()), local_files_only=True)
        (canary,) = make_canaries((1,), each=1, left_out=0, seed=3)
        rows = canary_rows([canary], tokenizer, 64)
        scored = rows.tokens[0, 1:][rows.is_scored[0]].tolist()
        assert tokenizer.decode(scored).strip() == canary.secret.strip()
        whole = note_rows([canary.text], tokenizer, 64)
        assert whole.is_scored.sum() > rows.is_scored.sum()


def result(suite: PrivacySuite, arm: str, seed: int, shift: float) -> Result:
    """An arm that knows its members by `shift` standard deviations."""
    run, generator = run_of(suite, arm, seed), np.random.default_rng(seed)
    members = suite.workload.patients
    notes = generator.standard_normal(2 * members)
    notes[:members] += shift
    canaries = generator.standard_normal(len(suite.canaries()))
    canaries[: len(suite.repeats) * suite.canaries_each] += 3 * shift
    ceiling = None if arm == CEILING else {"epsilon": 8.0, "auc": 0.881, "tpr": 0.255}
    return Result(
        key=key_of(suite, run),
        run=run.to_dict(),
        notes=[],
        facts={
            "notes": {"loss_difference": notes.tolist(), "min_k": notes.tolist()},
            "canaries": {"loss_difference": canaries.tolist()},
            "ceiling": ceiling,
            "seconds": 1.0,
        },
        curve=[],
        windows=[],
    )


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    shifts = {"reference": 0.0, CEILING: 3.0}
    found = {a: [result(TINY, a, s, shift) for s in (1, 2)] for a, shift in shifts.items()}
    return rows_of(TINY, found, draws=100)


class TestTable:
    def test_chance_and_knowledge_are_told_apart(self, rows: list[dict[str, Any]]) -> None:
        private, plain = (row["attacks"]["loss_difference"]["auc"] for row in rows)
        assert private["low"] < 0.5 < private["high"]
        assert private["low"] < private["value"] < private["high"]
        assert plain["low"] > 0.95
        assert rows[1]["exposure"]["16"]["median"] == pytest.approx(6.0)
        assert rows[0]["exposure"]["1"]["median"] < 4

    def test_the_ceiling_stands_beside_what_has_one(self, rows: list[dict[str, Any]]) -> None:
        text = markdown(TINY, rows)
        lines = [line for line in text.splitlines() if line.startswith("| ")]
        widths = {line.count("|") for line in lines}
        assert widths == {4 + 4 + len(TINY.repeats) + 1}
        assert next(x for x in lines if x.startswith("| reference")).endswith("| 0.881 | 25.5 % |")
        assert next(x for x in lines if x.startswith(f"| {CEILING}")).endswith("| none | none |")
        assert "no evidence of a correct implementation" in text.replace("\n", " ")


class TestCommand:
    def request(self, out: Path, **changes: Any) -> PrivacyRequest:
        given: dict[str, Any] = {
            "suite": "small",
            "data": out / "nowhere",
            "packaged_model": models.path(),
            "out": out,
        }
        return PrivacyRequest(**(given | changes))

    def test_a_table_of_what_is_finished_needs_no_run(self, tmp_path: Path) -> None:
        results = ResultsFile(tmp_path)
        results.add(result(TINY, "reference", 1, 0.0))
        told: list[str] = []
        bench_audit(self.request(tmp_path, only_table=True), suite=TINY, tell=told.append)
        document = json.loads((tmp_path / "privacy.json").read_text())
        assert [(row["arm"], row["seeds"]) for row in document["rows"]] == [("reference", 1)]
        assert told

    def test_what_is_missing_is_said_before_anything_runs(self, tmp_path: Path) -> None:
        with pytest.raises(SettingInvalid, match="no file diabetes130"):
            bench_audit(self.request(tmp_path), suite=TINY)
        with pytest.raises(SettingInvalid, match="choose one of"):
            bench_audit(self.request(tmp_path, suite="large"))
        wrong = dataclasses.replace(TINY, arms=("magic",))
        with pytest.raises(ControllerUnknown):
            bench_audit(self.request(tmp_path), suite=wrong)
