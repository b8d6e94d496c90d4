"""Which run comes next, from what is finished alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.benchmark.results import Result, ResultsFile, Run
from controller.benchmark.study import ArmFacts, Study
from controller.benchmark.suites import CEILING, DIABETES, FLOOR, MTS, RATES, Suite, find_suite
from controller.benchmark.table import Report, markdown
from controller.errors import SettingInvalid

ARMS = (
    ArmFacts(name="reference", published=False, default_learning_rate="0.02"),
    ArmFacts(name="flat", published=True, default_learning_rate="0.0025"),
)
SUITE = Suite(
    name="small",
    summary="",
    workloads=(DIABETES, MTS),
    epsilons=("8", "2"),
    seeds=2,
    seeds_untuned=1,
    arms_short=1,
    seeds_short=1,
)


def result_of(run: Run, loss: float) -> Result:
    return Result(
        key=run.key,
        run=run.to_dict(),
        notes=[[loss * 10, 10, loss * 4, 2], [loss * 10, 10, 0, 0]],
        facts={"seconds": 1.0, "seconds_training": 1.0, "seconds_controller": 0.002},
        curve=[],
        windows=[],
    )


def valley(best: str, depth: float = 1.0) -> Callable[[Run], float]:
    """A loss that grows with the distance, in octaves, from the best rate."""

    def loss(run: Run) -> float:
        if run.arm == FLOOR:
            return 4.0
        octaves = math.log2(float(run.learning_rate) / float(best))
        return depth + 0.3 * octaves**2

    return loss


def played(study: Study, done: dict[str, Result], loss: Callable[[Run], float]) -> list[Run]:
    """Runs a study to its end, one run at a time."""
    order = []
    while (run := next(study.ready(), None)) is not None:
        order.append(run)
        done[run.key] = result_of(run, loss(run))
        assert len(order) < 1000
    return order


def study_on(done: dict[str, Result], suite: Suite = SUITE) -> Study:
    return Study(suite, ARMS, lambda run: done.get(run.key))


class TestClimb:
    @pytest.mark.parametrize("best", RATES)
    def test_finds_the_best_rate_of_the_grid_wherever_it_lies(self, best: str) -> None:
        done: dict[str, Result] = {}
        study = study_on(done)
        played(study, done, valley(best))
        assert study.tuned_rate(study.cells[0], "flat") == best

    def test_a_rate_next_to_the_start_costs_three_runs(self) -> None:
        done: dict[str, Result] = {}
        order = played(study_on(done), done, valley("0.01"))
        tried = [r.learning_rate for r in order if r.split == "tuning" and r.arm == "flat"]
        assert tried[:3] == ["0.02", "0.01", "0.005"]

    def test_chooses_on_the_tuning_split_alone(self) -> None:
        done: dict[str, Result] = {}
        study = study_on(done)

        def loss(run: Run) -> float:
            return valley("0.01" if run.split == "tuning" else "0.08")(run)

        played(study, done, loss)
        assert study.tuned_rate(study.cells[0], "flat") == "0.01"

    def test_no_rate_before_the_climb_has_ended(self) -> None:
        done: dict[str, Result] = {}
        study = study_on(done)
        cell = study.cells[0]
        run = cell.run("flat", rate="0.02", seed=1_000, split="tuning")
        done[run.key] = result_of(run, 1.0)
        assert study.tuned_rate(cell, "flat") is None
        assert study.climb(cell, "flat").next == ("0.01", "0.04")


class TestOrder:
    def test_a_finished_study_has_nothing_left(self) -> None:
        done: dict[str, Result] = {}
        study = study_on(done)
        played(study, done, valley("0.02"))
        assert study.forecast() == 0

    def test_every_arm_gets_its_first_seed_before_any_gets_its_second(self) -> None:
        done: dict[str, Result] = {}
        order = played(study_on(done), done, valley("0.02"))
        corpus = [
            r.seed
            for r in order
            if r.split == "test" and r.workload == DIABETES and r.learning_rate == "0.02"
        ]
        assert corpus == sorted(corpus)

    def test_the_forecast_is_right_once_every_climb_has_ended(self) -> None:
        done: dict[str, Result] = {}
        study = study_on(done)
        promised = study.forecast()
        order = played(study, done, valley("0.02"))
        assert abs(promised - len(order)) <= 0.3 * len(order)

    def test_arms_of_a_seed_run_at_one_place(self) -> None:
        done: dict[str, Result] = {}
        order = played(study_on(done), done, valley("0.02"))
        assert {r.epsilon for r in order if r.arm in (FLOOR, CEILING)} == {"inf"}
        keys = [r.key for r in order]
        assert len(keys) == len(set(keys))

    def test_the_shorter_budget_is_tuned_anew(self) -> None:
        done: dict[str, Result] = {}
        order = played(study_on(done), done, valley("0.02"))
        short = [r for r in order if r.workload.steps == DIABETES.steps // 2]
        assert {r.split for r in short} == {"tuning", "test"}


class TestResultsFile:
    def test_finished_runs_are_found_again_and_a_torn_line_is_dropped(self, tmp_path: Path) -> None:
        runs = [study_on({}).cells[0].run("flat", rate="0.02", seed=s) for s in (1, 2)]
        file = ResultsFile(tmp_path)
        for run in runs:
            file.add(result_of(run, 1.5))
        with (tmp_path / "results.jsonl").open("a") as target:
            target.write('{"format": 1, "key": "half a li')
        again = ResultsFile(tmp_path)
        assert set(again.by_key) == {run.key for run in runs}
        again.add(result_of(study_on({}).cells[0].run("flat", rate="0.02", seed=3), 1.0))
        assert len(ResultsFile(tmp_path).by_key) == 3

    def test_another_size_is_another_run(self) -> None:
        run = study_on({}).cells[0].run("flat", rate="0.02", seed=1)
        for change in ({"steps": 33}, {"delta": "1e-6"}, {"patients": 5}, {"notes_test": 9}):
            other = dataclasses.replace(run, workload=dataclasses.replace(run.workload, **change))
            assert other.key != run.key


class TestReport:
    def test_tells_ratios_and_what_is_missing(self) -> None:
        done: dict[str, Result] = {}
        study = study_on(done)

        def loss(run: Run) -> float:
            return valley("0.02", 1.0 if run.arm == "reference" else 1.1)(run)

        empty = Report(study, _Held(done)).document()
        assert {row["perplexity"] for row in empty["cells"][0]["rows"]} == {None}
        assert "not finished" in markdown(empty)
        played(study, done, loss)
        document = Report(study, _Held(done)).document()
        cell = document["cells"][0]
        rows = {row["arm"]: row for row in cell["rows"]}
        assert cell["best_published"] == "flat"
        assert rows["flat"]["to_reference"]["ratio"] == pytest.approx(math.exp(0.1), abs=1e-3)
        assert rows["reference"]["perplexity"] == pytest.approx(math.e, abs=1e-3)
        assert rows["reference"]["perplexity_slots"] == pytest.approx(math.exp(2.0), abs=1e-3)
        assert rows["flat"]["untuned"]["perplexity"] == pytest.approx(
            math.exp(1.1 + 0.3 * 9), abs=1e-2
        )
        assert rows["reference"]["controller_share"] == pytest.approx(0.002)
        over = [r for r in document["over_epsilons"] if r["against"] == "flat"]
        assert [r["corpus"] for r in over] == ["diabetes130", "mts_dialog"]
        assert document["short"][0]["rows"][0]["arm"] == "reference"
        assert "| flat | 3.00 |" in markdown(document)


class _Held:
    """A results file that lives in a dictionary."""

    def __init__(self, by_key: dict[str, Result]) -> None:
        self.by_key = by_key

    def find(self, run: Run) -> Result | None:
        return self.by_key.get(run.key)


def test_unknown_suites_are_refused_by_name() -> None:
    with pytest.raises(SettingInvalid, match="ci, cpu, long, gpu"):
        find_suite("tpu")
