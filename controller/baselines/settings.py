"""Small changes to a plan request that several arms share. Pure functions."""

from __future__ import annotations

import dataclasses
from typing import Any

from controller.baselines.arm import NO_SENSING
from controller.baselines.steering import SENSING, STEERED
from dp_core.planner import PlanRequest


def with_clipping(request: PlanRequest, **changes: Any) -> PlanRequest:
    return dataclasses.replace(request, clipping=dataclasses.replace(request.clipping, **changes))


def with_fixed_clip(request: PlanRequest, clip_norm: str, **changes: Any) -> PlanRequest:
    """One clip norm for the whole job: the reference may move nowhere."""
    return with_clipping(
        request, clip_norm=clip_norm, clip_min=clip_norm, clip_max=clip_norm, **changes
    )


def without_sensing(request: PlanRequest) -> PlanRequest:
    """Leaves a millionth of the privacy to the signals, so that none is wasted on them."""
    return dataclasses.replace(
        request, telemetry=dataclasses.replace(request.telemetry, share=NO_SENSING)
    )


def unchanged(request: PlanRequest) -> PlanRequest:
    return request


def with_steered_clips(request: PlanRequest, **changes: Any) -> PlanRequest:
    """The plan constants that `SteeringPolicy` counts on, with sensing as `reference` has it."""
    wanted = dataclasses.replace(STEERED, grouping=request.clipping.grouping, **changes)
    return dataclasses.replace(request, clipping=wanted, telemetry=SENSING)
