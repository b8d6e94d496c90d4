"""What one arm of the benchmark is: changes to a plan request, and a hyper-policy.

All arms run under one contract. The plan that `plan_request` gives is calibrated to the
same (epsilon, delta) as every other arm's, its sensing included, and the policy sees
released and public values only. A published method that reads raw gradient statistics
reads, here, what the plan pays for; its module says what that changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from controller.observation import GroupDescription
from dp_core.planner import PlanRequest
from dp_core.ports import HyperPolicy

# Of an arm that reads no signal: what it leaves to the signals, which a plan always releases.
NO_SENSING = "0.000001"

Trains = Literal["A_and_B", "B"]


class PolicyMaker(Protocol):
    """Makes the fresh policy of one job."""

    def __call__(
        self, *, groups: Sequence[GroupDescription], seed: int, chunks_planned: int
    ) -> HyperPolicy: ...


class Tampering(Protocol):
    """Makes a training class whose noise is not the one that was charged."""

    def __call__(self) -> type[Any]: ...


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One method under the benchmark's contract. Everything in it is public.

    `prepare` is a pure function: it sets clipping, telemetry, noise schedule or optimiser of
    a request and leaves target, patients, batch and steps alone. The learning rate belongs
    to `plan_request`, not to `prepare`. `default_learning_rate` is what the source reports
    for its nearest language task, used untuned.
    """

    name: str
    source: str  # arXiv id and section, or "this package"
    summary: str  # one line for a table
    published: bool
    default_learning_rate: str
    prepare: Callable[[PlanRequest], PlanRequest]
    policy: PolicyMaker
    trains: Trains = "A_and_B"
    is_ablation: bool = False
    benchmark_only: bool = False  # its noise is not what it is charged for
    tampering: Tampering | None = None

    def __post_init__(self) -> None:
        if (self.tampering is not None) != self.benchmark_only:
            raise ValueError("An arm that tampers with noise is for benchmarks only.")

    def plan_request(
        self, request: PlanRequest, *, learning_rate: str | None = None
    ) -> PlanRequest:
        """The request of this arm; at its published learning rate unless one is given."""
        prepared = self.prepare(request)
        rate = learning_rate or self.default_learning_rate
        return dataclasses.replace(
            prepared,
            controller_type=self.name,
            optimizer=dataclasses.replace(prepared.optimizer, learning_rate=rate),
        )

    def make_policy(
        self, *, groups: Sequence[GroupDescription], seed: int, chunks_planned: int
    ) -> HyperPolicy:
        """A fresh policy for one job. Equal arguments and telemetry: equal actions."""
        return self.policy(groups=groups, seed=seed, chunks_planned=chunks_planned)

    def freeze(self, model: Any) -> None:
        """Freezes the adapter tensors that this arm leaves at their initial values.

        Comes between `attach_adapters` and the training. Deterministic, idempotent.
        """
        if self.trains == "B":
            for name, parameter in model.named_parameters():
                if ".lora_A." in name:
                    parameter.requires_grad_(False)

    def training_class(self) -> type[Any]:
        """`PrivateTraining`; of a benchmark-only arm, its tampered subclass."""
        if self.tampering is not None:
            return self.tampering()
        from dp_core.training import PrivateTraining  # torch: only where a job really runs

        return PrivateTraining
