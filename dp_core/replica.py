"""What every rank of a job holds alike: adapters, optimiser, averages and the step counter.

One process has one replica. With several, `PrivateTraining` is the replica of rank 0 and
`Follower` that of any other: same releases in the same order, hence bit-equal state.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from dp_core.checkpoint import Snapshot
from dp_core.engine import CanaryRows, StepAudit
from dp_core.lora import clip_groups, layout_of
from dp_core.mechanism import StepSettings
from dp_core.noise import NoiseSource
from dp_core.plan import Performance, RunPlan
from dp_core.plan_optimizer import PlanOptimizer, ReleasedStep
from dp_core.ports import ChunkPermit
from dp_core.ranks import SINGLE, Ranks
from dp_core.records import Blocks
from dp_core.sampling import PoissonSampler
from dp_core.schedule import AveragedWeights, learning_rate, make_optimizer
from dp_core.step import PrivateStep, make_engine

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Replica:
    """The state of a job on one rank and the moves that change it.

    Adapters are replicated: no wrapper of `torch.distributed` may touch them (W2). Sampler
    and noise source exist on rank 0 alone (W1, W3).
    """

    def __init__(
        self,
        *,
        plan: RunPlan,
        model: Any,
        blocks: Blocks,
        noise_source: NoiseSource | None,
        performance: Performance,
        ranks: Ranks = SINGLE,
        audit: StepAudit | None = None,
    ) -> None:
        self.plan, self.model, self.ranks = plan, model, ranks
        self.audit = audit
        self._blocks, self._performance = blocks, performance
        self.groups = clip_groups(model, plan.clipping.grouping)
        self.layout = layout_of(self.groups)
        self.engine = make_engine(model, self.groups, performance)
        self.optimizer = PlanOptimizer(
            make_optimizer(self.groups, plan.optimizer),
            groups=self.groups,
            engine=self.engine,
            noise_source=noise_source,
            batch_size_expected=plan.batch_size_expected,
            noise_levels=plan.noise_levels,
            noise_schedule=plan.noise_schedule,
            sum_dtype=plan.sum_dtype,
            device=performance.device,
            ranks=ranks,
        )
        self.step_runner = PrivateStep(
            model=model,
            optimizer=self.optimizer,
            records=blocks.training,
            sampler=self._sampler(),
            plan=plan,
            performance=performance,
            ranks=ranks,
            audit=audit,
        )
        parameters = [p for g in self.groups for p in g.parameters]
        self.averaged = AveragedWeights(parameters, float(plan.optimizer.averaging_decay))
        self.step = 0

    def _sampler(self) -> PoissonSampler | None:
        if self.ranks.rank != 0:
            return None
        return PoissonSampler(
            sampling_probability=self.plan.sampling_probability,
            raw_population_size=self._sampled_units(),
        )

    def _sampled_units(self) -> int:
        """Patients, then the units of the audit. Secret."""
        return self._blocks.training.raw_size + (self.audit.units if self.audit else 0)

    def take_step(
        self,
        permit: ChunkPermit,
        settings: StepSettings,
        *,
        factors: Sequence[float],
        step_index: int,
        canaries: CanaryRows | None = None,
    ) -> ReleasedStep:
        """One charged step at the scheduled rate times each group's factor.

        `canaries` of an audit join the patients before the clip.
        """
        rate = learning_rate(self.plan.optimizer, self.step, self.plan.steps_planned)
        for group, factor in zip(self.optimizer.param_groups, factors, strict=True):
            group["lr"] = rate * factor
        released = self.step_runner.run(permit, settings, step_index, canaries)
        self.averaged.update()
        self.step += 1
        return released

    def agree_on_job(self) -> None:
        """Before anything is charged: same plan, arithmetic, records and state on every rank.

        Raises:
            RanksDiffer.
        """
        self.ranks.agree(self._job_fingerprint)

    def agree_on_state(self) -> None:
        """At window borders: bit-equal adapters, moments and averages.

        Raises:
            RanksDiffer.
        """
        self.ranks.agree(self._state_fingerprint)

    def _job_fingerprint(self) -> bytes:
        """Records count: index i must be the same patient everywhere, or a rank would add
        patients that were not drawn."""
        arithmetic = dataclasses.asdict(self._performance)
        arithmetic["device"] = self._performance.device.split(":")[0]
        parts = [self.plan.digest(), json.dumps(arithmetic, sort_keys=True)]
        digest = hashlib.sha256("\n".join(parts).encode())
        for block in (self._blocks.training, self._blocks.validation):
            digest.update(b"none" if block is None else block.raw_digest())
        digest.update(self._state_fingerprint())
        return digest.digest()

    def _state_fingerprint(self) -> bytes:
        digest = hashlib.sha256(f"{self.step} {self.averaged.weight!r}".encode())
        for name, tensor in sorted(self._named_tensors().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.digest()

    def _named_tensors(self) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        sums = iter(self.averaged.sums)
        for group in self.groups:
            for index, parameter in enumerate(group.parameters):
                key = f"{group.id}#{index}"
                state = self.optimizer.state[parameter]
                tensors[f"weight:{key}"] = parameter
                tensors[f"average:{key}"] = next(sums)
                for field in _MOMENTS:
                    if field in state:
                        tensors[f"{field}:{key}"] = state[field]
        return tensors

    @torch.no_grad()
    def take_up(self, snapshot: Snapshot) -> None:
        """Weights, averages, moments and step counter of a checkpoint."""
        sums = iter(self.averaged.sums)
        for group in self.groups:
            for index, parameter in enumerate(group.parameters):
                key = f"{group.id}#{index}"
                parameter.copy_(snapshot.tensors[f"weight:{key}"])
                next(sums).copy_(snapshot.tensors[f"average:{key}"])
                self.optimizer.state[parameter] = {
                    field: snapshot.tensors[f"{field}:{key}"].clone() for field in _MOMENTS
                }
        self.averaged.weight = snapshot.averaging_weight
        self.step = snapshot.step
