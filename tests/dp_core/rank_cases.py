"""Ranks for tests: threads of this process joined by gloo, and one job on several ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from controller.observation import describe_groups
from controller.reference import ReferencePolicy
from dp_core.distributed import ProcessRanks
from dp_core.follower import Follower
from dp_core.noise import NoiseSource
from dp_core.plan import Performance, RunPlan
from dp_core.ranks import Ranks
from dp_core.records import Blocks
from dp_core.sampling import PoissonSampler
from dp_core.telemetry import Raw
from dp_core.training import PrivateTraining
from tests.fakes import MemoryJournal, MemoryProgress, MemoryStore

T = TypeVar("T")


def on_threads(world: int, work: Callable[[Ranks], T], *, seconds: float = 20) -> list[T]:
    """`work` on every rank; results in rank order, an exception in the place of a result."""
    store = dist.HashStore()
    results: list[Any] = [TimeoutError("the rank hangs")] * world
    limit = timedelta(seconds=seconds)

    def run(rank: int) -> None:
        try:
            made = [
                dist.ProcessGroupGloo(dist.PrefixStore(name, store), rank, world, limit)
                for name in ("orders", "sums")
            ]
            results[rank] = work(ProcessRanks(orders=made[0], sums=made[1]))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * seconds)
    return results


class FixedSampler(PoissonSampler):
    """Gives the same patients in every world, and counts its draws."""

    def __init__(self, draws: Sequence[Sequence[int]]) -> None:
        super().__init__(sampling_probability="1", raw_population_size=1)
        self._draws = [np.asarray(d, dtype=np.int64) for d in draws]
        self.drawn = 0

    def draw(self) -> Raw[np.ndarray]:
        self.drawn += 1
        return Raw(self._draws[(self.drawn - 1) % len(self._draws)])


class KeptNoise(NoiseSource):
    """Seeded noise that is kept, so that a test can take it off again."""

    name, is_private = "kept_test", False

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = np.random.default_rng(seed)
        self.kept: list[torch.Tensor] = []

    def _gaussian(self, length: int) -> torch.Tensor:
        drawn = torch.from_numpy(self._generator.standard_normal(length).astype(np.float32))
        self.kept.append(drawn)
        return drawn


class Job:
    """One rank of a whole job, with rank 0's fakes beside it."""

    def __init__(
        self,
        ranks: Ranks,
        model: Any,
        blocks: Blocks,
        plan: RunPlan,
        *,
        draws: Sequence[Sequence[int]] | None = None,
        store: MemoryStore | None = None,
        stop_after: int | None = None,
        journal: MemoryJournal | None = None,
        noise: NoiseSource | None = None,
    ) -> None:
        self.ranks, self.model = ranks, model
        performance = Performance(patients_per_microbatch=3)
        self.journal = journal or MemoryJournal(plan)
        self.store, self.progress = store or MemoryStore(), MemoryProgress(stop_after)
        self.replica: PrivateTraining | Follower
        if ranks.rank == 0:
            self.replica = PrivateTraining(
                plan=plan,
                model=model,
                blocks=blocks,
                make_policy=lambda seen: ReferencePolicy(groups=describe_groups(seen)),
                journal=self.journal,
                checkpoints=self.store,
                progress=self.progress,
                noise_source=noise or KeptNoise(1),
                performance=performance,
                ranks=ranks,
            )
            if draws is not None:
                self.replica.step_runner._sampler = FixedSampler(draws)
                if self.replica.hold_out is not None:
                    self.replica.hold_out._sampler = FixedSampler([[0, 2, 3, 4, 7]])
        else:
            self.replica = Follower(
                plan=plan, model=model, blocks=blocks, performance=performance, ranks=ranks
            )

    def run(self) -> Job:
        self.replica.run()
        return self

    def tensors(self) -> Mapping[str, torch.Tensor]:
        return {n: t.detach().clone() for n, t in self.replica._named_tensors().items()}


def furthest(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Largest difference relative to each tensor's largest entry."""
    assert found.keys() == expected.keys()
    return max(
        float((found[n].double() - e.double()).abs().max() / e.double().abs().max().clamp(min=1e-9))
        for n, e in expected.items()
    )
