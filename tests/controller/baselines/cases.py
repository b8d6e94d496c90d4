"""Hand-made telemetry and the settings that an arm's plan gives."""

from __future__ import annotations

import dataclasses
import math
from decimal import Decimal
from typing import Any

from controller.baselines.arm import Arm
from dp_core.mechanism import GroupLayout, StepSettings, admit
from dp_core.noise_schedule import scaled
from dp_core.plan import AdapterPlan, RunPlan
from dp_core.planner import PlanRequest, make_run_plan
from dp_core.ports import GroupActions
from dp_core.telemetry import GroupTelemetry, ReleasedValue, WindowTelemetry

REQUEST = PlanRequest(
    target_epsilon="8",
    delta="1e-4",
    patients_public=100,
    batch_size=10,
    steps_max=3,
    interval_steps=1,
    tokens_per_row=16,
    adapter=AdapterPlan(r=2, alpha=4),
    seed=3,
    controller_type="none",
    base_model_digest="0" * 64,
    dataset_version="dsv_test",
)
LAYOUT = GroupLayout(ids=("a", "b", "c", "d"), sizes=(100, 400, 100, 900))


def plan_of(arm: Arm) -> RunPlan:
    """The arm's plan. A schedule of the noise keeps its shape and is not calibrated (slow)."""
    request = arm.plan_request(REQUEST)
    plan = make_run_plan(dataclasses.replace(request, noise_shape=None))
    if request.noise_shape is None:
        return plan
    parts = request.noise_shape.over(
        steps_planned=plan.steps_planned,
        steps_started_max=plan.steps_started_max,
        steps_per_chunk=plan.steps_per_chunk,
    )
    schedule = scaled(parts, Decimal(2))
    return dataclasses.replace(plan, noise_schedule=schedule, noise_levels=schedule.levels)


def settings_of(arm: Arm) -> StepSettings:
    """What the first window of the arm's plan runs with, on four groups."""
    plan = plan_of(arm)
    references = (float(plan.clipping.clip_norm),) * len(LAYOUT)
    neutral = GroupActions.neutral(len(LAYOUT))
    return admit(plan, LAYOUT, references, neutral, first_step=0)


def group(index: int = 0, **values: Any) -> GroupTelemetry:
    fraction, std = values.pop("fraction", 0.5), values.pop("fraction_std", 0.1)
    defaults: dict[str, Any] = {
        "group_id": f"{index:03d}.c_attn.A",
        "kind": "c_attn.A",
        "depth": 0.0,
        "size": 100,
        "clip_norm": 0.05,
        "noise_std": 0.2,
        "share": 1.0,
        "rate_factor": 1.0,
        "clip_fraction": ReleasedValue(value=fraction, std=std),
        "signal_norm_squared": 0.0,
        "update_cosine": 0.0,
        "update_norm": 0.0,
        "weight_norm": 0.0,
    }
    return GroupTelemetry(**(defaults | values))


def window(*groups: GroupTelemetry, chunk: int = 0, **values: Any) -> WindowTelemetry:
    steps = values.get("steps_per_chunk", 5)
    defaults: dict[str, Any] = {
        "step": (chunk + 1) * steps,
        "steps_planned": 20 * steps,
        "chunk": chunk,
        "steps_per_chunk": steps,
        "filter_used": 0.1,
        "sampling_probability": 0.1,
        "noise_multiplier": 1.0,
        "target_epsilon": 8.0,
        "learning_rate": 0.01,
        "loss": ReleasedValue(value=2.0, std=0.1),
        "validation_loss": None,
        "groups": groups,
    }
    return WindowTelemetry(**(defaults | values))


def joint(values: tuple[float, ...]) -> float:
    return math.sqrt(math.fsum(v * v for v in values))
