"""Whether a job's model can be held by a worker's device at all; refused before a reservation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from dp_core.memory import GIB, ModelShape, memory_need
from dp_core.plan import AdapterPlan, Performance
from service.jobs.errors import DeviceTooSmall
from service.settings import Settings

# What an operator can change, mildest first: each is tried together with those before it.
REMEDIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("RLDP_CHECKPOINTING=non_reentrant", {"checkpointing": "non_reentrant"}),
    ("RLDP_MICROBATCH_PATIENTS=1", {"patients_per_microbatch": 1}),
    ("RLDP_BASE_DTYPE=bfloat16", {"base_dtype": "bfloat16"}),
    ("RLDP_BASE_DTYPE=4bit", {"base_dtype": "4bit"}),
)


def require_fit(
    settings: Settings, shape: ModelShape | None, adapter: AdapterPlan, tokens_per_row: int
) -> None:
    """Passes where the device's memory is not stated, or the model's shape is not known.

    Raises:
        DeviceTooSmall: even the least that the trainer holds exceeds the device.
    """
    if settings.device_memory_gib == 0 or shape is None:
        return
    performance = Performance(
        patients_per_microbatch=settings.microbatch_patients,
        base_dtype=settings.base_dtype,
        checkpointing=settings.checkpointing,
        autocast=settings.autocast,
    )

    def gib(tried: Performance) -> float:
        need = memory_need(shape, adapter=adapter, performance=tried, tokens_per_row=tokens_per_row)
        return need.total / GIB

    if gib(performance) <= settings.device_memory_gib:
        return
    raise DeviceTooSmall(
        needed_gib=gib(performance),
        device_gib=settings.device_memory_gib,
        remedy=_remedy(settings.device_memory_gib, performance, gib),
    )


def _remedy(
    device_gib: float, performance: Performance, gib: Callable[[Performance], float]
) -> str:
    """The operator's settings under which it would fit; empty if there are none."""
    changed: dict[str, str] = {}
    for told, change in REMEDIES:
        performance = dataclasses.replace(performance, **change)
        changed[told.partition("=")[0]] = told
        if gib(performance) <= device_gib:
            return ", ".join(changed.values())
    return ""
