"""The training loop of the arm `broken`. It refuses to run on anything but test noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from controller.baselines.broken import underscaled
from dp_core.engine import CanaryRows
from dp_core.errors import PlanViolation
from dp_core.mechanism import StepSettings
from dp_core.plan_optimizer import ReleasedStep
from dp_core.ports import ChunkPermit
from dp_core.training import PrivateTraining


class MislabelledTraining(PrivateTraining):
    """Charges the settings it was given and runs with less noise.

    A noise source that counts as private is refused, so that no run of this class can be
    one that gets a certificate (N5).

    Raises:
        PlanViolation: the noise source is one for private data.
    """

    def __init__(self, **arguments: Any) -> None:
        if getattr(arguments.get("noise_source"), "is_private", True):
            raise PlanViolation(
                "The arm `broken` runs in benchmarks only, with a seeded noise source."
            )
        super().__init__(**arguments)

    def take_step(
        self,
        permit: ChunkPermit,
        settings: StepSettings,
        *,
        factors: Sequence[float],
        step_index: int,
        canaries: CanaryRows | None = None,
    ) -> ReleasedStep:
        less = underscaled(settings)
        return super().take_step(
            permit, less, factors=factors, step_index=step_index, canaries=canaries
        )
