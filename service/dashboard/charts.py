"""Geometry of charts: numbers in, coordinates and words out; templates draw the SVG.

Every chart carries a caption, a one-sentence summary and its data as rows, so that
nothing is told by a picture alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 400.0, 210.0
LEFT, RIGHT, TOP, BOTTOM = 38.0, 10.0, 10.0, 26.0
BAND_STDS = 2.0
HEAT_CLASSES = 9
HEAT_LEFT, HEAT_ROW = 92.0, 10.5
POINTS_MAX = 1000


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of a series; `std` of its noise, None where there is none to show."""

    step: int
    value: float
    std: float | None = None


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A point on the canvas with its text."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """A series over steps, with a band of two standard errors where they are known."""

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
    line: str
    band: str
    dots: tuple[Dot, ...]
    rows: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One rectangle of a heat map; `tone` is its class, 0 lowest."""

    x: float
    tone: int
    text: str


@dataclass(frozen=True, kw_only=True)
class HeatRow:
    """One group of LoRA tensors over the windows."""

    label: str
    y: float
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """A value per group and window, as tones between the smallest and the largest."""

    key: str
    caption: str
    summary: str
    width: float
    height: float
    left: float
    cell_width: float
    cell_height: float
    lowest: str
    highest: str
    rows: tuple[HeatRow, ...]
    steps: tuple[int, ...]


def line_chart(
    key: str, caption: str, points: Sequence[Point], steps_max: int, unit: str
) -> LineChart | None:
    """The chart of a series; None while there is nothing to draw."""
    shown = _thinned(points)
    if not shown:
        return None
    low, high = _range(shown)
    span = max(steps_max, shown[-1].step, 1)

    def x_of(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / span, 2)

    def y_of(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low), 2)

    above = [(x_of(p.step), y_of(p.value + BAND_STDS * (p.std or 0))) for p in shown]
    below = [(x_of(p.step), y_of(p.value - BAND_STDS * (p.std or 0))) for p in reversed(shown)]
    has_band = any(p.std for p in shown) and len(shown) > 1
    return LineChart(
        key=key,
        caption=caption,
        summary=_summary(shown, unit),
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        base=HEIGHT - BOTTOM,
        x_ticks=tuple(Tick(at=x_of(s), label=str(s)) for s in _step_ticks(span)),
        y_ticks=tuple(Tick(at=y_of(v), label=_short(v)) for v in _value_ticks(low, high)),
        line=_path((x_of(p.step), y_of(p.value)) for p in shown),
        band=_path([*above, *below]) + "Z" if has_band else "",
        dots=tuple(Dot(x=x_of(p.step), y=y_of(p.value), text=_said(p)) for p in shown),
        rows=tuple(
            (str(p.step), f"{p.value:.4f}", "" if p.std is None else f"{p.std:.4f}") for p in shown
        ),
    )


def heat_map(
    key: str, caption: str, series: Sequence[tuple[str, Sequence[Point]]], *, is_log: bool
) -> HeatMap | None:
    """The map of a value per group and window; None while there is nothing to draw."""
    values = [p.value for _, points in series for p in points]
    if not values:
        return None
    steps = tuple(sorted({p.step for _, points in series for p in points}))
    low, high = min(values), max(values)
    scale = math.log if is_log and low > 0 else float
    width = (WIDTH - HEAT_LEFT - 4) / len(steps)
    column = {step: index for index, step in enumerate(steps)}

    def tone(value: float) -> int:
        if high == low:
            return HEAT_CLASSES // 2
        share = (scale(value) - scale(low)) / (scale(high) - scale(low))
        return min(HEAT_CLASSES - 1, int(share * HEAT_CLASSES))

    rows = tuple(
        HeatRow(
            label=label,
            y=2 + index * HEAT_ROW,
            cells=tuple(
                Cell(
                    x=round(HEAT_LEFT + column[p.step] * width, 2),
                    tone=tone(p.value),
                    text=f"{label}, up to step {p.step}: {p.value:.4g}",
                )
                for p in points
            ),
        )
        for index, (label, points) in enumerate(series)
    )
    return HeatMap(
        key=key,
        caption=caption,
        summary=f"{len(series)} tensors, from {low:.3g} to {high:.3g}.",
        width=WIDTH,
        height=4 + HEAT_ROW * len(series) + 14,
        left=HEAT_LEFT,
        cell_width=round(max(width - 0.6, 0.5), 2),
        cell_height=HEAT_ROW - 0.8,
        lowest=f"{low:.3g}",
        highest=f"{high:.3g}",
        rows=rows,
        steps=steps,
    )


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most 1,000 points, the last one always among them."""
    stride = max(1, math.ceil(len(points) / POINTS_MAX))
    kept = list(points[::stride])
    if points and kept[-1] is not points[-1]:
        kept.append(points[-1])
    return kept


def _range(points: Sequence[Point]) -> tuple[float, float]:
    low = min(p.value - BAND_STDS * (p.std or 0) for p in points)
    high = max(p.value + BAND_STDS * (p.std or 0) for p in points)
    margin = (high - low) * 0.06 or max(abs(high) * 0.05, 0.05)
    return low - margin, high + margin


def _value_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= 0.7 * rough)
    first = math.ceil(low / step) * step
    return [first + i * step for i in range(int((high - first) / step + 1e-9) + 1)]


def _step_ticks(span: int) -> list[int]:
    stride = next((s for s in (1, 2, 4, 8, 10, 16, 20, 24, 25, 50) if span / s <= 6), 0)
    stride = stride or 10 ** math.ceil(math.log10(span / 6))
    return list(range(0, span + 1, stride))


def _path(points: object) -> str:
    pairs = [f"{x},{y}" for x, y in points]  # type: ignore[attr-defined]
    return "M" + "L".join(pairs)


def _short(value: float) -> str:
    return f"{value:.4g}"


def _said(point: Point) -> str:
    noise = "" if point.std is None else f" ± {point.std:.3f}"
    return f"step {point.step}: {point.value:.3f}{noise}"


def _summary(points: Sequence[Point], unit: str) -> str:
    first, last = points[0], points[-1]
    if len(points) == 1:
        return f"{first.value:.3f} {unit} at step {first.step}."
    return (
        f"From {first.value:.3f} at step {first.step} "
        f"to {last.value:.3f} at step {last.step}, in {unit}."
    )
