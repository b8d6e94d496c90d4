"""What holds for every arm of the registry."""

from __future__ import annotations

import dataclasses

import pytest

from controller.baselines.arm import Arm
from controller.baselines.registry import ARMS, find_arm, select_arms
from controller.errors import ControllerUnknown
from tests.controller.baselines.cases import REQUEST

CHANGEABLE = {"clipping", "telemetry", "optimizer", "controller_type", "noise_shape", "mode"}
arms = pytest.mark.parametrize("arm", list(ARMS.values()), ids=list(ARMS))


@arms
def test_an_arm_changes_its_own_settings_only(arm: Arm) -> None:
    """Target, patients, batch, steps and seed are the benchmark's, the same for every arm."""
    prepared = arm.plan_request(REQUEST)
    changed = {
        field.name
        for field in dataclasses.fields(REQUEST)
        if getattr(prepared, field.name) != getattr(REQUEST, field.name)
    }
    assert changed <= CHANGEABLE
    assert prepared.controller_type == arm.name
    assert prepared.optimizer.learning_rate == arm.default_learning_rate
    assert arm.plan_request(REQUEST) == prepared


@arms
def test_a_learning_rate_given_wins_over_the_default(arm: Arm) -> None:
    assert arm.plan_request(REQUEST, learning_rate="0.0123").optimizer.learning_rate == "0.0123"


def test_arms_are_found_by_name_only() -> None:
    assert find_arm("reference").name == "reference"
    with pytest.raises(ControllerUnknown, match="reference"):
        find_arm("best")


def test_a_selection_keeps_the_order_of_the_table() -> None:
    assert [a.name for a in select_arms(("reference", "flat"))] == ["flat", "reference"]
    assert all(not a.is_ablation for a in select_arms())
