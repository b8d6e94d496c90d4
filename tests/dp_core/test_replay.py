"""The transcript depends on the data through noised outputs alone (REPLAY; 2602.17454).

A job is recorded on D. On neighbouring data the same job runs for real, with the same coins,
up to the noise; there each output is replaced by the recorded one. Everything that could be
seen must then be equal, and what lay below the noise must be within its declared reach.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from dp_core.events import canonical_json
from dp_core.noise import SeededSource
from dp_core.plan import RunPlan
from dp_core.plan_optimizer import ReleasedStep
from dp_core.ports import ChunkPermit, EvaluationReport, GroupActions
from dp_core.records import Blocks, PatientRecords
from dp_core.sampling import PoissonSampler
from dp_core.telemetry import WindowTelemetry
from tests.dp_core.conftest import make_plan
from tests.dp_core.training_cases import Recorded


class Reactive:
    """A policy whose every action hangs on every figure it was ever shown."""

    name = "reactive_test"

    def __init__(self) -> None:
        self.seen = hashlib.sha256()

    def propose(self, telemetry: WindowTelemetry) -> GroupActions:
        self.seen.update(repr(telemetry).encode())
        count = len(telemetry.groups)
        numbers = [b / 128 - 1 for b in hashlib.shake_128(self.seen.digest()).digest(3 * count + 2)]
        return GroupActions(
            clip=tuple(numbers[:count]),
            share=tuple(numbers[count : 2 * count]),
            rate=tuple(numbers[2 * count : 3 * count]),
            base_rate=numbers[-2],
            level=numbers[-1],
        )

    def learn(self, telemetry: WindowTelemetry) -> None:
        self.seen.update(repr(telemetry).encode())

    def digest(self) -> str:
        return self.seen.hexdigest()

    def state(self) -> dict[str, bytes]:
        return {"seen": self.seen.digest()}

    def restore(self, state: Mapping[str, bytes]) -> None: ...


class Counting(SeededSource):
    """Notes the shape of every draw of noise."""

    def __init__(self, seed: int, note: Callable[..., None]) -> None:
        super().__init__(seed)
        self._note = note

    def _gaussian(self, length: int) -> torch.Tensor:
        self._note("noise", length)
        return super()._gaussian(length)


class Taped:
    """One run on tape: what it released, what lay below the noise, and what could be seen.

    Where the first patient is absent from a block the others keep their coins.
    """

    def __init__(
        self,
        blocks: Blocks,
        plan: RunPlan,
        *,
        replay: Taped | None = None,
        first_is_absent_from_training: bool = False,
        first_is_absent_from_validation: bool = False,
    ) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self.steps: list[ReleasedStep] = []
        self.reports: list[EvaluationReport | None] = []
        self.raw_sums: list[torch.Tensor] = []
        self.raw_hold_out_sums: list[float] = []
        self.replay, self.plan = replay, plan
        self.run = Recorded(
            blocks, plan=plan, policy=Reactive(), noise=Counting(5, lambda *e: self.seen.append(e))
        )
        training = self.run.training
        assert training.hold_out is not None
        _throw_known_coins(
            training.step_runner._sampler, 1, first_is_absent=first_is_absent_from_training
        )
        _throw_known_coins(
            training.hold_out._sampler, 2, first_is_absent=first_is_absent_from_validation
        )
        self._tap_releases()
        self._tap_what_is_seen()
        self.result = self.run.run()

    def _tap_releases(self) -> None:
        optimizer, hold_out = self.run.training.optimizer, self.run.training.hold_out
        add_noise, ask, raw_sum = optimizer.add_noise, hold_out.ask, hold_out._raw_sum  # type: ignore[union-attr]

        def taped_noise() -> None:
            self.raw_sums.append(optimizer._sums.vector.double().clone())
            add_noise()
            if self.replay is not None:
                optimizer.released = self.replay.steps[len(self.steps)]
            assert optimizer.released is not None
            self.steps.append(optimizer.released)

        def taped_ask(*arguments: Any, **named: Any) -> EvaluationReport | None:
            report = ask(*arguments, **named)
            if self.replay is not None:
                report = self.replay.reports[len(self.reports)]
            self.reports.append(report)
            return report

        def taped_raw_sum(*arguments: Any) -> float:
            self.raw_hold_out_sums.append(raw_sum(*arguments))
            return self.raw_hold_out_sums[-1]

        for owner, name, taped in (
            (optimizer, "add_noise", taped_noise),
            (hold_out, "ask", taped_ask),
            (hold_out, "_raw_sum", taped_raw_sum),
        ):
            object.__setattr__(owner, name, taped)

    def _tap_what_is_seen(self) -> None:
        """Every call that leaves the loop, in order, with its values."""
        run, training = self.run, self.run.training
        for owner, names in (
            (run.journal, ("open_chunk", "close_chunk", "charge_query")),
            (run.store, ("save",)),
            (run.progress, ("window_opened", "step_finished", "window_finished", "evaluated")),
            (training.policy, ("propose", "learn")),
        ):
            for name in names:
                self._tap(owner, name)
        step = training.step_runner.run

        def taped_step(permit: ChunkPermit, settings: Any, index: int, *more: Any) -> ReleasedStep:
            rates = tuple(g["lr"] for g in training.optimizer.param_groups)
            self.seen.append(("step", permit, settings, index, rates))
            return step(permit, settings, index, *more)

        object.__setattr__(training.step_runner, "run", taped_step)

    def _tap(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def taped(*arguments: Any, **named: Any) -> Any:
            answer = original(*arguments, **named)
            self.seen.append((name, arguments, named, answer))
            return answer

        setattr(owner, name, taped)

    def journal_bytes(self) -> bytes:
        entries: list[Any] = [*self.run.journal.charges, *self.run.journal.queries]
        return canonical_json([dataclasses.asdict(entry) for entry in entries])

    def moved_from(self, other: Taped) -> list[float]:
        """Per step, how far the sums differ in units of their noise: at most 1/sigma."""
        moved = []
        settings = [e[2] for e in self.seen if e[0] == "step"]
        for mine, theirs, chosen in zip(self.raw_sums, other.raw_sums, settings, strict=True):
            each = [*chosen.noise_stds, *(chosen.bit_std,) * len(chosen.layout), chosen.loss_std]
            sizes = [*chosen.layout.sizes, *(1,) * len(chosen.layout), 1]
            stds = torch.tensor(each).double().repeat_interleave(torch.tensor(sizes))
            moved.append(float(((mine - theirs) / stds).norm()) * float(chosen.noise_multiplier))
        return moved


def _throw_known_coins(sampler: PoissonSampler | None, seed: int, *, first_is_absent: bool) -> None:
    """The same coins in every run; the first patient is in at two of three draws."""
    assert sampler is not None
    draws = iter(range(10**6))

    def entropy(length: int) -> bytes:
        draw = next(draws)
        others = hashlib.shake_128(f"{seed}/{draw}".encode()).digest(length)
        if first_is_absent:
            return others
        return (b"\x00" if draw % 3 else b"\xff") * 8 + others[: length - 8]

    sampler._entropy = entropy


def without_first(records: PatientRecords | None) -> PatientRecords:
    assert records is not None
    rest = [records.raw_rows_of(patient) for patient in range(1, records.raw_size)]
    return PatientRecords(raw_rows=rest, tokens_per_row=16, pad_id=2)


@pytest.fixture
def plan() -> RunPlan:
    # Every row of a drawn patient is used, so that row choice needs no coins of its own.
    return dataclasses.replace(make_plan(rows_per_patient_max=2), sum_dtype="float64")


def run_quietly(capfd: pytest.CaptureFixture[str], make: Callable[[], Taped]) -> tuple[Taped, str]:
    taped = make()
    return taped, "".join(capfd.readouterr())


class TestReplay:
    def test_on_neighbouring_training_data_everything_seen_is_equal(
        self,
        blocks: Blocks,
        plan: RunPlan,
        capfd: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(0)
        first, printed = run_quietly(capfd, lambda: Taped(blocks, plan))
        logged = caplog.text
        caplog.clear()
        neighbour = dataclasses.replace(blocks, training=without_first(blocks.training))
        second, printed_then = run_quietly(
            capfd, lambda: Taped(neighbour, plan, replay=first, first_is_absent_from_training=True)
        )
        assert_same_transcript(first, second)
        assert (printed_then, caplog.text) == (printed, logged)
        moved = second.moved_from(first)
        assert all(m <= 1 + 1e-5 for m in moved), moved
        assert max(moved) > 0.5, "the patient was drawn and had a say"
        assert min(moved) < 1e-5, "the patient was not drawn: only rounding is left"
        assert second.raw_hold_out_sums == first.raw_hold_out_sums

    def test_on_neighbouring_hold_out_data_everything_seen_is_equal(
        self, blocks: Blocks, plan: RunPlan
    ) -> None:
        first = Taped(blocks, plan)
        neighbour = dataclasses.replace(blocks, validation=without_first(blocks.validation))
        second = Taped(neighbour, plan, replay=first, first_is_absent_from_validation=True)
        assert_same_transcript(first, second)
        assert all(torch.equal(a, b) for a, b in zip(first.raw_sums, second.raw_sums, strict=True))
        moved = [
            abs(a - b)
            for a, b in zip(first.raw_hold_out_sums, second.raw_hold_out_sums, strict=True)
        ]
        assert max(moved) <= float(plan.telemetry.loss_cap) / 2 * (1 + 1e-6)
        assert max(moved) > 0.05, "the patient was drawn and had a say"

    def test_the_policy_of_these_runs_reacts_to_the_smallest_change(self, blocks: Blocks) -> None:
        run = Recorded(blocks)
        seen = run.training.telemetry
        nudged = dataclasses.replace(seen, filter_used=math.nextafter(seen.filter_used, 1))
        assert Reactive().propose(seen) == Reactive().propose(seen)
        assert Reactive().propose(seen) != Reactive().propose(nudged)


def assert_same_transcript(first: Taped, second: Taped) -> None:
    assert len(first.steps) == 6
    assert len(first.reports) == 5
    kinds = [[e[0] for e in taped.seen] for taped in (first, second)]
    assert kinds[0] == kinds[1], "control flow"
    for mine, theirs in zip(first.seen, second.seen, strict=True):
        assert repr(mine) == repr(theirs)
    assert repr(first.run.first_seen) == repr(second.run.first_seen)
    assert first.journal_bytes() == second.journal_bytes()
    assert first.run.store.files == second.run.store.files
    assert first.result == second.result
