"""A toy mechanism on arrays with the faults an audit has to find, one subclass each.

It clips with `dp_core.clipping` and takes its settings from `dp_core.mechanism`, as the
engine does, and journals what it should have done. Nothing else of the engine is used.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dp_core.audit.canaries import MembershipScores, PartitionCanaries
from dp_core.audit.coins import CoinSeed, look_steps
from dp_core.audit.selftest import SelfTest, SelfTestResult
from dp_core.audit.units import IncludedCanaries, StepCanaries
from dp_core.clipping import clip_and_sum
from dp_core.mechanism import GroupLayout, StepSettings, admit
from dp_core.plan import RunPlan
from dp_core.ports import GroupActions
from dp_core.sampling import PoissonSampler

RATE, CLIP_NORM = "0.0256", 0.05
# Noise multipliers whose PLD epsilon is 1, 2, 4, 8 at this rate, 400 steps, delta 1e-5.
SIGMA_OF_EPSILON = {1: "2.113", 2: "1.302", 4: "0.909", 8: "0.688"}


def toy_layout(groups: int, size: int) -> GroupLayout:
    return GroupLayout(ids=tuple(f"{k:03d}" for k in range(groups)), sizes=(size,) * groups)


def toy_plan(sigma: str) -> RunPlan:
    """A plan with a noise level of our choice; nothing here asks for its epsilon."""
    return RunPlan(
        unit="patient",
        patients_public=100,
        target_epsilon="8",
        delta="1e-4",
        sampling_probability=RATE,
        batch_size_expected=2,
        steps_planned=400,
        steps_started_max=400,
        steps_per_chunk=5,
        noise_levels=(sigma,),
        job_limit=400,
        epsilon_certified="8",
        seed=3,
        controller_type="reference",
        base_model_digest="0" * 64,
        dataset_version="dsv_test",
    )


def seeded_entropy(generator: np.random.Generator) -> Any:
    return lambda length: generator.bytes(length)


class ToyMechanism:
    """The correct mechanism. Subclasses break one thing and journal the correct settings."""

    def __init__(self, layout: GroupLayout, generator: np.random.Generator) -> None:
        self.layout, self.generator = layout, generator

    def clip_norm(self, settings: StepSettings, group: int) -> float:
        return settings.clip_norms[group]

    def noise_std(self, settings: StepSettings, group: int) -> float:
        return settings.noise_stds[group]

    def unit_noise(self, group: int) -> np.ndarray:
        return self.generator.standard_normal(self.layout.sizes[group])

    def clipped_sum(self, settings: StepSettings, group: int, rows: torch.Tensor) -> np.ndarray:
        mask = torch.ones(len(rows))
        (summed,) = clip_and_sum([rows], self.clip_norm(settings, group), mask).raw_sums
        return summed.double().numpy()

    def release(
        self, settings: StepSettings, patients: torch.Tensor, canaries: StepCanaries
    ) -> list[np.ndarray]:
        """Noised sums of one step; patients: (n, sum of sizes), split into groups here."""
        sums = []
        for group, part in enumerate(torch.split(patients, list(self.layout.sizes), dim=1)):
            extra = canaries.rows(group, part)
            padding = part.new_zeros((1, part.shape[1]))  # a draw may be empty
            rows = torch.cat([part, padding] if extra is None else [part, padding, extra])
            noise = self.unit_noise(group) * self.noise_std(settings, group)
            sums.append(self.clipped_sum(settings, group, rows) + noise)
        return sums


class NoiseScaled(ToyMechanism):
    factor = 1.0

    def noise_std(self, settings: StepSettings, group: int) -> float:
        return self.factor * super().noise_std(settings, group)


class NoiseOff(NoiseScaled):
    factor = 0.0


class NoiseHalved(NoiseScaled):
    factor = 0.5


class NoiseTimes09(NoiseScaled):
    factor = 0.9


class NoiseAddedTwice(NoiseScaled):
    factor = 2**0.5


class NoiseHalvedInOneGroup(ToyMechanism):
    def noise_std(self, settings: StepSettings, group: int) -> float:
        return super().noise_std(settings, group) * (0.5 if group == 3 else 1.0)


class SigmaTimesClip(ToyMechanism):
    """s_k = sigma C_k on K groups, charged as sigma: too little by sqrt(K)."""

    def noise_std(self, settings: StepSettings, group: int) -> float:
        return float(settings.noise_multiplier) * settings.clip_norms[group]


class ClipOfOneGroup(ToyMechanism):
    factor = 1e9

    def clip_norm(self, settings: StepSettings, group: int) -> float:
        return super().clip_norm(settings, group) * (self.factor if group == 2 else 1.0)


class OneGroupUnclipped(ClipOfOneGroup):
    pass


class OneGroupAtTwiceTheClip(ClipOfOneGroup):
    factor = 2.0


class PairClippedApart(ToyMechanism):
    """A and B each clipped at C where the joint norm is C: sensitivity times sqrt(2)."""

    def clip_norm(self, settings: StepSettings, group: int) -> float:
        return super().clip_norm(settings, group) * 2**0.5


class ClipListDoubled(ToyMechanism):
    def clip_norm(self, settings: StepSettings, group: int) -> float:
        return super().clip_norm(settings, group) * 2


class StaleNoise(ToyMechanism):
    """A policy moves the clips; the noise keeps the stds of the first settings."""

    first: StepSettings | None = None

    def noise_std(self, settings: StepSettings, group: int) -> float:
        self.first = self.first or settings
        return self.first.noise_stds[group]


class ReusedSeed(ToyMechanism):
    def unit_noise(self, group: int) -> np.ndarray:
        return np.random.default_rng(group).standard_normal(self.layout.sizes[group])


class OneSeedForAllGroups(ToyMechanism):
    """Fresh at every step, the same stream in each group."""

    def unit_noise(self, group: int) -> np.ndarray:
        if group == 0:
            self.seed = int(self.generator.integers(2**63))
        return np.random.default_rng(self.seed).standard_normal(self.layout.sizes[group])


class ClipOfTheSum(ToyMechanism):
    def clipped_sum(self, settings: StepSettings, group: int, rows: torch.Tensor) -> np.ndarray:
        return super().clipped_sum(settings, group, rows.sum(dim=0, keepdim=True))


class EverythingUnclipped(ToyMechanism):
    def clip_norm(self, settings: StepSettings, group: int) -> float:
        return 1e9


class CanaryPastTheClip(EverythingUnclipped):
    """Patients go unclipped; canaries take a clip of their own, past the patients' call."""

    def release(
        self, settings: StepSettings, patients: torch.Tensor, canaries: StepCanaries
    ) -> list[np.ndarray]:
        sums = super().release(settings, patients, _without_rows(canaries))
        for group, total in enumerate(sums):
            extra = canaries.rows(group, patients)
            if extra is not None:
                clip = settings.clip_norms[group]
                (clipped,) = clip_and_sum([extra], clip, torch.ones(len(extra))).raw_sums
                total += clipped.double().numpy()
        return sums


def _without_rows(canaries: StepCanaries) -> StepCanaries:
    return dataclasses.replace(canaries, canary_indices=np.array([], dtype=int))


class Microbatched(ToyMechanism):
    """Correct, with sums over microbatches of five rows, in two ranks."""

    def clipped_sum(self, settings: StepSettings, group: int, rows: torch.Tensor) -> np.ndarray:
        total = np.zeros(self.layout.sizes[group])
        for rank in (rows[::2], rows[1::2]):
            for part in torch.split(rank, 5):
                total += super().clipped_sum(settings, group, part)
        return total


@dataclass(frozen=True, kw_only=True)
class ToyRun:
    """What the audit code holds after a run."""

    result: SelfTestResult
    scores: np.ndarray
    is_member: np.ndarray


def run_toy(
    mechanism: type[ToyMechanism] = ToyMechanism,
    *,
    sigma: str = "0.909",
    steps: int = 20,
    canaries: int = 500,
    groups: int = 6,
    size: int = 600,
    patients: int = 60,
    seed: int = 0,
    moves_clips: bool = False,
    stop_below: float | None = None,
) -> ToyRun:
    """A job of `steps` steps; ends early at an adjusted p below `stop_below`.

    Patients have random gradients of about twice the clip norm in every group.
    """
    layout, generator = toy_layout(groups, size), np.random.default_rng(seed)
    geometry = PartitionCanaries(
        layout, canaries=canaries, construction_seed=hashlib.sha256(b"%d" % seed).hexdigest()
    )
    is_member = CoinSeed(generator.bytes(32)).coins(canaries)
    included = IncludedCanaries(geometry, is_member, order=generator)
    sampler = PoissonSampler(
        sampling_probability=RATE,
        raw_population_size=patients + len(included),
        entropy=seeded_entropy(generator),
    )
    directions = generator.standard_normal((patients, sum(layout.sizes)), dtype=np.float32)
    population = torch.from_numpy(directions * np.float32(2 * CLIP_NORM / size**0.5))
    broken = mechanism(layout, generator)
    selftest = SelfTest(
        is_carried=geometry.is_carried,
        members=np.flatnonzero(is_member),
        sampling_probability=RATE,
        batch_size_expected=max(1, round(float(RATE) * patients)),
        looks=look_steps(steps),
    )
    membership = MembershipScores(canaries=canaries, sampling_probability=RATE)
    for settings in _settings(sigma, layout, generator, steps, moves_clips):
        drawn = sampler.draw().reveal_inside_step()
        extra = included.drawn(drawn[drawn >= patients] - patients, settings)
        sums = broken.release(settings, population[drawn[drawn < patients]], extra)
        step = geometry.scores(sums, settings)
        membership.add(step)
        look = selftest.add(step, extra.canary_indices, settings)
        if look is not None and stop_below is not None and look.min_p < stop_below:
            break
    return ToyRun(result=selftest.result(), scores=membership.values, is_member=is_member)


def toy_settings(groups: int) -> Iterator[StepSettings]:
    """Constant settings for `groups` groups of 50 coordinates."""
    layout = toy_layout(groups, 50)
    return _settings("1", layout, np.random.default_rng(0), 9, False)


def _settings(
    sigma: str, layout: GroupLayout, generator: np.random.Generator, steps: int, moves_clips: bool
) -> Iterator[StepSettings]:
    """Constant settings, or a policy that moves clips and shares every five steps."""
    plan, count = toy_plan(sigma), len(layout)
    action = GroupActions.neutral(count)
    for step in range(steps):
        if moves_clips and step % 5 == 0 and step:
            values = generator.uniform(-1, 1, (2, count))
            action = dataclasses.replace(
                action, clip=tuple(values[0].tolist()), share=tuple(values[1].tolist())
            )
        yield admit(plan, layout, (CLIP_NORM,) * count, action)
