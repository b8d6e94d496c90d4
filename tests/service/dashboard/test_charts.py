"""Geometry of charts: where points land, what the band covers, what is said in words."""

from __future__ import annotations

import re

import pytest

from service.dashboard.charts import (
    BOTTOM,
    HEAT_CLASSES,
    HEAT_LEFT,
    HEIGHT,
    LEFT,
    POINTS_MAX,
    RIGHT,
    TOP,
    WIDTH,
    History,
    LineChart,
    Lost,
    Point,
    Tick,
    heat_map,
    line_chart,
)


def _chart(*points: Point, steps: int = 100) -> LineChart:
    chart = line_chart("key", "Loss", points, steps, "in nats")
    assert chart is not None
    return chart


class TestLineChart:
    def test_nothing_to_draw_gives_no_chart(self) -> None:
        assert line_chart("key", "Loss", [], 100, "nats") is None

    def test_steps_span_the_width(self) -> None:
        chart = _chart(Point(step=0, value=2.0), Point(step=100, value=1.0))
        assert [dot.x for dot in chart.dots] == [LEFT, WIDTH - RIGHT]

    def test_larger_values_stand_higher_and_all_inside(self) -> None:
        chart = _chart(Point(step=0, value=2.0, std=0.5), Point(step=50, value=1.0, std=0.5))
        assert chart.dots[0].y < chart.dots[1].y
        heights = [float(y) for _, y in re.findall(r"([\d.]+),([\d.]+)", chart.band)]
        assert min(heights) >= TOP
        assert max(heights) <= HEIGHT - BOTTOM

    def test_the_band_is_two_stds_on_both_sides(self) -> None:
        chart = _chart(Point(step=0, value=2.0, std=0.5), Point(step=50, value=1.0, std=0.5))
        pairs = [(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", chart.band)]
        upper, lower = pairs[0][1], pairs[-1][1]
        one_nat = chart.dots[1].y - chart.dots[0].y
        assert lower - upper == pytest.approx(2.0 * one_nat, abs=0.05)

    def test_without_noise_there_is_no_band(self) -> None:
        assert _chart(Point(step=0, value=2.0), Point(step=1, value=1.0)).band == ""

    def test_equal_values_have_room_and_ticks(self) -> None:
        chart = _chart(Point(step=0, value=0.0), Point(step=1, value=0.0))
        assert TOP < chart.dots[0].y < HEIGHT - BOTTOM
        assert chart.y_ticks

    def test_long_series_are_thinned_and_keep_their_end(self) -> None:
        points = [Point(step=n, value=float(n)) for n in range(5 * POINTS_MAX)]
        chart = _chart(*points, steps=5 * POINTS_MAX)
        assert len(chart.dots) <= POINTS_MAX + 1
        assert chart.rows[-1][0] == str(5 * POINTS_MAX - 1)

    def test_words_and_rows_tell_the_same(self) -> None:
        chart = _chart(Point(step=0, value=2.0), Point(step=50, value=1.5, std=0.1))
        assert chart.summary == "From 2.000 at step 0 to 1.500 at step 50, in nats."
        assert chart.rows[1] == ("50", "1.5000", "0.1000")


class TestHeatMap:
    def test_nothing_to_draw_gives_no_map(self) -> None:
        assert heat_map("key", "Clip", [], is_log=True) is None

    def test_lowest_and_highest_get_the_outer_tones(self) -> None:
        series = [("a", [Point(step=8, value=0.01)]), ("b", [Point(step=8, value=1.0)])]
        chart = heat_map("key", "Clip", series, is_log=True)
        assert chart is not None
        assert [row.cells[0].tone for row in chart.rows] == [0, HEAT_CLASSES - 1]

    def test_a_logarithmic_scale_puts_the_geometric_mean_in_the_middle(self) -> None:
        series = [
            (name, [Point(step=8, value=v)])
            for name, v in zip("abc", (0.01, 0.1, 1.0), strict=True)
        ]
        chart = heat_map("key", "Clip", series, is_log=True)
        assert chart is not None
        assert chart.rows[1].cells[0].tone == HEAT_CLASSES // 2

    def test_equal_values_get_the_middle_tone(self) -> None:
        chart = heat_map("key", "Clip", [("a", [Point(step=8, value=1.0)])], is_log=False)
        assert chart is not None
        assert chart.rows[0].cells[0].tone == HEAT_CLASSES // 2

    def test_a_missing_window_leaves_a_gap_at_its_place(self) -> None:
        series = [
            ("a", [Point(step=8, value=1.0), Point(step=16, value=2.0)]),
            ("b", [Point(step=16, value=1.5)]),
        ]
        chart = heat_map("key", "Clip", series, is_log=False)
        assert chart is not None
        assert chart.rows[1].cells[0].x == chart.rows[0].cells[1].x


HISTORY = History(restarts=(Tick(at=30, label="attempt 2"),), lost=(Lost(first=30, last=40),))


class TestHistory:
    def test_restarts_and_lost_steps_are_drawn_and_said(self) -> None:
        points = [Point(step=0, value=2.0), Point(step=100, value=1.0)]
        chart = line_chart("key", "Loss", points, 100, "nats", history=HISTORY)
        assert chart is not None
        per_step = (WIDTH - LEFT - RIGHT) / 100
        assert chart.marks[0].at == pytest.approx(LEFT + 30 * per_step, abs=0.01)
        assert chart.shades[0].x == pytest.approx(LEFT + 30 * per_step, abs=0.01)
        assert chart.shades[0].width == pytest.approx(10 * per_step, abs=0.02)
        assert "Attempt 2 begins at step 30" in chart.summary
        assert "steps 30 to 40 were lost and stay charged" in chart.summary

    def test_a_map_marks_the_column_after_which_an_attempt_began(self) -> None:
        points = [Point(step=step, value=1.0) for step in (10, 20, 30, 40)]
        chart = heat_map("key", "Clip", [("a", points)], is_log=False, history=HISTORY)
        assert chart is not None
        width = (WIDTH - HEAT_LEFT - 4) / 4
        assert chart.marks[0].at == pytest.approx(HEAT_LEFT + 3 * width, abs=0.01)

    def test_a_cap_is_inside_and_named(self) -> None:
        points = [Point(step=0, value=0.0), Point(step=100, value=1.0)]
        chart = line_chart("key", "ε", points, 100, "", cap=(3.0, "promised"))
        assert chart is not None and chart.cap is not None
        assert TOP < chart.cap.at < chart.dots[1].y
        assert chart.cap.label == "promised"

    def test_a_stepped_series_keeps_its_value_through_the_window(self) -> None:
        points = [Point(step=50, value=1.0), Point(step=100, value=2.0)]
        chart = line_chart("key", "σ", points, 100, "", is_stepped=True)
        assert chart is not None
        corners = re.findall(r"([\d.]+),([\d.]+)", chart.line)
        assert [float(x) for x, _ in corners] == [LEFT, 214.0, 214.0, WIDTH - RIGHT]
        assert corners[0][1] == corners[1][1] != corners[2][1] == corners[3][1]
