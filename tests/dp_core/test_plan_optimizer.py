"""The bound optimiser: order of work, knobs, permits, divisor (M1, M2, M5, M17, M20, M23)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from dp_core.errors import InvariantViolation, PermitExhausted, PlanViolation
from dp_core.lora import clip_groups
from dp_core.mechanism import StepSettings
from dp_core.noise import NoiseSource, SeededSource
from dp_core.plan import Performance
from dp_core.plan_optimizer import PlanOptimizer
from dp_core.ports import ChunkPermit
from dp_core.step import make_engine, summed_backward
from tests.dp_core.engine_cases import (
    PERMIT,
    NoNoise,
    part,
    random_rows,
    run_step,
    settings_for,
    without,
)
from tests.dp_core.models import adapted
from tests.dp_core.noise_checks import noise_failures


class UnitNoise(NoiseSource):
    """Ones: shows where and how often noise enters, and with which std."""

    name, is_private = "ones_test", False

    def _gaussian(self, length: int) -> torch.Tensor:
        return torch.ones(length)


class Bench:
    """A bound optimiser on a tiny model, with an SGD inside that shows the update."""

    def __init__(
        self, noise: NoiseSource | None = None, batch_size_expected: int = 10, rank: int = 3
    ) -> None:
        self.model = adapted("gpt2", rank=rank)
        self.groups = clip_groups(self.model)
        self.engine = make_engine(self.model, self.groups, Performance())
        self.parameters = [p for g in self.groups for p in g.parameters]
        self.settings = settings_for(self.groups, 0.02)
        self.made = PlanOptimizer(
            torch.optim.SGD([{"params": list(g.parameters)} for g in self.groups], lr=1.0),
            groups=self.groups,
            engine=self.engine,
            noise_source=noise or NoNoise(),
            batch_size_expected=batch_size_expected,
            noise_levels=(self.settings.noise_multiplier,),
        )

    def flat(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters]).clone()

    def step(self, rows: Any, *, permit: ChunkPermit = PERMIT, microbatch: int = 3) -> torch.Tensor:
        """Runs one step and returns the change of the weights."""
        before = self.flat()
        self.made.arm(permit, self.settings)
        patients = len(rows.slot_mask)
        for start in range(0, patients, microbatch):
            piece = part(rows, slice(start, min(start + microbatch, patients)), 1)
            self.made.open_microbatch(slot_mask=piece.slot_mask, rows_per_patient=1)
            self.made.take_losses(summed_backward(self.model, piece, Performance()))
            self.made.signal_skip_step(start + microbatch < patients)
            self.made.step()
            self.made.zero_grad()
        return self.flat() - before


class TestUpdate:
    def test_is_the_noised_sum_over_the_public_batch_size_whatever_was_drawn(self) -> None:
        for patients in (1, 4, 9):
            bench = Bench(noise=SeededSource(7), batch_size_expected=37)
            moved = bench.step(random_rows(patients, 1))
            assert bench.made.released is not None
            expected = -bench.made.released.gradient / 37
            assert torch.allclose(moved, expected, atol=2e-7)

    def test_noise_enters_once_with_the_std_of_each_component(self) -> None:
        rows = random_rows(7, 1)
        plain, noisy = Bench(), Bench(noise=UnitNoise())
        plain.step(rows), noisy.step(rows)
        a, b = plain.made.released, noisy.made.released
        assert a is not None and b is not None
        for x, y, std in zip(a.sums, b.sums, noisy.settings.noise_stds, strict=True):
            assert torch.allclose(y - x, torch.full_like(x, std), rtol=1e-5)
        bits = b.bit_sums - a.bit_sums
        assert torch.allclose(bits, torch.full_like(bits, noisy.settings.bit_std), rtol=1e-5)
        assert b.loss_sum - a.loss_sum == pytest.approx(noisy.settings.loss_std, rel=1e-5)

    def test_nothing_of_a_step_is_left_in_the_next(self) -> None:
        rows = random_rows(5, 1)
        bench = Bench()
        bench.step(rows)
        for parameter, fresh in zip(bench.parameters, Bench().parameters, strict=True):
            with torch.no_grad():
                parameter.copy_(fresh)
        bench.step(rows)
        again, first = bench.made.released, Bench()
        first.step(rows)
        assert again is not None and first.made.released is not None
        assert torch.equal(again.gradient, first.made.released.gradient)

    def test_new_settings_move_clips_and_noise_together(self) -> None:
        rows = random_rows(5, 1)
        plain, noisy = Bench(), Bench(noise=UnitNoise())
        released = []
        for chunk, clip in enumerate((0.02, 0.002)):
            permit = dataclasses.replace(PERMIT, chunk_index=chunk)
            for bench in (plain, noisy):
                for parameter, fresh in zip(bench.parameters, Bench().parameters, strict=True):
                    parameter.data.copy_(fresh.data)
                bench.settings = settings_for(bench.groups, clip)
                bench.step(rows, permit=permit)
            a, b = plain.made.released, noisy.made.released
            assert a is not None and b is not None
            released.append(a)
            for x, y, std in zip(a.sums, b.sums, noisy.settings.noise_stds, strict=True):
                assert torch.allclose(y - x, torch.full_like(x, std), rtol=1e-4)
        assert noisy.settings.noise_stds[0] < 0.2 * settings_for(noisy.groups, 0.02).noise_stds[0]
        for before, after, bound in zip(
            released[0].sums, released[1].sums, plain.settings.clip_norms, strict=True
        ):
            assert float(after.norm()) <= 5 * bound * (1 + 2.0**-16) < float(before.norm())

    def test_released_values_survive_the_update_unchanged(self) -> None:
        bench = Bench(noise=SeededSource(3))
        bench.step(random_rows(4, 1))
        released = bench.made.released
        assert released is not None
        kept = released.gradient.clone()
        bench.step(random_rows(4, 1, seed=5))
        assert torch.equal(released.gradient, kept)


class TestNoise:
    def test_of_every_group_is_its_own_gaussian_in_float32(self) -> None:
        """Zero sums: what is released is the noise. Seeded, so there is no false alarm."""
        bench = Bench(noise=SeededSource(3), rank=128)
        rows = random_rows(2, 1)
        bench.step(without(without(rows, 0), 1))
        released, stds = bench.made.released, bench.settings.noise_stds
        assert released is not None
        for first in range(0, len(stds), 4):
            part = slice(first, first + 4)
            assert noise_failures(released.sums[part], stds[part]) == []
        assert len(released.gradient.unique()) > 0.99 * len(released.gradient)


class TestBinding:
    def test_opacus_knobs_cannot_be_written_on_a_bound_run(self) -> None:
        bench = Bench()
        for name in ("noise_multiplier", "max_grad_norm", "max_grad_norms", "expected_batch_size"):
            with pytest.raises(PlanViolation, match=name):
                setattr(bench.made, name, 0.1)

    def test_an_attached_accountant_reads_the_charged_multiplier(self) -> None:
        bench, seen = Bench(), []
        bench.made.attach_step_hook(
            lambda made: seen.append((made.noise_multiplier, made.accumulated_iterations))
        )
        bench.step(random_rows(7, 1))
        assert seen == [(float(bench.settings.noise_multiplier), 1)]
        joint = math.sqrt(sum(c * c for c in bench.settings.clip_norms))
        assert bench.made.max_grad_norm == pytest.approx(joint)

    def test_settings_of_another_model_are_refused(self) -> None:
        bench = Bench()
        other = StepSettings.flat(1.0, 1.0, coordinates=5)
        with pytest.raises(PlanViolation, match="other clip groups"):
            bench.made.arm(PERMIT, other)


class TestOrder:
    def test_without_settings_nothing_runs(self) -> None:
        bench = Bench()
        with pytest.raises(InvariantViolation):
            bench.made.open_microbatch(slot_mask=torch.ones(2), rows_per_patient=1)
        with pytest.raises(InvariantViolation):
            bench.made.clip_and_accumulate()
        with pytest.raises(InvariantViolation):
            bench.made.add_noise()
        with pytest.raises(InvariantViolation):
            _ = bench.made.noise_multiplier

    def test_an_unfinished_step_blocks_the_next(self) -> None:
        bench = Bench()
        bench.made.arm(PERMIT, bench.settings)
        with pytest.raises(InvariantViolation, match="unfinished"):
            bench.made.arm(PERMIT, bench.settings)

    def test_noise_beyond_the_permit_is_refused_before_the_draw(self) -> None:
        source = NoNoise()
        permit = ChunkPermit(attempt=1, chunk_index=4, first_step=8, steps=2, reference="x")
        bench = Bench(noise=source)
        rows = random_rows(2, 1)
        bench.step(rows, permit=permit), bench.step(rows, permit=permit)
        with pytest.raises(PermitExhausted):
            bench.step(rows, permit=permit)
        assert source.draws == 2


class TestCanaries:
    """Gradient canaries take the patients' way: clip, sum, noise (E8, M31)."""

    class Rows:
        def __init__(self, scale: float, count: int = 2) -> None:
            self.scale, self.count = scale, count

        def rows(self, group_index: int, like: torch.Tensor) -> torch.Tensor:
            size = like.shape[-1] if like.dim() == 2 and group_index else like.numel()
            generator = torch.Generator().manual_seed(group_index)
            full = torch.randn(self.count, max(size, 4096), generator=generator)
            return full * self.scale

    @pytest.mark.parametrize("rule", ["per_group", "whitened"])
    def test_a_canary_adds_at_most_one_clipped_row(self, rule: str) -> None:
        rows = without(random_rows(1, 1), 0)
        for scale in (1e-6, 1.0, 1e6):
            step = run_step(
                adapted("gpt2"),
                rows,
                clip=0.02,
                canaries=self.Rows(scale, count=1),
                clipping={"rule": rule},
            )
            moved = math.sqrt(
                sum(
                    float(s.double().norm() / std) ** 2
                    for s, std in zip(step.sums, step.settings.noise_stds, strict=True)
                )
            )
            assert moved <= (1 + 1e-5) / float(step.settings.noise_multiplier)
            assert moved > 0
            assert float(step.released.bit_sums.abs().max()) == 0.0, "no clip bit of a canary"

    def test_canaries_enter_once_a_step_and_leave_patients_alone(self) -> None:
        rows = random_rows(5, 1)
        plain = run_step(adapted("gpt2"), rows, clip=0.02)
        for microbatch in (2, 5):
            step = run_step(
                adapted("gpt2"), rows, clip=0.02, canaries=self.Rows(1.0), microbatch=microbatch
            )
            alone = run_step(
                adapted("gpt2"),
                without(random_rows(1, 1), 0),
                clip=0.02,
                canaries=self.Rows(1.0),
            )
            total = plain.released.gradient + alone.released.gradient
            assert torch.allclose(step.released.gradient, total, atol=1e-6)
