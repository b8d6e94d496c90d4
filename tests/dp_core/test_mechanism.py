"""Action map and noise multiplier (ACTION, VECTORS, M3, M12, M25, M28)."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp_core.errors import PlanInvalid, PlanViolation
from dp_core.mechanism import (
    GroupLayout,
    admit,
    effective_noise_multiplier,
    next_references,
    prior_shares,
    up32,
)
from dp_core.plan import ClippingPlan
from dp_core.ports import GroupActions
from tests.dp_core.conftest import make_plan

PLAN = make_plan()
MENU_PLAN = make_plan(mode="adaptive_sigma", steps_max=40, patients_public=1000)
ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True, width=64)


def layout(count: int) -> GroupLayout:
    return GroupLayout(
        ids=tuple(f"{k:03d}" for k in range(count)), sizes=tuple(1 + 37 * k for k in range(count))
    )


def test_vectors_of_the_effective_multiplier(shared: Path) -> None:
    import json

    cases = json.loads((shared / "vectors" / "accounting.json").read_text())
    for case in cases["effective_noise_multiplier"]:
        sigma = effective_noise_multiplier(case["sensitivity"], case["noise_std"])
        assert sigma == pytest.approx(case["effective_noise_multiplier"], rel=1e-12)


def test_sigma_times_clip_on_eight_groups_is_not_sigma() -> None:
    clips = [0.5] * 8
    assert effective_noise_multiplier(clips, clips) == pytest.approx(1 / math.sqrt(8))


class TestAdmit:
    @settings(max_examples=300, deadline=None)
    @given(data=st.data(), count=st.integers(1, 40))
    def test_any_action_keeps_the_level(self, data: st.DataObject, count: int) -> None:
        def floats() -> tuple[float, ...]:
            return tuple(data.draw(st.lists(ANY_FLOAT, min_size=count, max_size=count)))

        plan = data.draw(st.sampled_from([PLAN, MENU_PLAN]))
        references = data.draw(st.lists(st.floats(1e-4, 10), min_size=count, max_size=count))
        action = GroupActions(
            clip=floats(), share=floats(), rate=floats(), level=data.draw(ANY_FLOAT)
        )
        chosen = admit(plan, layout(count), references, action)
        level = float(chosen.noise_multiplier)
        assert chosen.noise_multiplier in plan.noise_levels
        assert level <= chosen.effective_noise_multiplier() <= level * (1 + 2e-6)
        assert math.isclose(sum(chosen.shares), 1, rel_tol=1e-9)
        assert all(np.float32(c) == c for c in chosen.clip_norms)

    def test_512_groups_at_the_extremes(self) -> None:
        for value in (float("nan"), float("inf"), float("-inf"), 0.3):
            values = (value,) * 512
            action = GroupActions(clip=values, share=values[::-1], rate=values)
            chosen = admit(PLAN, layout(512), (0.05,) * 512, action)
            assert chosen.effective_noise_multiplier() >= float(chosen.noise_multiplier)

    def test_nan_means_the_reference_and_the_middle_level(self) -> None:
        nan = (float("nan"),) * 3
        action = GroupActions(clip=nan, share=nan, rate=nan, level=float("nan"))
        neutral = admit(MENU_PLAN, layout(3), (0.05,) * 3, GroupActions.neutral(3))
        assert admit(MENU_PLAN, layout(3), (0.05,) * 3, action) == neutral
        assert neutral.noise_multiplier == MENU_PLAN.noise_levels[2]

    def test_another_number_of_groups_is_refused(self) -> None:
        with pytest.raises(PlanViolation, match="3 groups"):
            admit(PLAN, layout(3), (0.05,) * 3, GroupActions.neutral(2))

    def test_a_larger_clip_moves_its_noise_with_it(self) -> None:
        low = admit(PLAN, layout(2), (0.05, 0.05), GroupActions.neutral(2))
        action = dataclasses.replace(GroupActions.neutral(2), clip=(1.0, 1.0))
        high = admit(PLAN, layout(2), (0.05, 0.05), action)
        for k in range(2):
            assert high.clip_norms[k] == pytest.approx(4 * low.clip_norms[k])
            assert high.noise_stds[k] == pytest.approx(4 * low.noise_stds[k], rel=1e-6)

    def test_journal_components_give_the_multiplier_back(self) -> None:
        chosen = admit(PLAN, layout(5), (0.05,) * 5, GroupActions.neutral(5))
        parts = chosen.components()
        assert len(parts) == 5 + 5 + 1
        recomputed = effective_noise_multiplier(
            [float(p.sensitivity) for p in parts], [float(p.std) for p in parts]
        )
        assert recomputed == chosen.effective_noise_multiplier()


class TestShares:
    @pytest.mark.parametrize("allocation", ["equal_budget", "equal_noise"])
    def test_least_energy_is_never_beaten(self, allocation: str) -> None:
        rng = np.random.default_rng(1)
        for _ in range(50):
            clips, sizes = rng.uniform(0.01, 1, 9), rng.integers(1, 5000, 9).astype(float)

            def energy(name: str, c: np.ndarray = clips, d: np.ndarray = sizes) -> float:
                shares = prior_shares(name, c, d)  # type: ignore[arg-type]
                return float((d * c**2 / shares).sum())

            assert energy("least_energy") <= energy(allocation) * (1 + 1e-12)


class TestReferences:
    def test_too_many_clipped_raises_the_clip_and_too_few_lowers_it(self) -> None:
        plan = ClippingPlan(clip_norm="0.1")
        up, down, stay = next_references(plan, (0.1, 0.1, 0.1), (0.0, 1.0, 0.5), steps=1)
        assert down < 0.1 < up
        assert stay == 0.1
        assert up == pytest.approx(0.1 * math.exp(0.1))

    def test_noise_beyond_the_unit_interval_and_nan_are_bounded(self) -> None:
        plan = ClippingPlan(clip_norm="0.1")
        none = next_references(plan, (0.1,), (0.0,), steps=1)
        assert next_references(plan, (0.1,), (-7.0,), steps=1) == none
        assert next_references(plan, (0.1,), (float("nan"),), steps=1) == (0.1,)

    @pytest.mark.parametrize(("steps", "gain"), [(1, 0.2), (3, 0.6), (5, 1.0), (25, 1.0)])
    def test_a_long_window_moves_as_its_steps_would_up_to_the_whole_error(
        self, steps: int, gain: float
    ) -> None:
        (up,) = next_references(ClippingPlan(clip_norm="0.1"), (0.1,), (0.2,), steps=steps)
        assert up == pytest.approx(0.1 * math.exp(gain * 0.3))


class TestBadInput:
    @pytest.mark.parametrize("stds", [[0.0, 1.0], [1.0, float("nan")], [1.0], []])
    def test_zero_missing_or_non_finite_noise_is_refused(self, stds: list[float]) -> None:
        with pytest.raises(PlanInvalid):
            effective_noise_multiplier([1.0, 1.0], stds)

    def test_unsorted_groups_are_refused(self) -> None:
        with pytest.raises(PlanInvalid, match="sorted"):
            GroupLayout(ids=("b", "a"), sizes=(1, 1))


@given(st.floats(1e-30, 1e30))
def test_up32_is_the_next_float32_not_below(value: float) -> None:
    rounded = up32(value)
    assert rounded >= value
    assert np.float32(rounded) == rounded
    assert float(np.nextafter(np.float32(rounded), np.float32(0))) < value
