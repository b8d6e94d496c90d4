"""Geometry of a burn-down: what was free, held and spent of the limit, over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from service.dashboard.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Tick
from service.dashboard.rendering import percent
from service.ledger.burn_down import BurnDown, Standing

TIMES = 4
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class BurnChart:
    """Areas from the base line up: free, held, spent; `rows` are the same as a table."""

    key: str
    caption: str
    summary: str
    width: float
    height: float
    left: float
    right: float
    base: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    free: str
    held: str
    spent: str
    unit: str
    rows: tuple[tuple[str, str, str, str], ...]


def burn_charts(found: BurnDown) -> tuple[BurnChart, ...]:
    """One chart for each block that ever had a limit."""
    return tuple(
        _chart(found, burn.block, burn.points, _forecast(burn.spent_pico_per_day, burn.used_up_at))
        for burn in found.burns
        if any(point.limit_pico for point in burn.points)
    )


def _chart(found: BurnDown, block: str, points: Sequence[Standing], forecast: str) -> BurnChart:
    top = max(point.limit_pico for point in points)
    took = max(found.until - found.since, timedelta(minutes=1))

    def x_of(time: datetime) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * ((time - found.since) / took), 2)

    def y_of(pico: int) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - pico / top), 2)

    def area(low: Sequence[int], high: Sequence[int]) -> str:
        xs = [x_of(point.at) for point in points]
        above = _stairs(xs, [y_of(value) for value in high])
        below = _stairs(xs, [y_of(value) for value in low])
        return "M" + "L".join(f"{x},{y}" for x, y in [*above, *reversed(below)]) + "Z"

    free = [point.free_pico for point in points]
    kept = [point.free_pico + point.held_pico for point in points]
    times = [found.since + took * i / (TIMES - 1) for i in range(TIMES)]
    return BurnChart(
        key=f"burn-{block}",
        caption=f"Burn-down of the {block} block",
        summary=_summary(points, found) + forecast,
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        base=HEIGHT - BOTTOM,
        x_ticks=tuple(Tick(at=x_of(time), label=_label(time, found.unit)) for time in times),
        y_ticks=tuple(Tick(at=y_of(int(top * s)), label=f"{100 * s:.0f} %") for s in SHARES),
        free=area([0] * len(points), free),
        held=area(free, kept),
        spent=area(kept, [point.limit_pico for point in points]),
        unit=found.unit,
        rows=tuple(_row(point, top) for point in points),
    )


def _stairs(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """Each value from its own time to the next one's: a balance stays until it is moved."""
    corners = [(xs[0], ys[0])]
    for x, before, y in zip(xs[1:], ys, ys[1:], strict=False):
        corners += [(x, before), (x, y)] if y != before else [(x, y)]
    return corners


def _row(point: Standing, top: int) -> tuple[str, str, str, str]:
    shares = (point.spent_pico, point.held_pico, point.free_pico)
    spent, held, free = (percent(pico / top) for pico in shares)
    return f"{point.at:%Y-%m-%d %H:%M}", spent, held, free


def _summary(points: Sequence[Standing], found: BurnDown) -> str:
    last = points[-1]
    limit = last.limit_pico or 1
    spent = max(last.spent_pico - points[0].spent_pico, 0)
    since = f"{found.since:%-d %b %Y, %H:%M} UTC"
    return (
        f"{percent(spent / limit)} of the limit was spent since {since}; "
        f"{percent(last.free_pico / limit)} is free and {percent(last.held_pico / limit)} is held."
    )


def _forecast(pace: int | None, used_up: datetime | None) -> str:
    if pace is None:
        return ""
    if used_up is None:
        return " Nothing was spent in this time, so no end can be told."
    return f" At this pace it is used up on {used_up:%-d %b %Y}; a forecast, no guarantee."


def _label(time: datetime, unit: str) -> str:
    return f"{time:%-d %b}" if unit == "day" else f"{time:%-d %b, %H:%M}"
