"""The unbound optimiser: Opacus' sums and stds, and knobs that move together (E9, E10, D1, D2)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer, DPPerLayerOptimizer
from torch import nn

from dp_core.errors import PlanInvalid
from dp_core.mechanism import StepSettings
from dp_core.optimizer import PrivateOptimizer


def gradients(seed: int = 0) -> GradSampleModule:
    """A small network with per-row gradients of seven rows."""
    torch.manual_seed(seed)
    model = GradSampleModule(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))
    model(torch.randn(7, 6, requires_grad=True)).square().sum().backward()
    return model


def released(kind: Any, clips: float | list[float], multiplier: float = 0.7) -> list[torch.Tensor]:
    model = gradients()
    optimizer = kind(
        torch.optim.SGD(model.parameters(), lr=0.1),
        noise_multiplier=multiplier,
        max_grad_norm=clips,
        expected_batch_size=4,
        generator=torch.Generator().manual_seed(5),
    )
    optimizer.step()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


class TestAsOpacus:
    @pytest.mark.parametrize("clip", [0.05, 1.0, 50.0])
    def test_flat_releases_the_same(self, clip: float) -> None:
        for ours, theirs in zip(
            released(PrivateOptimizer, clip), released(DPOptimizer, clip), strict=True
        ):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)

    def test_per_layer_releases_the_same(self) -> None:
        clips = [0.3, 0.1, 2.0, 0.05]
        for ours, theirs in zip(
            released(PrivateOptimizer, clips), released(DPPerLayerOptimizer, clips), strict=True
        ):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize(
        ("kind", "clips"), [(DPOptimizer, 0.7), (DPPerLayerOptimizer, [0.3, 0.1, 2.0, 0.05])]
    )
    def test_microbatches_add_up_to_the_same(self, kind: Any, clips: float | list[float]) -> None:
        sums = []
        for each in (PrivateOptimizer, kind):
            model = gradients()
            optimizer = each(
                torch.optim.SGD(model.parameters(), lr=0.0),
                noise_multiplier=0.0,
                max_grad_norm=clips,
                expected_batch_size=4,
            )
            optimizer.signal_skip_step(True)
            optimizer.step()
            optimizer.zero_grad()
            rows = torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
            model(rows.requires_grad_()).square().sum().backward()
            optimizer.signal_skip_step(False)
            optimizer.step()
            sums.append([p.summed_grad for p in model.parameters()])
        for ours, theirs in zip(*sums, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)

    def test_settings_name_the_multiplier_and_the_std_that_is_added(self) -> None:
        flat = StepSettings.flat(0.5, 2.0, coordinates=10)
        assert flat.noise_stds == (1.0,)
        layers = StepSettings.per_layer((3.0, 4.0), 2.0, sizes=(7, 9))
        assert layers.noise_stds == (10.0, 10.0)
        for settings in (flat, layers):
            assert settings.effective_noise_multiplier() == pytest.approx(2.0, rel=1e-4)

    def test_a_wrong_number_of_clip_norms_is_refused(self) -> None:
        with pytest.raises(PlanInvalid, match="one clip norm per trainable parameter"):
            released(PrivateOptimizer, [1.0, 2.0])


class TestKnobs:
    def made(self, clips: float | list[float]) -> PrivateOptimizer:
        return PrivateOptimizer(
            torch.optim.SGD(gradients().parameters(), lr=0.1),
            noise_multiplier=2.0,
            max_grad_norm=clips,
            expected_batch_size=4,
        )

    def test_writing_the_clip_norm_moves_the_noise_with_it(self) -> None:
        made = self.made(1.0)
        made.max_grad_norm = 0.5
        assert made.settings.clip_norms == (0.5,)
        assert made.settings.noise_stds == (1.0,)
        assert made.settings.effective_noise_multiplier() == pytest.approx(2.0, rel=1e-4)

    def test_writing_the_list_of_clip_norms_moves_the_noise_with_it(self) -> None:
        made = self.made([1.0, 1.0, 1.0, 1.0])
        made.max_grad_norms = [3.0, 4.0, 0.0001, 0.0001]
        assert made.settings.noise_stds == pytest.approx((10.0,) * 4, rel=1e-6)
        assert made.max_grad_norm == pytest.approx(5.0)

    def test_writing_the_multiplier_leaves_the_clip_norms(self) -> None:
        made = self.made([1.0, 2.0, 1.0, 1.0])
        made.noise_multiplier = 4.0
        assert made.max_grad_norms == [1.0, 2.0, 1.0, 1.0]
        assert made.noise_multiplier == 4.0
        assert made.settings.effective_noise_multiplier() == pytest.approx(4.0, rel=1e-4)
