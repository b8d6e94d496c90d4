"""Every planted fault rings on the real engine, at the steps that audit.md's table gives."""

from __future__ import annotations

from typing import Any

import pytest

from dp_core.audit.faults import FAULTS, Fault, run_correct, run_fault
from dp_core.audit.report import REQUIRED_CONTROLS
from dp_core.base_model import load_base
from dp_core.lora import attach_adapters
from dp_core.plan import AdapterPlan, Performance
from service.demo import models
from tests.dp_core.conftest import make_plan

PERFORMANCE = Performance(patients_per_microbatch=4)
ADAPTER = AdapterPlan(r=4, alpha=8)
# Most steps until the first look that rings, at epsilon 8; the clip of a sum shows in the
# canaries' mean alone, which needs draws.
STEPS_MOST = {"reused_seed": 2, "one_group_unclipped": 5, "stale_noise": 5, "clip_of_the_sum": 60}


@pytest.fixture(scope="module")
def material() -> dict[str, Any]:
    base, _ = load_base(models.path(), PERFORMANCE)
    plan = make_plan(validation_fraction="0", adapter=ADAPTER, steps_max=40, batch_size=3)
    return {
        "plan": plan,
        "model": attach_adapters(base, ADAPTER, seed=3),
        "vocabulary": base.config.vocab_size,
        "performance": PERFORMANCE,
    }


def test_the_required_controls_are_among_them() -> None:
    names = [fault.name for fault in FAULTS]
    assert set(REQUIRED_CONTROLS) <= set(names)
    assert len(set(names)) == len(names)


@pytest.mark.ci
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_rings_in_time(material: dict[str, Any], fault: Fault) -> None:
    found = run_fault(fault, seed=5, **material)
    assert found.has_tripped
    assert found.rang_at_step is not None
    assert found.rang_at_step <= STEPS_MOST.get(fault.name, 1)


def test_a_reused_seed_rings_at_the_second_step(material: dict[str, Any]) -> None:
    fault = next(fault for fault in FAULTS if fault.name == "reused_seed")
    assert run_fault(fault, seed=5, **material).rang_at_step == 2


@pytest.mark.ci
def test_the_engine_as_it_is_stays_silent(material: dict[str, Any]) -> None:
    found = run_correct(seed=5, **material)
    assert (found.rang_at_step, found.has_tripped, found.steps) == (None, False, 60)
