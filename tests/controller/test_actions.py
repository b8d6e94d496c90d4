"""Rows become bounded residuals; row 0 is the reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from controller.actions import ActionRanges, to_group_actions
from controller.errors import SettingInvalid
from controller.observation import Rows
from dp_core.ports import GroupActions


def rows(*values: list[float]) -> Rows:
    return np.array(values, dtype=np.float32)


class TestToGroupActions:
    def test_zero_is_the_reference(self) -> None:
        zeros = np.zeros((5, 3), dtype=np.float32)
        assert to_group_actions(zeros, ActionRanges()) == GroupActions.neutral(4)

    def test_entries_are_scaled_by_their_ranges(self) -> None:
        ranges = ActionRanges(clip=0.5, share=0.25, rate=1.0, base_rate=0.125, level=0.75)
        actions = to_group_actions(rows([1, -1, 0.5], [1, -1, 1]), ranges)
        assert actions == GroupActions(
            clip=(0.5,), share=(-0.25,), rate=(0.5,), base_rate=0.125, level=-0.75
        )

    def test_beyond_the_range_is_its_nearer_end_and_nan_is_zero(self) -> None:
        actions = to_group_actions(
            rows([np.inf, -np.inf, np.nan], [7, -7, 0]), ActionRanges(clip=0.5, share=0.5)
        )
        assert (actions.clip, actions.share, actions.rate) == ((0.5,), (-0.5,), (0.0,))
        assert (actions.base_rate, actions.level) == (0.5, -0.5)

    @given(arrays(np.float32, (4, 3), elements=st.floats(width=32)))
    def test_any_rows_stay_within_the_ranges(self, values: Rows) -> None:
        ranges = ActionRanges()
        actions = to_group_actions(values, ranges)
        for name in ("clip", "share", "rate"):
            assert all(abs(v) <= getattr(ranges, name) for v in getattr(actions, name))
        assert abs(actions.base_rate) <= ranges.base_rate
        assert abs(actions.level) <= ranges.level

    @pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 4)])
    def test_other_shapes_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(SettingInvalid):
            to_group_actions(np.zeros(shape, dtype=np.float32), ActionRanges())


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_range_outside_the_plan_is_refused(value: float) -> None:
    with pytest.raises(SettingInvalid):
        ActionRanges(clip=value)
