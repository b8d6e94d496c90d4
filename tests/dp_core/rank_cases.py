"""Ranks for tests: threads of this process joined by gloo, and one job on several ranks."""

from __future__ import annotations

import dataclasses
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
from dp_core.lora import clip_groups, layout_of
from dp_core.mechanism import admit
from dp_core.noise import NoiseSource
from dp_core.plan import Performance, RunPlan
from dp_core.plan_optimizer import PlanOptimizer, ReleasedStep
from dp_core.ports import GroupActions
from dp_core.ranks import Ranks
from dp_core.records import Blocks
from dp_core.sampling import PoissonSampler
from dp_core.step import PrivateStep, make_engine
from dp_core.telemetry import Raw
from dp_core.training import PrivateTraining
from tests.dp_core.conftest import make_plan
from tests.dp_core.engine_cases import PERMIT
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
            results[rank] = error.with_traceback(None)  # its frames would keep sockets open

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

    def pick(self, raw_choices: int, count: int) -> np.ndarray:
        return np.arange(min(raw_choices, count))


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


UNEVEN = [3, 5, 8, 9, 11, 14, 20]  # two ranks, three slots each: 4 and 3 patients
JOB_DRAWS = [UNEVEN, [], list(range(17)), [1]]


class OneStep:
    """A step of SGD on one rank of a world."""

    def __init__(
        self,
        ranks: Ranks,
        model: Any,
        blocks: Blocks,
        drawn: list[int],
        *,
        noise: Any = None,
        sum_dtype: Any = "float32",
        plan: RunPlan | None = None,
    ) -> None:
        plan = dataclasses.replace(plan or make_plan(), rows_per_patient_max=2)
        performance = Performance(patients_per_microbatch=3)
        self.groups = clip_groups(model)
        leads = ranks.rank == 0
        self.noise = (noise or KeptNoise(1)) if leads else None
        self.optimizer = PlanOptimizer(
            torch.optim.SGD([{"params": list(g.parameters)} for g in self.groups], lr=1.0),
            groups=self.groups,
            engine=make_engine(model, self.groups, performance),
            noise_source=self.noise,
            batch_size_expected=10,
            noise_levels=plan.noise_levels,
            sum_dtype=sum_dtype,
            ranks=ranks,
        )
        count = len(self.groups)
        actions, references = GroupActions.neutral(count), (0.02,) * count
        self.settings = admit(plan, layout_of(self.groups), references, actions)
        self.runner = PrivateStep(
            model=model,
            optimizer=self.optimizer,
            records=blocks.training,
            sampler=FixedSampler([drawn]) if leads else None,
            plan=plan,
            performance=performance,
            ranks=ranks,
        )

    def run(self) -> ReleasedStep:
        return self.runner.run(PERMIT, self.settings, 0)

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for g in self.groups for p in g.parameters])


def flat(released: ReleasedStep) -> torch.Tensor:
    loss = torch.tensor([released.loss_sum], dtype=torch.float64)
    return torch.cat([released.gradient.double(), released.bit_sums.double(), loss])
