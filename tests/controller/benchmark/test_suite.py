"""The suite `ci` in miniature: a tiny random model, notes made here, the real loop and pool."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from controller.baselines.registry import select_arms
from controller.benchmark.command import Request, bench_utility, prepare
from controller.benchmark.corpora import Note, load_corpus
from controller.benchmark.evaluation import make_set, note_losses
from controller.benchmark.results import Result, Run
from controller.benchmark.suites import CEILING, FLOOR, Workload, find_suite
from controller.benchmark.trial import Places, execute
from controller.errors import SettingInvalid
from dp_core.errors import InvariantViolation, StepsExhausted
from dp_core.plan import Performance
from dp_core.records import IGNORED, PatientRecords
from service.demo import models

EPSILON = "1"  # calibrates in a third of the time that 8 takes
WORKLOAD = Workload(
    corpus="diabetes130",
    patients=150,
    tokens_per_row=16,
    batch_size=8,
    steps=4,
    steps_per_window=2,
    notes_tuning=4,
    notes_test=6,
    delta="1e-3",
    rank=2,
)
SUITE = dataclasses.replace(
    find_suite("ci"),
    workloads=(WORKLOAD,),
    epsilons=(EPSILON,),
    base_dtype="float32",
    autocast=False,
)
PERFORMANCE = Performance(patients_per_microbatch=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of one block under the packaged tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    config = GPT2Config(
        vocab_size=4096,
        n_positions=32,
        n_embd=8,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(models.path() / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up notes in the format of the corpus."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "diabetes130").mkdir()
    with gzip.open(folder / "diabetes130" / "notes_dev.jsonl.gz", "wt", encoding="utf-8") as out:
        for index in range(200):
            split = "train" if index < 180 else "valid" if index < 190 else "test"
            days = 1 + index % 9
            text = f"Length of stay: {days} days. The patient was discharged home. Outcome: none."
            row = {"id": str(index), "patient": f"p{index}", "split": split, "text": text}
            out.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="module")
def places(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Places:
    return Places(data=data, packaged_model=model, scratch=tmp_path_factory.mktemp("scratch"))


def run_of(arm: str, **changes: object) -> Run:
    run = Run(
        model="medtext-gpt2-4m",
        workload=WORKLOAD,
        arm=arm,
        epsilon=EPSILON,
        learning_rate="0.02",
        seed=1,
        split="test",
    )
    return dataclasses.replace(run, **changes)  # type: ignore[arg-type]


def done(arm: str, places: Places, **changes: object) -> Result:
    return execute(run_of(arm, **changes), places, PERFORMANCE, is_watched=True)


class TestTheWholeCommand:
    def test_runs_writes_everything_and_goes_on_where_it_stopped(
        self, model: Path, data: Path, tmp_path: Path
    ) -> None:
        request = Request(suite="ci", data=data, packaged_model=model, out=tmp_path, jobs=1)
        told: list[str] = []
        assert bench_utility(request, tell=told.append, suite=SUITE) == 0
        table = json.loads((tmp_path / "table.json").read_text())
        rows = {row["arm"]: row for row in table["cells"][0]["rows"]}
        assert set(rows) == {FLOOR, "reference", "flat", CEILING}
        assert all(row["perplexity"] > 1 for row in rows.values())
        assert rows["flat"]["to_reference"]["seeds"] == 1
        assert "| reference |" in (tmp_path / "table.md").read_text()
        lines = (tmp_path / "results.jsonl").read_text().splitlines()
        assert len(lines) == 4
        told.clear()
        shortened = "\n".join(lines[:3]) + "\n"
        (tmp_path / "results.jsonl").write_text(shortened)
        study, results = prepare(request, SUITE)
        assert study.forecast() + 3 == 4 and len(results.by_key) == 3
        assert (tmp_path / "results.jsonl").read_text() == shortened

    def test_the_gpu_suite_says_loudly_what_it_needs(self, tmp_path: Path) -> None:
        if torch.cuda.is_available():
            pytest.skip("a CUDA device is here, so nothing is refused")
        request = Request(suite="gpu", data=tmp_path, packaged_model=tmp_path, out=tmp_path)
        with pytest.raises(SettingInvalid, match="NEEDS A CUDA DEVICE"):
            bench_utility(request)

    def test_missing_data_are_named_before_anything_runs(self, model: Path, tmp_path: Path) -> None:
        request = Request(suite="ci", data=tmp_path, packaged_model=model, out=tmp_path / "out")
        with pytest.raises(SettingInvalid, match="notes_dev"):
            bench_utility(request, tell=lambda _: None, suite=SUITE)


class TestOneRun:
    def test_the_same_run_gives_the_same_losses(self, places: Places) -> None:
        first, second = done("reference", places), done("reference", places)
        assert first.notes == second.notes and first.windows == second.windows

    def test_seeds_and_arms_differ(self, places: Places) -> None:
        base = done("reference", places).notes
        assert done("reference", places, seed=2).notes != base
        assert done("flat", places).notes != base

    @pytest.mark.parametrize("arm", [arm.name for arm in select_arms()])
    def test_every_arm_runs_charged_to_the_end(self, arm: str, places: Places) -> None:
        result = done(arm, places)
        assert sum(steps for _, steps in result.facts["levels"]) == WORKLOAD.steps
        assert float(result.facts["epsilon_certified"]) <= float(EPSILON)
        assert result.facts["q"] == done("reference", places).facts["q"]
        assert result.windows[-1]["step"] == WORKLOAD.steps
        assert result.curve[-1][0] == WORKLOAD.steps

    def test_looking_at_the_curve_changes_nothing(self, places: Places) -> None:
        watched = done("reference", places)
        plain = execute(run_of("reference"), places, PERFORMANCE, is_watched=False)
        assert plain.notes == watched.notes and plain.windows == []

    def test_floor_is_the_untrained_model_and_the_ceiling_learns_more(self, places: Places) -> None:
        floor = done(FLOOR, places, epsilon="inf", learning_rate="0")
        ceiling = done(CEILING, places, epsilon="inf")
        assert ceiling.loss < floor.loss
        assert done(FLOOR, places, seed=9).notes == floor.notes


class TestExactLoss:
    def test_rows_are_those_of_training(self, model: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(model)
        text = "Admitted urgently. " * 9
        rows = make_set(
            [Note(patient="p", text=text)], tokenizer, tokens_per_row=16, has_slots=False
        )
        ids = [0, *tokenizer(text, add_special_tokens=False)["input_ids"], 0]
        starts = range(0, len(ids) - 1, 15)
        windows = [torch.tensor(ids[s : s + 16]).numpy() for s in starts]
        records = PatientRecords(raw_rows=[windows], tokens_per_row=16, pad_id=1)
        expected = records.batch(torch.tensor([[0, *range(len(windows))]]).numpy())
        assert torch.equal(rows.tokens, expected.tokens)
        assert torch.equal(rows.targets, expected.targets)

    def test_every_token_but_the_first_is_predicted_once(self, model: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(model)
        notes = [Note(patient=str(n), text="Length of stay: 7 days. " * (n + 1)) for n in range(4)]
        rows = make_set(notes, tokenizer, tokens_per_row=16, has_slots=True)
        lengths = [len(tokenizer(n.text, add_special_tokens=False)["input_ids"]) + 1 for n in notes]
        assert int((rows.targets != IGNORED).sum()) == sum(lengths)
        network = GPT2LMHeadModel.from_pretrained(model)
        found = note_losses(network, rows, PERFORMANCE)
        assert [line[1] for line in found] == lengths
        assert [line[3] for line in found] == [1, 2, 3, 4], "the number of days alone is a value"
        few = note_losses(network, rows.first(2), PERFORMANCE)
        assert few == found[:2]


class TestCorpora:
    def test_no_patient_is_in_two_parts(self, data: Path, tmp_path: Path) -> None:
        corpus = load_corpus("diabetes130", data)
        assert [len(corpus.training), len(corpus.tuning), len(corpus.test)] == [180, 10, 10]
        with pytest.raises(SettingInvalid, match="two of training"):
            dataclasses.replace(corpus, tuning=corpus.test)


class TestJournal:
    def test_refuses_noise_below_the_level_and_steps_beyond_the_plan(self, places: Places) -> None:
        from controller.baselines.registry import find_arm
        from controller.benchmark.ports import BenchmarkJournal
        from controller.benchmark.trial import plan_of
        from dp_core.mechanism import GroupLayout, admit
        from dp_core.ports import ChunkCharge, GroupActions

        plan = plan_of(
            run_of("reference"), find_arm("reference"), patients=150, digest="0" * 64, version="v"
        )
        layout = GroupLayout(ids=("a", "b"), sizes=(4, 9))
        settings = admit(plan, layout, (0.1, 0.2), GroupActions.neutral(2))
        charge = ChunkCharge(
            plan_digest=plan.digest(),
            attempt=1,
            chunk_index=0,
            first_step=0,
            steps=3,
            q=plan.sampling_probability,
            noise_multiplier=settings.noise_multiplier,
            components=settings.components(),
            policy_digest="0" * 64,
        )
        journal = BenchmarkJournal(plan)
        assert journal.open_chunk(charge) == journal.open_chunk(charge)
        assert journal.position().steps_started == 3
        with pytest.raises(StepsExhausted):
            journal.open_chunk(dataclasses.replace(charge, chunk_index=1))
        less = tuple(
            dataclasses.replace(c, std=format(float(c.std) * 0.9, "f")) for c in charge.components
        )
        with pytest.raises(InvariantViolation, match="below"):
            journal.open_chunk(dataclasses.replace(charge, chunk_index=1, steps=1, components=less))
