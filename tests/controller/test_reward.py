"""The reward's formula on hand-made numbers, and its bounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.errors import SettingInvalid
from controller.reward import RewardConfig, group_reward, next_spend_price, window_reward

CONFIG = RewardConfig()


class TestWindowReward:
    def test_formula_on_hand_made_numbers(self) -> None:
        reward = window_reward(
            RewardConfig(utility_gain=10.0),
            utility_change=0.05,
            spend_change=0.25,
            spend_price=2.0,
        )
        assert reward == pytest.approx(math.tanh(0.5) - 0.5)

    @given(st.floats(width=64), st.floats(width=64), st.floats(0, CONFIG.price_max))
    def test_any_change_gives_a_bounded_reward(
        self, utility: float, spend: float, price: float
    ) -> None:
        reward = window_reward(
            CONFIG, utility_change=utility, spend_change=spend, spend_price=price
        )
        assert -1.0 - CONFIG.price_max <= reward <= 1.0

    def test_more_utility_is_never_worth_less(self) -> None:
        rewards = [
            window_reward(CONFIG, utility_change=u, spend_change=0.1, spend_price=1.0)
            for u in (-1.0, -0.01, 0.0, 0.01, 1.0)
        ]
        assert rewards == sorted(rewards)


def test_group_credit_is_small_beside_the_shared_reward() -> None:
    low, high = (group_reward(CONFIG, shared=0.3, signal_change=c) for c in (-math.inf, math.inf))
    assert high - 0.3 == pytest.approx(CONFIG.credit_weight) == pytest.approx(0.3 - low)
    assert CONFIG.credit_weight <= 0.1
    assert group_reward(CONFIG, shared=0.3, signal_change=math.nan) == 0.3


class TestSpendPrice:
    def test_stays_zero_while_spending_keeps_pace(self) -> None:
        assert next_spend_price(CONFIG, price=0.0, filter_used=0.4, elapsed=0.5) == 0.0

    def test_rises_with_overspending_up_to_its_limit(self) -> None:
        price = next_spend_price(CONFIG, price=0.5, filter_used=0.75, elapsed=0.5)
        assert price == pytest.approx(0.75)
        assert next_spend_price(CONFIG, price=9.99, filter_used=1.0, elapsed=0.0) == 10.0


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_setting_that_is_no_weight_is_refused(value: float) -> None:
    with pytest.raises(SettingInvalid):
        RewardConfig(utility_gain=value)
