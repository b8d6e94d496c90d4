"""What a plan must promise before anything is released (REFUSE; M30, M33)."""

from __future__ import annotations

import dataclasses

import pytest

from dp_core.errors import PlanInvalid
from dp_core.planner import PlanRequest, make_run_plan
from tests.dp_core.conftest import make_plan

REQUEST = PlanRequest(
    target_epsilon="8",
    delta="1e-4",
    patients_public=100,
    batch_size=10,
    steps_max=6,
    seed=3,
    controller_type="reference",
    base_model_digest="0" * 64,
    dataset_version="dsv_test",
)


@pytest.mark.parametrize("delta", ["0.0125", "0.5", "8", "0", "-1e-5"])
def test_delta_lies_between_zero_and_one_in_all_patients(delta: str) -> None:
    plan = make_plan()
    assert plan.patients_public == 80
    with pytest.raises(PlanInvalid, match="delta"):
        dataclasses.replace(plan, delta=delta)


@pytest.mark.parametrize("epsilon", ["0", "-3", "nan", "inf"])
def test_epsilon_is_a_finite_number_above_zero(epsilon: str) -> None:
    with pytest.raises(PlanInvalid, match="epsilon"):
        make_run_plan(dataclasses.replace(REQUEST, target_epsilon=epsilon))


def test_epsilon_and_delta_swapped_are_refused() -> None:
    with pytest.raises(PlanInvalid, match="delta"):
        make_run_plan(dataclasses.replace(REQUEST, target_epsilon="1e-4", delta="8"))


def test_unit_record_needs_the_statement_that_records_are_patients() -> None:
    with pytest.raises(PlanInvalid, match="records_are_unique_patients"):
        dataclasses.replace(make_plan(), unit="record")
    stated = dataclasses.replace(make_plan(), unit="record", records_are_unique_patients=True)
    assert stated.unit == "record"
