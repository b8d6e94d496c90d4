"""Killed at every point of a window: nothing runs uncharged, little is charged in vain
(JOURNAL, RESUME; M15, M16, M23)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dp_core.errors import StepFailed
from dp_core.noise import OsEntropySource
from dp_core.records import Blocks
from tests.dp_core.conftest import make_plan
from tests.dp_core.training_cases import Recorded
from tests.fakes import MemoryJournal, MemoryStore

POINTS = (
    "before_open",
    "after_open",
    "after_draw",
    "after_noise",
    "after_update",
    "before_close",
)


class Killed(BaseException):
    """Like a signal: no handler of the loop may turn it into anything else."""


class Kept(OsEntropySource):
    """Keeps what it draws, to compare attempts."""

    def __init__(self, drawn: list[torch.Tensor]) -> None:
        super().__init__()
        self.vectors = drawn

    def _gaussian(self, length: int) -> torch.Tensor:
        self.vectors.append(super()._gaussian(length))
        return self.vectors[-1]


class Job:
    """Attempts of one job over one journal and store; counts draws of patients."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks, self.plan = blocks, make_plan()
        self.journal, self.store = MemoryJournal(self.plan), MemoryStore()
        self.noise: list[torch.Tensor] = []
        self.started = 0

    @property
    def charged(self) -> int:
        return sum(c.steps for c in self.journal.charges)

    def attempt(self) -> Recorded:
        run = Recorded(
            self.blocks,
            plan=self.plan,
            journal=self.journal,
            store=self.store,
            noise=Kept(self.noise),
        )
        run.training.hold_out = None
        sampler = run.training.step_runner._sampler
        assert sampler is not None
        draw = sampler.draw

        def counted() -> Any:
            self.started += 1
            assert self.started <= self.charged, "patients are drawn after the charge"
            return draw()

        sampler.draw = counted  # type: ignore[method-assign]
        return run


def kill_at(point: str, run: Recorded) -> None:
    """Dies at `point` of the second window's first step."""
    training = run.training
    owner: Any
    owner, name, dies_before, dies_on_call = {
        "before_open": (run.journal, "open_chunk", True, 2),
        "after_open": (run.journal, "open_chunk", False, 2),
        "after_draw": (training.step_runner._sampler, "draw", False, 3),
        "after_noise": (training.optimizer, "add_noise", False, 3),
        "after_update": (training.optimizer.original_optimizer, "step", False, 3),
        "before_close": (run.journal, "close_chunk", True, 2),
    }[point]
    original, calls = getattr(owner, name), iter(range(1, 100))

    def deadly(*arguments: Any, **named: Any) -> Any:
        dies = next(calls) == dies_on_call
        if dies and dies_before:
            raise Killed
        answer = original(*arguments, **named)
        if dies:
            raise Killed
        return answer

    object.__setattr__(owner, name, deadly)


class TestKilled:
    @pytest.mark.parametrize("is_same_attempt", [False, True], ids=["new_attempt", "retried"])
    @pytest.mark.parametrize("point", POINTS)
    def test_started_steps_are_charged_and_at_most_one_window_in_vain(
        self, blocks: Blocks, point: str, is_same_attempt: bool
    ) -> None:
        job = Job(blocks)
        doomed = job.attempt()
        kill_at(point, doomed)
        with pytest.raises(Killed):
            doomed.run()
        assert job.started <= job.charged <= 4
        job.journal.attempt += not is_same_attempt
        assert job.attempt().run().outcome == "completed"
        window = job.plan.steps_per_chunk
        assert job.started <= job.charged <= job.plan.steps_planned + window
        lost = 0 if point == "before_open" else window
        assert job.charged == job.plan.steps_planned + lost, "what was opened stays charged"

    def test_redone_steps_get_noise_of_their_own(self, blocks: Blocks) -> None:
        job = Job(blocks)
        doomed = job.attempt()
        kill_at("before_close", doomed)
        with pytest.raises(Killed):
            doomed.run()
        job.journal.attempt += 1
        job.attempt().run()
        assert len(job.noise) == 8
        for i, a in enumerate(job.noise):
            for b in job.noise[:i]:
                # unit Gaussians of this length: 5 / sqrt(n), false alarm 6e-7 a pair
                assert abs(float((a * b).mean())) < 5 / len(a) ** 0.5


class TestFailed:
    def test_a_step_that_fails_once_is_not_run_again_on_its_charge(self, blocks: Blocks) -> None:
        job = Job(blocks)
        run = job.attempt()
        records = run.training.step_runner._records
        original, calls = records.batch, iter(range(100))

        def fails_once(*arguments: Any, **named: Any) -> Any:
            if next(calls) == 0:
                raise RuntimeError("a passing fault")
            return original(*arguments, **named)

        records.batch = fails_once  # type: ignore[method-assign]
        try:
            with pytest.raises(StepFailed):
                run.run()
        finally:
            del records.batch
        assert job.started == 1, "the charged window was left, not drawn again"
        assert job.charged == 2


class TestEmptyDraw:
    def test_takes_a_charged_step_with_noise(self, blocks: Blocks) -> None:
        job = Job(blocks)
        run = job.attempt()
        sampler = run.training.step_runner._sampler
        assert sampler is not None
        sampler._entropy = lambda length: b"\xff" * length  # nobody is in
        before = [p.detach().clone() for g in run.training.groups for p in g.parameters]
        assert run.run().steps_finished == 6
        assert len(job.noise) == job.charged == 6
        after = [p for g in run.training.groups for p in g.parameters]
        assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        loss = run.progress.windows[-1].telemetry.loss
        assert loss is not None, "the noised loss of nobody is reported like any other"


class TestRate:
    def test_patients_are_drawn_at_the_rate_that_is_charged(self, blocks: Blocks) -> None:
        """400 draws of the loop's own sampler; 5 sigma, false alarm 6e-7."""
        run = Recorded(blocks)
        run.run()
        sampler = run.training.step_runner._sampler
        assert sampler is not None
        drawn = sum(len(sampler.draw().reveal_inside_step()) for _ in range(400))
        throws = 400 * blocks.training.raw_size
        (q,) = {float(c.q) for c in run.journal.charges}
        assert abs(drawn - throws * q) < 5 * (throws * q * (1 - q)) ** 0.5
        assert q == run.plan.batch_size_expected / run.plan.patients_public
        assert run.plan.patients_public == 80, "the training block alone, without the hold-out"
