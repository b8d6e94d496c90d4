"""A at half the rate of B, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest

from controller.baselines.slow_a import SlowAPolicy
from controller.errors import PolicyStateMismatch
from controller.observation import describe_groups
from controller.reference import ReferencePolicy
from dp_core.plan import OptimizerPlan
from dp_core.ports import GroupActions
from dp_core.schedule import rate_factors
from tests.controller.baselines.cases import group, window


def test_each_a_has_half_the_rate_and_all_else_is_the_reference() -> None:
    kinds = ("c_attn.A", "c_attn.B", "c_fc")
    seen = window(*(dataclasses.replace(group(k), kind=kind) for k, kind in enumerate(kinds)))
    action = SlowAPolicy(groups=describe_groups(seen)).propose(seen)
    assert rate_factors(OptimizerPlan(), action) == pytest.approx((0.5, 1.0, 1.0))
    assert dataclasses.replace(action, rate=(0.0,) * 3) == GroupActions.neutral(3)


def test_another_policys_state_is_refused() -> None:
    seen = window(group())
    policy = SlowAPolicy(groups=describe_groups(seen))
    policy.restore(policy.state())
    with pytest.raises(PolicyStateMismatch):
        policy.restore(ReferencePolicy(groups=describe_groups(seen)).state())
