"""What the tests of the loop share: one small run with everything that can be looked at."""

from __future__ import annotations

from typing import Any

from controller.observation import describe_groups
from controller.reference import ReferencePolicy
from dp_core.engine import StepAudit
from dp_core.lora import attach_adapters
from dp_core.noise import NoiseSource, OsEntropySource
from dp_core.plan import Performance, RunPlan
from dp_core.records import Blocks
from dp_core.telemetry import WindowTelemetry
from dp_core.training import PrivateTraining, TrainingResult
from tests.dp_core.conftest import make_plan
from tests.dp_core.models import tiny_gpt2
from tests.fakes import MemoryJournal, MemoryProgress, MemoryStore


class Recorded:
    """One run with everything that can be looked at afterwards."""

    def __init__(
        self,
        blocks: Blocks,
        *,
        plan: RunPlan | None = None,
        journal: MemoryJournal | None = None,
        store: MemoryStore | None = None,
        stop_after: int | None = None,
        noise: NoiseSource | None = None,
        policy: Any = None,
        audit: StepAudit | None = None,
    ) -> None:
        self.plan = plan or make_plan()
        self.journal = journal or MemoryJournal(self.plan)
        self.store = store or MemoryStore()
        self.progress = MemoryProgress(stop_after)
        self.model = attach_adapters(tiny_gpt2(), self.plan.adapter, seed=self.plan.seed)

        def make_policy(seen: WindowTelemetry) -> Any:
            self.first_seen = seen
            return policy or ReferencePolicy(groups=describe_groups(seen))

        self.training = PrivateTraining(
            plan=self.plan,
            model=self.model,
            blocks=blocks,
            make_policy=make_policy,
            journal=self.journal,
            checkpoints=self.store,
            progress=self.progress,
            noise_source=noise or OsEntropySource(),
            performance=Performance(patients_per_microbatch=4),
            audit=audit,
        )

    def run(self) -> TrainingResult:
        return self.training.run()
