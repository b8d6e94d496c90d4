"""Planted faults: the audit rings for each, or its silence says nothing (audit.md 8).

Every fault runs the real engine and optimiser on public synthetic text, under settings a
journal would hold; one thing is done otherwise. None of them can run on private data: their
noise sources are seeded, and a service's trainer refuses those.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dp_core.audit.preflight import Preflight, Tamper, run_preflight
from dp_core.audit.report import CONTROL_LEVEL, PositiveControl
from dp_core.engine import PatientClipper
from dp_core.mechanism import StepSettings, up32
from dp_core.noise import NoiseSource, SeededSource
from dp_core.per_sample import OneBackwardEngine
from dp_core.plan import Performance, RunPlan
from dp_core.replica import Replica

STEPS = (5, 60)  # a job's pre-flight; then the most that a control may take (AU32)
CORRECT_RUNS = 2


class ScaledNoise(SeededSource):
    """Noise of a std other than the journal's."""

    def __init__(self, seed: int, factor: float) -> None:
        super().__init__(seed)
        self._factor = factor

    def _gaussian(self, length: int) -> torch.Tensor:
        return super()._gaussian(length) * self._factor


class ReusedSeed(NoiseSource):
    """The same vector at every step."""

    name, is_private = "reused_seed_fault", False

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    def _gaussian(self, length: int) -> torch.Tensor:
        return torch.randn(length, generator=torch.Generator().manual_seed(self._seed))

    def _integers(self, length: int) -> torch.Tensor:
        return torch.zeros(length, dtype=torch.int64)


def sigma_times_clip(settings: StepSettings) -> StepSettings:
    """s_k = sigma C_k on K groups, charged as sigma: too little noise by sqrt(K)."""
    sigma = float(settings.noise_multiplier)
    stds = tuple(up32(sigma * clip) for clip in settings.clip_norms)
    return dataclasses.replace(settings, noise_stds=stds)


def one_group_unclipped(settings: StepSettings) -> StepSettings:
    return dataclasses.replace(settings, clip_norms=(1e6, *settings.clip_norms[1:]))


def stale_noise() -> Tamper:
    """Clip norms move between windows, the stds stay those of the first."""
    first: list[tuple[float, ...]] = []

    def tamper(settings: StepSettings) -> StepSettings:
        first.append(settings.noise_stds)
        return dataclasses.replace(settings, noise_stds=first[0])

    return tamper


class _SumClipper(PatientClipper):
    """Bounds the sum of a microbatch instead of every patient's row."""

    def _factors(
        self, rows: Sequence[torch.Tensor], norms: torch.Tensor, clips: torch.Tensor
    ) -> torch.Tensor:
        squared = torch.stack([each.sum(dim=1).square().sum(dim=1) for each in rows]).sum(dim=0)
        factor = (clips[:, 0] / squared.sqrt().clamp(min=1e-12)).clamp(max=1.0)
        return factor[:, None] * self._mask


class SumClippingReplica(Replica):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        assert isinstance(self.engine, OneBackwardEngine)
        self.engine.use_clipper(_SumClipper(self.groups))


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing done otherwise; everything made anew for each run."""

    name: str
    noise: Callable[[int], NoiseSource] = SeededSource
    tamper: Callable[[], Tamper | None] = lambda: None
    make_replica: Callable[..., Replica] = Replica


FAULTS = (
    Fault(name="noise_off", noise=lambda seed: ScaledNoise(seed, 0.0)),
    Fault(name="noise_halved", noise=lambda seed: ScaledNoise(seed, 0.5)),
    Fault(name="noise_at_nine_tenths", noise=lambda seed: ScaledNoise(seed, 0.9)),
    Fault(name="noise_doubled", noise=lambda seed: ScaledNoise(seed, 2.0)),
    Fault(name="sigma_times_clip", tamper=lambda: sigma_times_clip),
    Fault(name="noise_over_sqrt_2", noise=lambda seed: ScaledNoise(seed, math.sqrt(0.5))),
    Fault(name="one_group_unclipped", tamper=lambda: one_group_unclipped),
    Fault(name="stale_noise", tamper=stale_noise),
    Fault(name="reused_seed", noise=ReusedSeed),
    Fault(name="clip_of_the_sum", make_replica=SumClippingReplica),
)


@dataclass(frozen=True, kw_only=True)
class ControlResult:
    """What the self-test made of a planted fault: adjusted p, and the look that rang first."""

    name: str
    min_p: float
    steps: int  # taken
    rang_at_step: int | None

    @property
    def has_tripped(self) -> bool:
        return PositiveControl(name=self.name, min_p=self.min_p).has_tripped


def run_fault(
    fault: Fault, *, plan: RunPlan, model: Any, vocabulary: int, performance: Performance, seed: int
) -> ControlResult:
    """Five steps, and sixty where five were too few."""
    result: ControlResult | None = None
    for steps in STEPS:
        found = run_preflight(
            plan=plan,
            model=model,
            vocabulary=vocabulary,
            performance=performance,
            noise_source=fault.noise(seed),
            job_id="controls",
            make_replica=fault.make_replica,
            tamper=fault.tamper(),
            steps=steps,
        )
        result = _result(fault.name, found, steps)
        if result.has_tripped:
            break
    assert result is not None
    return result


def run_correct(
    *, plan: RunPlan, model: Any, vocabulary: int, performance: Performance, seed: int
) -> ControlResult:
    """The mechanism as it is, over the longest run of a control: it must stay silent."""
    found = run_preflight(
        plan=plan,
        model=model,
        vocabulary=vocabulary,
        performance=performance,
        noise_source=SeededSource(seed),
        job_id="controls",
        steps=STEPS[-1],
    )
    return _result("correct", found, STEPS[-1])


def _result(name: str, found: Preflight, steps: int) -> ControlResult:
    rang = [look.step for look in found.result.looks if look.min_p < CONTROL_LEVEL]
    least = found.result.min_p
    return ControlResult(
        name=name,
        min_p=1.0 if least is None else least,
        steps=steps,
        rang_at_step=min(rang, default=None),
    )
