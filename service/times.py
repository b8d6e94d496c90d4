"""Times as native answers write them (service.md 2.2)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import overload


@overload
def utc_text(time_us: int) -> str: ...
@overload
def utc_text(time_us: int | None) -> str | None: ...
def utc_text(time_us: int | None) -> str | None:
    """RFC 3339 in UTC, whole seconds; None stays None."""
    if time_us is None:
        return None
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).isoformat().replace("+00:00", "Z")
