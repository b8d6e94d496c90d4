"""Several ranks do what one process does (RANKS; W1-W4, M18, M21).

Most ranks here are threads over gloo, which is the same code at a hundredth of the start-up;
`TestProcesses` starts real ones as torchrun would.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

from dp_core.distributed import from_environment
from dp_core.errors import (
    InvariantViolation,
    JournalUnavailable,
    PlanInvalid,
    RankLost,
    RanksDiffer,
    StepFailed,
)
from dp_core.follower import Follower
from dp_core.lora import attach_adapters, clip_groups, layout_of
from dp_core.mechanism import StepSettings, admit
from dp_core.noise import OsEntropySource
from dp_core.plan import OptimizerPlan, Performance
from dp_core.plan_optimizer import PlanOptimizer, ReleasedStep
from dp_core.ports import GroupActions
from dp_core.ranks import SINGLE, Ranks
from dp_core.records import Blocks, PatientRecords
from dp_core.schedule import make_optimizer
from dp_core.step import PrivateStep, make_engine
from tests.dp_core.conftest import adapted, make_plan, tiny_gpt2, write_version
from tests.dp_core.engine_cases import NoNoise, in_float64
from tests.dp_core.rank_cases import (
    JOB_DRAWS,
    UNEVEN,
    FixedSampler,
    Job,
    KeptNoise,
    OneStep,
    flat,
    furthest,
    on_threads,
)
from tests.dp_core.rank_process import sharding_case
from tests.fakes import MemoryJournal, MemoryStore

DRAWS = {"uneven": UNEVEN, "one": [4], "empty": [], "many": list(range(29))}


def step_settings(model: Any) -> StepSettings:
    """The settings of every `OneStep`."""
    groups = clip_groups(model)
    references, actions = (0.02,) * len(groups), GroupActions.neutral(len(groups))
    return admit(make_plan(), layout_of(groups), references, actions)


def models(world: int, base: Any) -> list[Any]:
    """Copies for ranks that are threads; made before any thread runs."""
    return [copy.deepcopy(base) for _ in range(world)]


def steps(world: int, base: Any, blocks: Blocks, drawn: list[int], **kind: Any) -> list[Any]:
    held = models(world, base)

    def work(ranks: Ranks) -> tuple[torch.Tensor, torch.Tensor]:
        one = OneStep(ranks, held[ranks.rank], blocks, drawn, **kind)
        released = one.run()
        return flat(released), one.weights()

    return on_threads(world, work)


def alone(base: Any, blocks: Blocks, drawn: list[int], **kind: Any) -> Any:
    one = OneStep(SINGLE, copy.deepcopy(base), blocks, drawn, **kind)
    released = one.run()
    return flat(released), one.weights()


class TestSameUpdate:
    @pytest.mark.parametrize("drawn", DRAWS.values(), ids=DRAWS.keys())
    @pytest.mark.parametrize("world", [2, 4])
    def test_of_float64_sums_in_every_world(
        self, blocks: Blocks, world: int, drawn: list[int]
    ) -> None:
        base = in_float64(adapted("gpt2"))
        expected_release, expected_weights = alone(base, blocks, drawn, sum_dtype="float64")
        for released, weights in steps(world, base, blocks, drawn, sum_dtype="float64"):
            # bits and loss are released as float32
            count = len(weights)
            assert torch.allclose(released[:count], expected_release[:count], rtol=0, atol=1e-12)
            assert torch.allclose(released[count:], expected_release[count:], rtol=1e-6, atol=1e-6)
            assert torch.allclose(weights, expected_weights, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("drawn", DRAWS.values(), ids=DRAWS.keys())
    def test_of_float32_sums_and_bit_equal_on_all_ranks(
        self, blocks: Blocks, drawn: list[int]
    ) -> None:
        base = adapted("llama")
        expected = alone(base, blocks, drawn)
        found = steps(2, base, blocks, drawn)
        assert torch.allclose(found[0][0], expected[0], rtol=1e-5, atol=1e-5)
        assert torch.allclose(found[0][1], expected[1], rtol=1e-5, atol=1e-6)
        for ours, first in zip(found[1], found[0], strict=True):
            assert torch.equal(ours, first)

    def test_of_grid_sums_with_noise_in_quanta(self, blocks: Blocks) -> None:
        class GridNoise(NoNoise):
            def draw_integers(self, permit: Any, length: int) -> torch.Tensor:
                return torch.arange(length, dtype=torch.int64) - length // 2

        base = adapted("gpt2")
        kind = {"sum_dtype": "integer_grid", "noise": GridNoise()}
        expected = alone(base, blocks, UNEVEN, **kind)
        quiet = alone(base, blocks, UNEVEN, sum_dtype="integer_grid", noise=ZeroGrid())
        assert not torch.equal(expected[0], quiet[0]), "the noise is in quanta"
        # float32 forward passes of other companions may round a patient to another quantum
        for released, weights in steps(2, base, blocks, UNEVEN, **kind):
            assert torch.allclose(released, expected[0], rtol=1e-5, atol=1e-5)
            assert torch.allclose(weights, expected[1], rtol=1e-5, atol=1e-6)


class ZeroGrid(NoNoise):
    def draw_integers(self, permit: Any, length: int) -> torch.Tensor:
        return torch.zeros(length, dtype=torch.int64)


class TestDraw:
    def test_each_slot_goes_to_one_rank_and_shapes_show_the_rounds_only(
        self, blocks: Blocks
    ) -> None:
        """Neighbouring draws within a round give messages of the same size (W1)."""
        sizes = {}
        for count in (0, 1, 5, 6, 7):
            sent: list[int] = []

            def work(ranks: Ranks, count: int = count, sent: list[int] = sent) -> np.ndarray:
                def draw() -> np.ndarray:
                    sampler = FixedSampler([range(count)])
                    drawn = blocks.training.draw(sampler, rows_per_patient=2, slots_at_once=6)
                    return drawn.reveal_inside_step()

                told = ranks.tell
                ranks.tell = lambda *order: (sent.append(len(order[-1])), told(*order))  # type: ignore[method-assign, assignment, func-returns-value]
                return ranks.deal(draw)

            parts = on_threads(2, work)
            assert len(parts[0]) == len(parts[1]) == 3 * max(1, -(-count // 6))
            patients = np.concatenate([p[:, 0] for p in parts])
            assert sorted(patients[patients >= 0]) == list(range(count))
            assert parts[0][0, 0] == (0 if count else -1)
            assert parts[1][0, 0] == (1 if count > 1 else -1)
            sizes[count] = sent
        assert sizes[0] == sizes[1] == sizes[5] == sizes[6] != sizes[7]

    def test_only_rank_0_may_own_sampler_or_noise(self, blocks: Blocks) -> None:
        class Second:
            rank, world_size = 1, 2

        model = adapted("gpt2")
        groups = clip_groups(model)
        common: dict[str, Any] = {
            "groups": groups,
            "engine": make_engine(model, groups, Performance()),
            "batch_size_expected": 10,
            "noise_levels": ("1.000",),
        }
        inner = make_optimizer(groups, OptimizerPlan())
        with pytest.raises(InvariantViolation, match="noise source"):
            PlanOptimizer(inner, noise_source=NoNoise(), ranks=Second(), **common)  # type: ignore[arg-type]
        with pytest.raises(InvariantViolation, match="noise source"):
            PlanOptimizer(inner, noise_source=None, **common)
        step: dict[str, Any] = {
            "model": model,
            "optimizer": None,
            "records": blocks.training,
            "plan": make_plan(),
            "performance": Performance(),
        }
        with pytest.raises(InvariantViolation, match="sampler"):
            PrivateStep(sampler=FixedSampler([[]]), ranks=Second(), **step)  # type: ignore[arg-type]
        with pytest.raises(InvariantViolation, match="sampler"):
            PrivateStep(sampler=None, **step)


class TestNoise:
    def test_enters_once_whatever_the_world(self, blocks: Blocks) -> None:
        """Releases minus exact sums, over std: KS against N(0, 1) at 1e-5; x sqrt(2) fails.

        Two ranks that both added noise would give variance 2, an averaging all-reduce 1/4.
        """
        base = adapted("gpt2")
        exact, _ = alone(base, blocks, UNEVEN, noise=NoNoise())
        settings = step_settings(base)
        sizes = settings.layout.sizes
        stds = torch.tensor(settings.noise_stds, dtype=torch.float64)
        stds = stds.repeat_interleave(torch.tensor(sizes))
        for world in (2, 4):
            (released, _), *_ = steps(world, base, blocks, UNEVEN)
            unit = ((released - exact)[: len(stds)] / stds).numpy()
            assert stats.kstest(unit, "norm").pvalue > 1e-5
            for wrong in (2**0.5, 2**-0.5):
                assert stats.kstest(unit * wrong, "norm").pvalue < 1e-5

    def test_of_a_whole_run_is_fresh_in_each_step_and_drawn_once(self, blocks: Blocks) -> None:
        """Empty draws and the production source: releases of two ranks are the noise alone.

        KS over all steps at 1e-5; correlation of any two of the six steps within
        4.5 / sqrt(n), false alarm about 1e-4.
        """
        plan = make_plan()
        held = models(2, attach_adapters(tiny_gpt2(), plan.adapter, seed=3))
        seen: dict[int, list[torch.Tensor]] = {0: [], 1: []}

        def work(ranks: Ranks) -> Job:
            source = OsEntropySource() if ranks.rank == 0 else None
            job = Job(ranks, held[ranks.rank], blocks, plan, draws=[[]], noise=source)
            take_step = job.replica.take_step

            def watch(permit: Any, settings: StepSettings, **kind: Any) -> ReleasedStep:
                released = take_step(permit, settings, **kind)
                stds = torch.tensor(settings.noise_stds)
                stds = stds.repeat_interleave(torch.tensor(released.sizes))
                seen[ranks.rank].append(released.gradient / stds)
                return released

            job.replica.take_step = watch  # type: ignore[method-assign]
            return job.run()

        assert all(isinstance(job, Job) for job in on_threads(2, work))
        unit = torch.stack(seen[0])
        assert torch.equal(unit, torch.stack(seen[1]))
        assert stats.kstest(unit.flatten().numpy(), "norm").pvalue > 1e-5
        assert stats.kstest(unit.flatten().numpy() * 2**0.5, "norm").pvalue < 1e-5
        between = torch.corrcoef(unit) - torch.eye(6)
        assert float(between.abs().max()) < 4.5 / unit.shape[1] ** 0.5

    def test_is_in_the_sums_before_they_are_added_up(self, blocks: Blocks) -> None:
        """Rank 0's part of the all-reduce differs from its exact sums by the noise (W3)."""
        base = adapted("gpt2")
        held = models(2, base)

        def work(ranks: Ranks, noise: Any) -> torch.Tensor:
            sent = []
            add_up = ranks.add_up

            def watch(vector: torch.Tensor) -> None:
                sent.append(vector.clone())
                add_up(vector)

            ranks.add_up = watch  # type: ignore[method-assign]
            OneStep(ranks, copy.deepcopy(held[ranks.rank]), blocks, UNEVEN, noise=noise()).run()
            assert len(sent) == 1, "one all-reduce a step"
            return sent[0]

        kept = KeptNoise(1)
        noisy = on_threads(2, lambda ranks: work(ranks, lambda: kept))
        exact = on_threads(2, lambda ranks: work(ranks, NoNoise))
        assert torch.equal(noisy[1], exact[1])
        count = sum(g.size for g in clip_groups(base))
        stds = step_settings(base).noise_stds
        sizes = torch.tensor([g.size for g in clip_groups(base)])
        expected = kept.kept[0][:count] * torch.tensor(stds).repeat_interleave(sizes)
        assert torch.allclose((noisy[0] - exact[0])[:count], expected, atol=1e-5)


class TestFailure:
    @pytest.mark.parametrize("failing", [0, 1])
    @pytest.mark.parametrize("sum_dtype", ["float32", "integer_grid"])
    def test_on_one_rank_fails_the_step_on_all_and_shows_no_sum(
        self, blocks: Blocks, failing: int, sum_dtype: str
    ) -> None:
        held = models(2, adapted("gpt2"))
        seen: list[torch.Tensor] = []

        def work(ranks: Ranks) -> ReleasedStep:
            one = OneStep(
                ranks,
                held[ranks.rank],
                blocks,
                UNEVEN,
                sum_dtype=sum_dtype,
                noise=ZeroGrid(),
            )
            if ranks.rank == failing:
                one.runner._records = Broken()  # type: ignore[assignment]
                one.runner._draw = lambda: np.full((6, 3), -1)  # type: ignore[method-assign]
            try:
                return one.run()
            finally:
                seen.append(one.optimizer._sums.vector)

        for error in on_threads(2, work):
            assert isinstance(error, StepFailed)
            assert "SECRET" not in str(error)
        assert all((vector == 0).all() for vector in seen)

    def test_before_the_sums_is_masked_on_the_wire(self) -> None:
        """A broken rank 0 has added no noise: the sum the others receive must say nothing."""

        def work(ranks: Ranks, dtype: torch.dtype) -> torch.Tensor:
            vector = torch.arange(500).to(dtype)
            wires = []
            allreduce = ranks._sums.allreduce  # type: ignore[attr-defined]

            class Watched:
                def allreduce(self, wire: torch.Tensor) -> Any:
                    wires.append(wire)
                    return allreduce(wire)

            ranks._sums = Watched()  # type: ignore[attr-defined]
            if ranks.rank == 0:
                ranks.drop_out(vector)
            else:
                with pytest.raises(RankLost):
                    ranks.add_up(vector)
            return wires[0][:-1]

        masked = on_threads(2, lambda ranks: work(ranks, torch.float32))[1]
        assert masked.isnan().all()
        padded = on_threads(2, lambda ranks: work(ranks, torch.int64))[1]
        # uniform 64-bit words: the chance that any is below 2^31 in size is 500 / 2^32
        assert (padded.abs() > 2**31).all()

    def test_of_a_rank_that_vanishes_ends_the_others_at_once(self, blocks: Blocks) -> None:
        held = models(2, adapted("gpt2"))

        def work(ranks: Ranks) -> ReleasedStep:
            one = OneStep(ranks, held[ranks.rank], blocks, UNEVEN)
            if ranks.rank == 1:
                ranks.deal(one.runner._draw)
                raise SystemError  # its sockets close with it
            return one.run()

        found = on_threads(2, work)
        assert isinstance(found[0], StepFailed)

    def test_of_a_silent_rank_ends_the_others_after_the_limit(self) -> None:
        def work(ranks: Ranks) -> None:
            if ranks.rank == 1:
                ranks.hear()

        found = on_threads(2, lambda ranks: (work(ranks), ranks.rank == 0 and _wait()), seconds=1)
        assert isinstance(found[1], RankLost)

    def test_of_the_journal_sends_the_other_ranks_home(self, blocks: Blocks) -> None:
        plan = make_plan()
        held = models(2, attach_adapters(tiny_gpt2(), plan.adapter, seed=3))

        def work(ranks: Ranks) -> Job:
            journal = MemoryJournal(plan)
            journal.is_reachable = False
            return Job(ranks, held[ranks.rank], blocks, plan, journal=journal).run()

        first, second = on_threads(2, work)
        assert isinstance(first, JournalUnavailable)
        assert isinstance(second, RankLost)


def _wait() -> None:
    import time

    time.sleep(3)


class Broken:
    def batch(self, *_: Any) -> Any:
        raise ValueError("patient-7 said SECRET")


class TestWholeRun:
    def jobs(self, world: int, blocks: Blocks, held: list[Any], **changes: Any) -> list[Any]:
        plan = make_plan()
        return on_threads(
            world,
            lambda ranks: Job(
                ranks, held[ranks.rank], blocks, plan, draws=JOB_DRAWS, **changes
            ).run(),
        )

    def test_two_ranks_end_bit_equal_and_where_one_process_does(self, blocks: Blocks) -> None:
        plan = make_plan()
        base = attach_adapters(tiny_gpt2(), plan.adapter, seed=3)
        held = models(2, base)
        single = Job(SINGLE, base, blocks, plan, draws=JOB_DRAWS).run()
        first, second = self.jobs(2, blocks, held)
        expected, ours, others = single.tensors(), first.tensors(), second.tensors()
        assert all(torch.equal(ours[n], others[n]) for n in ours)
        weights = {n for n in ours if not n.startswith("exp_avg")}
        assert furthest({n: ours[n] for n in weights}, {n: expected[n] for n in weights}) < 1e-4
        assert [q.step for q in first.journal.queries] == [0, 0, 2, 4, 6]
        assert second.journal.charges == [], "only rank 0 talks to the journal"
        assert second.progress.steps == [] and second.store.saved == []
        for seen, known in zip(
            first.progress.evaluations, single.progress.evaluations, strict=True
        ):
            assert seen.loss.value == pytest.approx(known.loss.value, abs=1e-4)
        assert [c.settings_digest() for c in first.journal.charges][:1] == [
            c.settings_digest() for c in single.journal.charges
        ][:1]

    def test_a_stopped_run_resumes_on_all_ranks_from_rank_0s_checkpoint(
        self, blocks: Blocks
    ) -> None:
        plan = make_plan()
        base = attach_adapters(tiny_gpt2(), plan.adapter, seed=3)
        held = models(2, base)
        store, journal = MemoryStore(), MemoryJournal(plan)
        first, second = self.jobs(
            2, blocks, models(2, base), store=store, journal=journal, stop_after=2
        )
        assert store.saved == [(2, 0)]
        assert second.replica.step == 2
        journal.attempt = 2

        def resume(ranks: Ranks) -> Job:
            own = store if ranks.rank == 0 else MemoryStore()
            return Job(ranks, held[ranks.rank], blocks, plan, store=own, journal=journal).run()

        first, second = on_threads(2, resume)
        assert first.replica.step == second.replica.step == 6
        ours, others = first.tensors(), second.tensors()
        assert all(torch.equal(ours[n], others[n]) for n in ours)

    @pytest.mark.parametrize("what", ["weights", "records", "plan", "microbatch"])
    def test_ranks_that_hold_something_else_are_refused_before_any_charge(
        self, blocks: Blocks, what: str
    ) -> None:
        plan = make_plan()
        held = models(2, attach_adapters(tiny_gpt2(), plan.adapter, seed=3))
        if what == "weights":
            with torch.no_grad():
                clip_groups(held[1])[0].parameters[0][0, 0] += 1e-7
        journal = MemoryJournal(plan)

        def work(ranks: Ranks) -> Job:
            own_blocks, own_plan = blocks, plan
            if ranks.rank == 1 and what == "records":
                rows = [blocks.training.raw_rows_of(i) for i in range(blocks.training.raw_size)]
                turned = PatientRecords(raw_rows=rows[::-1], tokens_per_row=16, pad_id=2)
                own_blocks = dataclasses.replace(blocks, training=turned)
            if ranks.rank == 1 and what == "plan":
                own_plan = dataclasses.replace(plan, seed=4)
            job = Job(ranks, held[ranks.rank], own_blocks, own_plan, journal=journal)
            if ranks.rank == 1 and what == "microbatch":
                job.replica._performance = Performance(patients_per_microbatch=4)
            return job.run()

        assert all(isinstance(error, RanksDiffer) for error in on_threads(2, work))
        assert journal.charges == [] and journal.queries == []

    def test_ranks_that_drift_apart_are_noticed_at_the_window_border(self, blocks: Blocks) -> None:
        plan = make_plan()
        held = models(2, attach_adapters(tiny_gpt2(), plan.adapter, seed=3))

        def work(ranks: Ranks) -> Job:
            job = Job(ranks, held[ranks.rank], blocks, plan)
            if isinstance(job.replica, Follower):
                update = job.replica.averaged.update

                def drift() -> None:
                    update()
                    job.replica.averaged.sums[0][0, 0] += 1e-6

                job.replica.averaged.update = drift  # type: ignore[method-assign]
            return job.run()

        assert all(isinstance(error, RanksDiffer) for error in on_threads(2, work))


class TestEnvironment:
    def test_without_torchrun_a_process_is_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        assert from_environment() is SINGLE

    def test_half_an_environment_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.delenv("RANK", raising=False)
        with pytest.raises(PlanInvalid, match="torchrun"):
            from_environment()

    def test_a_single_process_hears_no_orders(self) -> None:
        with pytest.raises(InvariantViolation):
            SINGLE.hear()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two real processes left behind, started as torchrun starts them."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "plan.json").write_text(json.dumps(make_plan().to_dict()))
    write_version(folder / "version.jsonl", 120)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.dp_core.rank_process", str(folder)],
            cwd=Path(__file__).parents[2],
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)
    return folder


class TestProcesses:
    def test_a_whole_run_ends_where_one_process_does(self, processes: Path, blocks: Blocks) -> None:
        plan = make_plan()
        model = attach_adapters(tiny_gpt2(), plan.adapter, seed=3)
        single = Job(SINGLE, model, blocks, plan, draws=JOB_DRAWS).run()
        first, second = (load_file(processes / f"job-{rank}.safetensors") for rank in (0, 1))
        assert all(torch.equal(first[name], second[name]) for name in first)
        weights = {n: t for n, t in single.tensors().items() if not n.startswith("exp_avg")}
        assert furthest({n: first[n] for n in weights}, weights) < 1e-4

    @pytest.mark.parametrize("case", ["gpt2", "llama", "llama-bf16"])
    def test_a_sharded_base_gives_the_same_step(
        self, processes: Path, blocks: Blocks, case: str
    ) -> None:
        released, weights = alone(sharding_case(case), blocks, UNEVEN)
        for rank in (0, 1):
            found = load_file(processes / f"{case}-{rank}.safetensors")
            # bf16 products round by the companions of a row in its batch, hence the noise's
            # size decides: 1e-2 of it
            limit = 1e-2 if case.endswith("bf16") else 1e-5
            assert torch.allclose(found["released"], released, rtol=limit, atol=limit)
            assert torch.allclose(found["weights"], weights, rtol=limit, atol=limit)
            assert found["share_held"] < 0.6, "each rank holds about half of the base"
