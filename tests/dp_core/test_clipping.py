"""Factors, norms and sums on hand-made numbers, and their sensitivity (NANS, SENS; M7-M9)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dp_core.clipping import (
    FACTORS,
    centred_bits,
    centred_losses,
    clip_and_sum,
    clip_factors,
    clipped_loss_sum,
    row_norms,
    weighted_sum,
    whitened_factors,
)
from dp_core.mechanism import CLIP_INFLATION, GroupLayout, admit
from dp_core.plan import ClipFactor, ClippingPlan
from dp_core.ports import GroupActions
from tests.dp_core.conftest import make_plan


class TestClipAndSum:
    def test_each_row_of_the_table(self) -> None:
        nan, inf = float("nan"), float("inf")
        raw = torch.tensor([[0.3, 0.4], [30, 40], [nan, 1], [inf, 0], [3e38, 3e38], [9, 9]])
        mask = torch.tensor([1.0, 1, 1, 1, 1, 0])
        result = clip_and_sum([raw], 1.0, mask)
        expected = torch.tensor([0.3 + 0.6, 0.4 + 0.8])
        assert torch.allclose(result.raw_sums[0], expected, atol=1e-5)
        assert float(result.raw_bits) == 0.5 - 0.5

    def test_an_unusable_patient_leaves_the_others_bit_equal(self) -> None:
        raw = torch.randn(6, 40, generator=torch.Generator().manual_seed(2))
        for spoil in (float("nan"), float("inf"), 3e38):
            spoiled = raw.clone()
            spoiled[2] = spoil
            kept = torch.ones(6)
            kept[2] = 0
            with_nan = clip_and_sum([spoiled], 0.7, torch.ones(6))
            without = clip_and_sum([raw], 0.7, kept)
            assert torch.equal(with_nan.raw_sums[0], without.raw_sums[0])
            assert torch.equal(with_nan.raw_bits, without.raw_bits)

    def test_the_callers_gradients_are_left_alone(self) -> None:
        raw = torch.tensor([[float("nan"), 1.0], [1.0, 2.0]])
        clip_and_sum([raw], 1.0, torch.ones(2))
        assert bool(raw[0, 0].isnan())

    def test_a_joint_norm_covers_all_tensors_of_the_group(self) -> None:
        result = clip_and_sum([torch.tensor([[3.0]]), torch.tensor([[4.0]])], 1.0, torch.ones(1))
        assert float(result.raw_sums[0]) == pytest.approx(0.6, rel=1e-5)
        assert float(result.raw_sums[1]) == pytest.approx(0.8, rel=1e-5)


class TestFactors:
    @pytest.mark.parametrize(
        ("rule", "norm", "expected"),
        [
            ("clip", 0.5, 1.0),
            ("clip", 4.0, 2.0 / (4.0 + 1e-6)),
            ("auto_s", 0.5, 2.0 / (0.5 + 0.01)),
            ("auto_s", 4.0, 2.0 / (4.0 + 0.01)),
            ("psac", 0.5, 2.0 / (0.5 + 0.01 / (0.5 + 0.01))),
            ("psac", 4.0, 2.0 / (4.0 + 0.01 / (4.0 + 0.01))),
        ],
    )
    def test_formulas_on_hand_made_numbers(self, rule: Any, norm: float, expected: float) -> None:
        found = clip_factors(torch.tensor([[norm]]), torch.tensor([[2.0]]), torch.ones(1), rule)
        assert float(found) == pytest.approx(expected, rel=1e-6)

    @settings(max_examples=300, deadline=None)
    @given(
        rule=st.sampled_from(sorted(FACTORS)),
        norm=st.floats(0, 2.0**127, width=32),
        clip=st.floats(2.0**-20, 1024, width=32),
    )
    def test_none_lets_more_than_the_clip_through(
        self, rule: Any, norm: float, clip: float
    ) -> None:
        """Down to factors that float32 can barely hold: those count as an overflow."""
        factor = clip_factors(torch.tensor([[norm]]), torch.tensor([[clip]]), torch.ones(1), rule)
        assert float(factor) * norm <= clip * CLIP_INFLATION


class TestNorms:
    @pytest.mark.parametrize("size", [1, 255, 256, 257, 6_144, 100_001, 1_000_000, 10_000_000])
    @pytest.mark.parametrize("value", [0.1, 1e-3])
    def test_equal_coordinates_do_not_hide_length(self, size: int, value: float) -> None:
        """A plain float32 norm of the largest of these is 0.8 % too small (G11)."""
        rows = torch.full((1, size), value)
        exact = math.sqrt(size) * float(rows[0, 0].double())
        assert abs(float(row_norms(rows)) / exact - 1) <= 1e-6


class TestWhitened:
    def test_one_factor_for_all_groups_in_units_of_their_noise(self) -> None:
        norms = torch.tensor([[3.0, 0.1], [4.0, 0.1]])
        weights = torch.tensor([[1.0], [2.0]])
        expected = 1 / (math.sqrt(9 + 4) + 1e-6)
        found = whitened_factors(norms, weights, torch.ones(2))
        assert found.tolist() == pytest.approx([expected, 1.0], rel=1e-6)

    @pytest.mark.parametrize(
        ("factor", "expected"), [("auto_s", 1 / 5.01), ("psac", 1 / (5 + 0.01 / 5.01))]
    )
    def test_normalising_factors_are_taken_of_the_joint_norm(
        self, factor: ClipFactor, expected: float
    ) -> None:
        norms = torch.tensor([[3.0], [8.0]])
        weights = torch.tensor([[1.0], [2.0]])
        found = whitened_factors(norms, weights, torch.ones(1), factor)
        assert float(found[0]) == pytest.approx(expected, rel=1e-6)

    def test_an_unusable_group_takes_the_patient_out_everywhere(self) -> None:
        norms = torch.tensor([[1.0, 1.0], [float("nan"), 1.0]])
        found = whitened_factors(norms, torch.ones(2, 1), torch.ones(2))
        assert float(found[0]) == 0.0
        assert float(found[1]) > 0

    @settings(max_examples=200, deadline=None)
    @given(seed=st.integers(0, 10**6), groups=st.integers(1, 9))
    def test_never_clips_whom_per_group_clipping_leaves_alone(self, seed: int, groups: int) -> None:
        """The unclipped set contains the box norm_k <= C_k (G9)."""
        generator = torch.Generator().manual_seed(seed)
        layout = GroupLayout(ids=tuple(f"{k:02d}" for k in range(groups)), sizes=(5,) * groups)
        chosen = admit(
            make_plan(clipping=ClippingPlan(rule="whitened")),
            layout,
            (0.05,) * groups,
            GroupActions.neutral(groups),
        )
        clips = torch.tensor(chosen.clip_norms)[:, None]
        norms = clips * torch.rand(groups, 4, generator=generator)
        factors = whitened_factors(
            norms, torch.tensor(chosen.whitening_weights)[:, None], torch.ones(4)
        )
        assert bool((factors >= 1 - 2e-6).all())


class TestTelemetry:
    def test_bits_are_centred_and_skip_what_is_not_finite(self) -> None:
        norms = torch.tensor([[0.5, 2.0, float("nan"), 0.5]])
        bits = centred_bits(norms, torch.tensor([[1.0]]), torch.tensor([1.0, 1, 1, 0]))
        assert bits.tolist() == [[0.5, -0.5, 0.0, 0.0]]

    def test_loss_sum_is_centred_bounded_and_skips_what_is_not_finite(self) -> None:
        losses = torch.tensor([0.0, 99.0, 3.0, float("nan"), 5.0])
        mask = torch.tensor([1.0, 1, 1, 1, 0])
        assert float(clipped_loss_sum(losses, 6.0, mask)) == -3 + 3 + 0
        assert float(clipped_loss_sum(losses, 6.0, mask, centre=1.0)) == -1 + 3 + 2


def release(
    raw: list[torch.Tensor], losses: torch.Tensor, chosen: Any, mask: torch.Tensor
) -> torch.Tensor:
    """Everything a step sums for `raw`, each component divided by its noise std."""
    clips = torch.tensor(chosen.clip_norms)[:, None]
    norms = torch.stack([row_norms(g) for g in raw])
    if chosen.rule == "whitened":
        weights = torch.tensor(chosen.whitening_weights)[:, None]
        shared = whitened_factors(norms, weights, mask, chosen.factor)
        factors = shared.expand(len(raw), -1)
    else:
        factors = clip_factors(norms, clips, mask, chosen.factor)
    parts = [
        weighted_sum(g[None].clone(), factors[k : k + 1], norms[k : k + 1])[0].double() / std
        for k, (g, std) in enumerate(zip(raw, chosen.noise_stds, strict=True))
    ]
    bits = centred_bits(norms, clips, mask).sum(dim=1).double() / chosen.bit_std
    loss = centred_losses(losses, chosen.loss_cap, mask).sum().double() / chosen.loss_std
    return torch.cat([*parts, bits, loss[None]])


def one_case(seed: int) -> tuple[float, float]:
    """How far one patient moves a random joint release, and the claim 1/sigma."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def pick(options: list[Any]) -> Any:
        return options[int(uniform(0, len(options) - 1e-9))]

    rule = pick(["per_group", "whitened"])
    plan = make_plan(
        clipping=ClippingPlan(
            rule=rule,
            factor=pick(sorted(FACTORS)),
            allocation=pick(["least_energy", "equal_budget", "equal_noise"]),
        )
    )
    groups, patients = pick([1, 2, 5]), pick([1, 2, 7])
    sizes = tuple(pick([1, 3, 50, 300]) for _ in range(groups))
    layout = GroupLayout(ids=tuple(f"{k:02d}" for k in range(groups)), sizes=sizes)
    clips = [10 ** uniform(-4, 1) for _ in range(groups)]
    action = GroupActions(
        clip=tuple(uniform(-2, 2) for _ in range(groups)),
        share=tuple(uniform(-2, 2) for _ in range(groups)),
        rate=(0.0,) * groups,
    )
    chosen = admit(plan, layout, clips, action)
    scale = 10 ** uniform(-6, 6)
    raw = [torch.randn(patients, d, generator=generator) * scale for d in sizes]
    if pick([True, False, False]):
        raw[0][0, 0] = pick([float("nan"), float("inf"), 3e38])
    losses = torch.rand(patients, generator=generator) * 20 - 5
    present, absent = torch.ones(patients), torch.ones(patients)
    absent[int(uniform(0, patients - 1e-9))] = 0
    moved = release(raw, losses, chosen, present) - release(raw, losses, chosen, absent)
    return float(moved.norm()), 1 / float(chosen.noise_multiplier)


class TestSensitivity:
    """sqrt(sum_j |difference_j|^2 / s_j^2) <= (1 + 1e-5) / sigma, telemetry included."""

    def check(self, cases: range) -> float:
        largest = 0.0
        for seed in cases:
            moved, claim = one_case(seed)
            assert moved <= (1 + 1e-5) * claim, f"case {seed}: {moved} > {claim}"
            largest = max(largest, moved / claim)
        return largest

    def test_one_patient_moves_the_joint_release_by_at_most_the_promise(self) -> None:
        # A tight bound: were the claim twice too large, no case would come near it.
        assert self.check(range(1_500)) > 0.99

    @pytest.mark.slow
    def test_ten_thousand_cases(self) -> None:
        assert self.check(range(10_000)) > 0.99
