"""The self-test on the real engine and optimiser: silent when right, loud on the controls.

Small adapters carry 40 canaries only; the required controls trip all the same (CANARY).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from dp_core.audit.canaries import PartitionCanaries
from dp_core.audit.selftest import ALARM_LEVEL, SelfTest, SelfTestResult
from dp_core.audit.units import IncludedCanaries
from dp_core.lora import clip_groups, layout_of
from dp_core.mechanism import StepSettings, admit
from dp_core.noise import NoiseSource, SeededSource
from dp_core.plan import ClippingPlan, Performance
from dp_core.plan_optimizer import PlanOptimizer
from dp_core.ports import ChunkPermit, GroupActions
from dp_core.sampling import PoissonSampler
from dp_core.step import make_engine, summed_backward
from tests.dp_core.audit.toy import seeded_entropy, toy_plan
from tests.dp_core.conftest import adapted
from tests.dp_core.engine_cases import NoNoise, part, random_rows

CANARIES, PATIENTS, RATE, STEPS = 40, 4, "0.5", 10
PERMIT = ChunkPermit(attempt=1, chunk_index=0, first_step=0, steps=STEPS, reference="test#0")


class HalvedNoise(SeededSource):
    def _gaussian(self, length: int) -> torch.Tensor:
        return super()._gaussian(length) / 2


class RepeatedNoise(NoiseSource):
    name, is_private = "repeated_test", False

    def _gaussian(self, length: int) -> torch.Tensor:
        return torch.randn(length, generator=torch.Generator().manual_seed(1))


def sigma_times_clip(settings: StepSettings) -> StepSettings:
    sigma = float(settings.noise_multiplier)
    return dataclasses.replace(settings, noise_stds=tuple(sigma * c for c in settings.clip_norms))


def one_group_unclipped(settings: StepSettings) -> StepSettings:
    clips = list(settings.clip_norms)
    clips[3] = 1e6
    return dataclasses.replace(settings, clip_norms=tuple(clips))


def unchanged(settings: StepSettings) -> StepSettings:
    return settings


def audited_run(
    *,
    noise: NoiseSource | None = None,
    broken: Any = unchanged,
    clipping: ClippingPlan = ClippingPlan(),
    engine: Any = "one_backward",
) -> SelfTestResult:
    """Steps of a tiny model: the engine runs under `broken(settings)`, the journal differs."""
    model, performance = adapted("llama"), Performance(engine=engine)
    groups = clip_groups(model, clipping.grouping)
    layout, count = layout_of(groups), len(groups)
    plan = dataclasses.replace(toy_plan("0.9"), clipping=clipping)
    settings = admit(plan, layout, (0.02,) * count, GroupActions.neutral(count))
    geometry = PartitionCanaries(layout, canaries=CANARIES, construction_seed="5eed")
    generator = np.random.default_rng(7)
    is_member = generator.random(CANARIES) < 0.5
    included = IncludedCanaries(geometry, is_member, order=generator)
    sampler = PoissonSampler(
        sampling_probability=RATE,
        raw_population_size=len(included),
        entropy=seeded_entropy(generator),
    )
    selftest = SelfTest(
        is_carried=geometry.is_carried,
        members=np.flatnonzero(is_member),
        sampling_probability=RATE,
        batch_size_expected=PATIENTS,
        looks=(1, 2, 5, STEPS),
    )
    optimizer = PlanOptimizer(
        torch.optim.SGD([{"params": list(g.parameters)} for g in groups], lr=1e-3),
        groups=groups,
        engine=make_engine(model, groups, performance),
        noise_source=noise or SeededSource(3),
        batch_size_expected=PATIENTS,
        noise_levels=(settings.noise_multiplier,),
    )
    rows = random_rows(PATIENTS, 1)
    for _ in range(STEPS):
        extra = included.drawn(sampler.draw().reveal_inside_step(), settings)
        optimizer.arm(PERMIT, broken(settings), extra)
        for start in (0, PATIENTS // 2):
            piece = part(rows, slice(start, start + PATIENTS // 2), 1)
            optimizer.open_microbatch(slot_mask=piece.slot_mask, rows_per_patient=1)
            optimizer.take_losses(summed_backward(model, piece, performance))
            optimizer.signal_skip_step(start == 0)
            optimizer.step()
            optimizer.zero_grad()
        assert optimizer.released is not None
        sums = [z.numpy() for z in optimizer.released.sums]
        selftest.add(geometry.scores(sums, settings), extra.canary_indices, settings)
    return selftest.result()


@pytest.mark.parametrize(
    ("clipping", "engine"),
    [
        pytest.param(ClippingPlan(), "one_backward", id="tensor"),
        pytest.param(ClippingPlan(grouping="pair"), "one_backward", id="pair"),
        pytest.param(ClippingPlan(rule="whitened"), "one_backward", id="whitened"),
        pytest.param(ClippingPlan(), "opacus_hooks", id="hooks"),
    ],
)
def test_the_correct_engine_raises_no_alarm(clipping: ClippingPlan, engine: str) -> None:
    """False alarm 1e-6. Sampled scores stand at their expectation: with about 100 of them in
    each group at a near .2, the mean over 28 groups has an error of .1 (14 pairs: the same).
    """
    result = audited_run(clipping=clipping, engine=engine)
    assert result.min_p is not None
    assert result.min_p > ALARM_LEVEL
    ratios = [r for r in result.mean_ratio if r is not None]
    assert len(ratios) == len(result.mean_ratio)
    assert np.mean(ratios) == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize(
    ("noise", "broken"),
    [
        (NoNoise(), unchanged),
        (HalvedNoise(3), unchanged),
        (RepeatedNoise(), unchanged),
        (None, sigma_times_clip),
        (None, one_group_unclipped),
    ],
    ids=["noise_off", "noise_halved", "reused_seed", "sigma_times_clip", "one_group_unclipped"],
)
def test_a_broken_engine_trips(noise: NoiseSource | None, broken: Any) -> None:
    result = audited_run(noise=noise, broken=broken)
    assert result.min_p is not None
    assert result.min_p < 1e-9
    assert result.verdict == "FAIL"
