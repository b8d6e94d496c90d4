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
SPARK_WIDTH, SPARK_HEIGHT, SPARK_POINTS = 80.0, 18.0, 30


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
class Lost:
    """Steps that were charged and lost with their attempt."""

    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class History:
    """What every chart of a job marks: where attempts began again, and what was lost."""

    restarts: tuple[Tick, ...] = ()  # `at` is a step
    lost: tuple[Lost, ...] = ()

    @property
    def said(self) -> str:
        """The marks in words; empty when nothing was interrupted."""
        parts = [f"{tick.label} begins at step {tick.at:.0f}" for tick in self.restarts]
        parts += [
            f"steps {one.first} to {one.last} were lost and stay charged" for one in self.lost
        ]
        text = "; ".join(parts)
        return f" {text[0].upper()}{text[1:]}." if parts else ""


@dataclass(frozen=True, kw_only=True)
class Shade:
    """A shaded range of a canvas."""

    x: float
    width: float
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
    cap: Tick | None  # a level the series must stay below, with its name
    marks: tuple[Tick, ...]
    shades: tuple[Shade, ...]
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
    marks: tuple[Tick, ...]


def line_chart(
    key: str,
    caption: str,
    points: Sequence[Point],
    steps_max: int,
    unit: str,
    *,
    history: History = History(),
    cap: tuple[float, str] | None = None,
    is_stepped: bool = False,
) -> LineChart | None:
    """The chart of a series; None while there is nothing to draw.

    `cap` is a level to stay below and its name. A stepped series holds its value since the
    point before, as a setting of a window does.
    """
    shown = _thinned(points)
    if not shown:
        return None
    low, high = _range(shown, cap)
    lost_to = max((one.last for one in history.lost), default=0)
    span = max(steps_max, shown[-1].step, lost_to, 1)

    def x_of(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / span, 2)

    def y_of(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low), 2)

    above = [(x_of(p.step), y_of(p.value + BAND_STDS * (p.std or 0))) for p in shown]
    below = [(x_of(p.step), y_of(p.value - BAND_STDS * (p.std or 0))) for p in reversed(shown)]
    has_band = any(p.std for p in shown) and len(shown) > 1
    drawn = _corners(shown) if is_stepped else [(p.step, p.value) for p in shown]
    return LineChart(
        key=key,
        caption=caption,
        summary=_summary(shown, unit) + history.said,
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        base=HEIGHT - BOTTOM,
        x_ticks=tuple(Tick(at=x_of(s), label=str(s)) for s in _step_ticks(span)),
        y_ticks=tuple(Tick(at=y_of(v), label=_short(v)) for v in _value_ticks(low, high)),
        line=_path((x_of(step), y_of(value)) for step, value in drawn),
        band=_path([*above, *below]) + "Z" if has_band else "",
        cap=None if cap is None else Tick(at=y_of(cap[0]), label=cap[1]),
        marks=tuple(Tick(at=x_of(tick.at), label=tick.label) for tick in history.restarts),
        shades=tuple(
            Shade(
                x=x_of(one.first),
                width=round(x_of(one.last) - x_of(one.first), 2),
                text=f"steps {one.first} to {one.last}: lost, stay charged",
            )
            for one in history.lost
        ),
        dots=tuple(Dot(x=x_of(p.step), y=y_of(p.value), text=_said(p)) for p in shown),
        rows=tuple(
            (str(p.step), f"{p.value:.4f}", "" if p.std is None else f"{p.std:.4f}") for p in shown
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Spark:
    """A curve as small as a word, with its first and last value in words."""

    line: str
    said: str


def sparkline(points: Sequence[tuple[int, float]], *, steps_max: int) -> Spark | None:
    """A series over the planned steps; None below two points."""
    if len(points) < 2:
        return None
    stride = math.ceil(len(points) / SPARK_POINTS)
    shown = [*points[:-1:stride], points[-1]]
    low, high = min(value for _, value in shown), max(value for _, value in shown)
    span, height = max(steps_max, shown[-1][0]), (high - low) or 1.0
    line = _path(
        (round(SPARK_WIDTH * step / span, 1), round(1 + SPARK_HEIGHT * (high - value) / height, 1))
        for step, value in shown
    )
    return Spark(line=line, said=f"from {points[0][1]:.3f} to {points[-1][1]:.3f}")


def heat_map(
    key: str,
    caption: str,
    series: Sequence[tuple[str, Sequence[Point]]],
    *,
    is_log: bool,
    history: History = History(),
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
        summary=f"{len(series)} tensors, from {low:.3g} to {high:.3g}." + history.said,
        width=WIDTH,
        height=4 + HEAT_ROW * len(series) + 14,
        left=HEAT_LEFT,
        cell_width=round(max(width - 0.6, 0.5), 2),
        cell_height=HEAT_ROW - 0.8,
        lowest=f"{low:.3g}",
        highest=f"{high:.3g}",
        rows=rows,
        steps=steps,
        marks=tuple(
            Tick(
                at=round(HEAT_LEFT + sum(step <= tick.at for step in steps) * width, 2),
                label=tick.label,
            )
            for tick in history.restarts
        ),
    )


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most 1,000 points, the last one always among them."""
    stride = max(1, math.ceil(len(points) / POINTS_MAX))
    kept = list(points[::stride])
    if points and kept[-1] is not points[-1]:
        kept.append(points[-1])
    return kept


def _corners(points: Sequence[Point]) -> list[tuple[int, float]]:
    """Each value from where the one before ended, the first from step 0, to its own step."""
    corners, since = [], 0
    for point in points:
        corners += [(since, point.value), (point.step, point.value)]
        since = point.step
    return corners


def _range(points: Sequence[Point], cap: tuple[float, str] | None) -> tuple[float, float]:
    levels = [] if cap is None else [cap[0]]
    low = min([p.value - BAND_STDS * (p.std or 0) for p in points] + levels)
    high = max([p.value + BAND_STDS * (p.std or 0) for p in points] + levels)
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
        return f"{first.value:.3f} at step {first.step}, {unit}."
    return (
        f"From {first.value:.3f} at step {first.step} "
        f"to {last.value:.3f} at step {last.step}, {unit}."
    )
