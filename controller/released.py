"""Lets released and public values pass, and nothing else (privacy.md R1, H3).

Every entrance of the controller calls `require_released` first. It is a list of what is
allowed, not of what is forbidden: a tensor, an array or a `Raw` wrapper is refused
because it is none of the types a window's telemetry may be made of.
"""

from __future__ import annotations

import math
from dataclasses import fields
from numbers import Real
from typing import Any

from dp_core.telemetry import GroupTelemetry, ReleasedValue, WindowTelemetry


def number(value: Any) -> float:
    """A plain number as float; an integer beyond float's range reads as infinite.

    Raises:
        TypeError: not a plain number; the text never shows the value.
    """
    if not isinstance(value, Real):
        raise TypeError("The controller takes plain released numbers, nothing wrapped or raw.")
    try:
        return float(value)
    except OverflowError:
        is_positive: Any = value
        return math.inf if is_positive > 0 else -math.inf


def require_released(telemetry: WindowTelemetry) -> None:
    """Checks each field's type, down to the last number.

    Raises:
        TypeError: names the field that holds something else.
    """
    if type(telemetry) is not WindowTelemetry:
        raise TypeError("The controller takes WindowTelemetry, nothing wrapped or raw.")
    for field in fields(telemetry):
        if field.name != "groups":
            _require_number(getattr(telemetry, field.name), field.name)
    groups = telemetry.groups
    if type(groups) is not tuple or any(type(group) is not GroupTelemetry for group in groups):
        raise TypeError("Telemetry field `groups` must be a tuple of GroupTelemetry.")
    for group in groups:
        for field in fields(group):
            value = getattr(group, field.name)
            if field.name in ("group_id", "kind"):
                if type(value) is not str:
                    raise TypeError(f"Telemetry field `{field.name}` must be text.")
            else:
                _require_number(value, field.name)


_OPTIONAL = frozenset({"loss", "validation_loss", "clip_fraction"})


def _require_number(value: Any, name: str) -> None:
    if name in _OPTIONAL:
        if value is None:
            return
        if type(value) is not ReleasedValue:
            raise TypeError(f"Telemetry field `{name}` must be a ReleasedValue or None.")
        parts: tuple[Any, ...] = (value.value, value.std)
    else:
        parts = (value,)
    if not all(isinstance(part, Real) for part in parts):
        raise TypeError(f"Telemetry field `{name}` holds something that is not a released number.")
