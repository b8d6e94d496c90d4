"""Traps of optimisers and their hooks, and the rule here that avoids each (TRAPS D1-D16, O2).

The other rows of the table stand in `test_traps.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from opacus.accountants import RDPAccountant
from opacus.optimizers import DPPerLayerOptimizer
from opacus.schedulers import ExponentialGradClip
from torch import nn

from dp_core.errors import PlanViolation
from dp_core.optimizer import PrivateOptimizer
from tests.dp_core.engine_cases import PERMIT, random_rows, run_step, without
from tests.dp_core.models import adapted
from tests.dp_core.test_plan_optimizer import Bench, UnitNoise


def over(kind: Any, clips: Any) -> Any:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    return kind(
        torch.optim.SGD(parameters, lr=0.1),
        noise_multiplier=2.0,
        max_grad_norm=clips,
        expected_batch_size=4,
    )


def test_d1_clip_norms_and_noise_cannot_be_written_apart() -> None:
    library = over(DPPerLayerOptimizer, [3.0, 4.0])
    library.max_grad_norms = [0.3, 0.4]
    assert library.noise_multiplier * library.max_grad_norm == 10.0, "the noise stayed"
    ours = over(PrivateOptimizer, [3.0, 4.0])
    ours.max_grad_norms = [0.3, 0.4]
    assert ours.settings.noise_stds == pytest.approx((1.0, 1.0))
    assert ours.settings.effective_noise_multiplier() == pytest.approx(2.0, rel=1e-4)


def test_d2_a_clip_scheduler_moves_the_noise_too_and_is_refused_on_a_bound_run() -> None:
    ours = over(PrivateOptimizer, 1.0)
    ExponentialGradClip(ours, gamma=0.5).step()
    assert ours.settings.clip_norms == (0.5,)
    assert ours.settings.noise_stds == (1.0,)
    bench = Bench()
    bench.made.arm(PERMIT, bench.settings)
    with pytest.raises(PlanViolation, match="max_grad_norm"):
        ExponentialGradClip(bench.made, gamma=0.5).step()


def test_d9_clip_bits_cover_every_microbatch_of_a_step() -> None:
    rows = random_rows(7, 1)
    whole = run_step(adapted("gpt2"), rows, clip=0.02).released.bit_sums
    for microbatch in (1, 2, 3):
        cut = run_step(adapted("gpt2"), rows, clip=0.02, microbatch=microbatch)
        assert torch.equal(cut.released.bit_sums, whole)
    last = run_step(adapted("gpt2"), random_rows(7, 1), clip=0.02)
    for patient in range(6):
        rows = without(rows, patient)
    alone = run_step(adapted("gpt2"), rows, clip=0.02).released.bit_sums
    assert not torch.equal(alone, last.released.bit_sums)


def test_d16_a_step_without_patients_gets_its_noise_under_a_bf16_base() -> None:
    bench = Bench(noise=UnitNoise())
    for name, parameter in bench.model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    rows = random_rows(2, 1)
    moved = bench.step(without(without(rows, 0), 1))
    assert bool((moved != 0).all())
    assert bench.made.released is not None
    for sums, std in zip(bench.made.released.sums, bench.settings.noise_stds, strict=True):
        assert torch.allclose(sums, torch.full_like(sums, std))


def test_o2_a_step_of_several_microbatches_is_charged_as_one_draw() -> None:
    bench, accountant = Bench(), RDPAccountant()
    bench.made.attach_step_hook(accountant.get_optimizer_hook_fn(sample_rate=0.01))
    bench.step(random_rows(7, 1), microbatch=2)
    assert accountant.history == [(float(bench.settings.noise_multiplier), 0.01, 1)]
