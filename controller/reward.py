"""The reward of one window: r = tanh(kappa * dU) - lambda * dspend (controller.md 2).

U is minus the running mean of the released loss, so a reward is post-processing. tanh
keeps one lucky or unlucky window from ruling the critic, and is steep near 0 where
almost all windows lie. lambda is a price on spending, driven by spend against plan; it
stays 0 while a job spends no faster than its steps pass, as in fixed-sigma mode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from controller.errors import SettingInvalid


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    utility_gain: float = 10.0  # kappa, per nat
    credit_weight: float = 0.05  # of a group's own signal-to-noise gain
    price_rate: float = 1.0  # how fast lambda follows overspending
    price_max: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise SettingInvalid(field.name, "needs a finite number not below 0")


def window_reward(
    config: RewardConfig, *, utility_change: float, spend_change: float, spend_price: float
) -> float:
    """The reward all rows share; NaN in either change reads as no change."""
    gain = math.tanh(config.utility_gain * _known(utility_change))
    return gain - spend_price * min(max(_known(spend_change), 0.0), 1.0)


def group_reward(config: RewardConfig, *, shared: float, signal_change: float) -> float:
    """The shared reward plus a small term for the group's own released signal gain."""
    return shared + config.credit_weight * math.tanh(_known(signal_change))


def next_spend_price(
    config: RewardConfig, *, price: float, filter_used: float, elapsed: float
) -> float:
    """lambda after a window: up while the budget goes faster than the steps, else down to 0."""
    step = config.price_rate * (_known(filter_used) - _known(elapsed))
    return min(max(price + step, 0.0), config.price_max)


def _known(value: float) -> float:
    return 0.0 if math.isnan(value) else value
