"""Which run comes next: a pure function of the suite and of what is finished.

Nothing is remembered between calls, so a study that was stopped anywhere goes on by asking
again. Order of worth: all arms at their tuned rates seed by seed, then the untuned column,
then the shorter budget.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from controller.benchmark.results import Result, Run
from controller.benchmark.suites import CEILING, FLOOR, RATE_FIRST, RATES, Suite, Workload

Find = Callable[[Run], Result | None]
TUNING_SEED = 1_000  # no seed of a table
CLIMB_RUNS = 4  # usual length of a climb, for forecasts


@dataclass(frozen=True, kw_only=True)
class ArmFacts:
    """What a study needs to know of an arm."""

    name: str
    published: bool
    default_learning_rate: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model, corpus and epsilon: a section of the table."""

    model: str
    workload: Workload
    epsilon: str

    def run(self, arm: str, *, rate: str, seed: int, split: str = "test") -> Run:
        epsilon = "inf" if arm in (FLOOR, CEILING) else self.epsilon
        return Run(
            model=self.model,
            workload=self.workload,
            arm=arm,
            epsilon=epsilon,
            learning_rate=rate,
            seed=seed,
            split="test" if split == "test" else "tuning",
        )

    def shorter(self) -> Cell:
        """Half the steps; sigma and learning rate are calibrated and tuned anew for it."""
        steps = max(self.workload.steps // 2, 1)
        return dataclasses.replace(self, workload=dataclasses.replace(self.workload, steps=steps))


@dataclass(frozen=True, kw_only=True)
class Climb:
    """A search on the common grid of rates: its best so far, and what to try next."""

    best: str | None
    next: tuple[str, ...]  # empty: the best has both neighbours behind it

    @property
    def is_done(self) -> bool:
        return not self.next and self.best is not None


class Study:
    """The runs of a suite over some arms."""

    def __init__(self, suite: Suite, arms: Sequence[ArmFacts], find: Find) -> None:
        self.suite, self.arms, self._find = suite, tuple(arms), find
        self.cells = [
            Cell(model=model, workload=workload, epsilon=epsilon)
            for model in suite.models
            for workload in suite.workloads
            for epsilon in suite.epsilons
        ]
        self.seeds = range(1, suite.seeds + 1)

    def climb(self, cell: Cell, arm: str) -> Climb:
        """The arm's learning rate on the tuning split, by steps of two from the same start.

        A parabola of the loss over the log of the rate has one valley; the climb ends when
        both neighbours of the best are worse, or the grid ends.
        """
        if not self.suite.is_tuned:
            return Climb(best=RATE_FIRST, next=())
        runs = [cell.run(arm, rate=r, seed=TUNING_SEED, split="tuning") for r in RATES]
        losses = {i: found.loss for i, r in enumerate(runs) if (found := self._find(r))}
        if RATES.index(RATE_FIRST) not in losses:
            return Climb(best=None, next=(RATE_FIRST,))
        best = min(losses, key=lambda i: losses[i])
        open_sides = [i for i in (best - 1, best + 1) if 0 <= i < len(RATES)]
        wanted = tuple(RATES[i] for i in open_sides if i not in losses)
        return Climb(best=RATES[best], next=wanted)

    def tuned_rate(self, cell: Cell, arm: str) -> str | None:
        """The rate a finished climb chose; None while it goes on."""
        climb = self.climb(cell, arm)
        return climb.best if climb.is_done else None

    def ready(self) -> Iterator[Run]:
        """Unfinished runs that can start now, in order of worth. May repeat."""
        return (run for run in self._all() if self._find(run) is None)

    def _all(self) -> Iterator[Run]:
        for cell in self._first_epsilons():
            yield cell.run(FLOOR, rate="0", seed=1)
        for model in self.suite.models:
            for workload in self.suite.workloads:
                cells = [c for c in self.cells if (c.model, c.workload) == (model, workload)]
                for seed in self.seeds:
                    for cell in cells:
                        for arm in self._names_at(cell):
                            yield from self._tuned(cell, arm, [seed])
        yield from self._untuned()
        yield from self._short()

    def _names_at(self, cell: Cell) -> list[str]:
        """Arms of a cell; the ceiling knows no epsilon and runs in the first alone."""
        names = [arm.name for arm in self.arms]
        return [*names, CEILING] if cell in self._first_epsilons() else names

    def _first_epsilons(self) -> list[Cell]:
        return [c for c in self.cells if c.epsilon == self.suite.epsilons[0]]

    def _tuned(self, cell: Cell, arm: str, seeds: Sequence[int]) -> Iterator[Run]:
        climb = self.climb(cell, arm)
        if not climb.is_done:
            for rate in climb.next:
                yield cell.run(arm, rate=rate, seed=TUNING_SEED, split="tuning")
        elif climb.best is not None:
            for seed in seeds:
                yield cell.run(arm, rate=climb.best, seed=seed)

    def _untuned(self) -> Iterator[Run]:
        for seed in self.seeds[: self.suite.seeds_untuned]:
            for cell in self.cells:
                for arm in self.arms:
                    yield cell.run(arm.name, rate=arm.default_learning_rate, seed=seed)

    def short_arms(self, cell: Cell) -> list[str]:
        """The arms of lowest test loss, once every arm has a seed; else none."""
        losses = {}
        for arm in self.arms:
            rate = self.tuned_rate(cell, arm.name)
            found = None if rate is None else self._find(cell.run(arm.name, rate=rate, seed=1))
            if found is None:
                return []
            losses[arm.name] = found.loss
        return sorted(losses, key=lambda name: losses[name])[: self.suite.arms_short]

    def short_cells(self) -> list[Cell]:
        """Cells that are also run on the shorter budget: first model and corpus, first epsilon."""
        return self.cells[:1] if self.suite.arms_short else []

    def _short(self) -> Iterator[Run]:
        for cell in self.short_cells():
            for arm in self.short_arms(cell):
                seeds = self.seeds[: self.suite.seeds_short]
                yield from self._tuned(cell.shorter(), arm, seeds)

    def forecast(self) -> int:
        """About how many runs are left; climbs not yet ended count their usual length."""
        left = 0
        for cell in self.cells:
            for arm in self._names_at(cell):
                left += self._forecast_tuned(cell, arm, len(self.seeds))
        left += sum(self._find(run) is None for run in self._untuned())
        for cell in self.short_cells():
            arms = self.short_arms(cell) or [a.name for a in self.arms[: self.suite.arms_short]]
            seeds = min(self.suite.seeds_short, len(self.seeds))
            left += sum(self._forecast_tuned(cell.shorter(), arm, seeds) for arm in arms)
        return left

    def _forecast_tuned(self, cell: Cell, arm: str, seeds: int) -> int:
        climb = self.climb(cell, arm)
        if climb.is_done and climb.best is not None:
            runs = [cell.run(arm, rate=climb.best, seed=s) for s in self.seeds[:seeds]]
            return sum(self._find(run) is None for run in runs)
        tried = [cell.run(arm, rate=r, seed=TUNING_SEED, split="tuning") for r in RATES]
        done = sum(self._find(run) is not None for run in tried)
        return seeds + max(CLIMB_RUNS - done, len(climb.next))
