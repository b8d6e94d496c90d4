"""Noise by a schedule fixed beforehand: what it says, costs and charges (A5, A6, C1)."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import Any

import pytest

from dp_core.accounting import pld_epsilon, step_pico
from dp_core.calibration import GRID, calibrate_fixed, calibrate_schedule
from dp_core.errors import PlanInvalid, PlanViolation
from dp_core.events import PoissonGaussian
from dp_core.mechanism import GroupLayout, admit
from dp_core.noise_schedule import NoiseSchedule, NoiseSegment, NoiseShape, scaled
from dp_core.plan import RunPlan
from dp_core.plan_report import report_plan
from dp_core.ports import GroupActions
from dp_core.records import Blocks
from dp_core.second_opinion import prv_epsilon_upper
from tests.dp_core.conftest import make_plan
from tests.dp_core.training_cases import Recorded
from tests.fakes import Greedy, MemoryJournal, MemoryStore

SHAPE = NoiseShape(factors=("1", "0.8", "0.6"))
ASKED: dict[str, Any] = {"epsilon": "2", "delta": "1e-5", "q": "0.2"}


def schedule_of(*parts: tuple[str, int]) -> NoiseSchedule:
    return NoiseSchedule(
        segments=tuple(NoiseSegment(noise_multiplier=level, steps=n) for level, n in parts)
    )


def scheduled_plan(**changes: Any) -> RunPlan:
    """Six steps in three windows and two windows of margin, each window less noise."""
    return make_plan(**({"noise_shape": SHAPE, "target_epsilon": "1"} | changes))


class TestSchedule:
    FALLING = schedule_of(("1.2", 4), ("0.9", 3), ("1.2", 5))

    def test_a_step_has_the_level_of_its_segment_and_knows_how_long_it_lasts(self) -> None:
        assert [self.FALLING.at(i) for i in (0, 3, 4, 6, 7, 11)] == [
            ("1.2", 4),
            ("1.2", 1),
            ("0.9", 3),
            ("0.9", 1),
            ("1.2", 5),
            ("1.2", 1),
        ]
        for outside in (-1, 12):
            with pytest.raises(PlanInvalid, match="outside the schedule"):
                self.FALLING.at(outside)

    def test_its_events_count_equal_levels_together(self) -> None:
        events = [(e.noise_multiplier, e.steps) for e in self.FALLING.events("0.1")]
        assert events == [("0.9", 3), ("1.2", 9)]
        assert self.FALLING.prefix(6) == (("1.2", 4), ("0.9", 2))
        assert NoiseSchedule.from_list(self.FALLING.to_list()) == self.FALLING

    @pytest.mark.parametrize(
        "parts",
        [
            (),
            (("1.0", 2), ("1.0", 3)),
            (("1.0", 2), ("0.9", 3), ("1.00", 1)),
            (("1.0", 0),),
            (("0", 2),),
            (("-1", 2), ("1", 2)),
            tuple((str(9 - i), 1) for i in range(9)),
            tuple((str(1 + i % 2), 1) for i in range(33)),
        ],
    )
    def test_what_is_no_schedule_is_refused(self, parts: tuple[tuple[str, int], ...]) -> None:
        with pytest.raises(PlanInvalid, match="noise_schedule"):
            schedule_of(*parts)


class TestShape:
    def test_its_borders_are_borders_of_windows_and_the_margin_is_cheapest(self) -> None:
        parts = SHAPE.over(steps_planned=58, steps_started_max=80, steps_per_chunk=10)
        assert parts == (("1", 20), ("0.8", 20), ("0.6", 20), ("1", 20))
        short = SHAPE.over(steps_planned=58, steps_started_max=58, steps_per_chunk=10)
        assert short == (("1", 20), ("0.8", 20), ("0.6", 18))
        rising = NoiseShape(factors=("0.6", "1"))
        parts = rising.over(steps_planned=20, steps_started_max=30, steps_per_chunk=10)
        assert parts == (("0.6", 10), ("1", 20))

    def test_more_factors_than_windows_leave_some_out(self) -> None:
        parts = SHAPE.over(steps_planned=20, steps_started_max=20, steps_per_chunk=10)
        assert parts == (("1", 10), ("0.8", 10))

    def test_decay_runs_from_one_to_its_end(self) -> None:
        geometric = NoiseShape.decaying(final_fraction="0.25", levels=3)
        assert geometric.factors == ("1.0000", "0.5000", "0.2500")
        linear = NoiseShape.decaying(final_fraction="0.25", levels=4, curve="linear")
        assert linear.factors == ("1.0000", "0.7500", "0.5000", "0.2500")

    @pytest.mark.parametrize(
        "changes", [{"final_fraction": "0"}, {"final_fraction": "1.1"}, {"levels": 9}]
    )
    def test_values_out_of_range_are_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(PlanInvalid, match="noise_shape"):
            NoiseShape.decaying(**({"final_fraction": "0.5"} | changes))

    def test_levels_are_rounded_up_to_the_grid_and_equal_ones_joined(self) -> None:
        parts = (("1", 3), ("0.9999", 4), ("0.333", 5))
        assert scaled(parts, Decimal("1.000")).to_list() == [
            {"level": "1.000", "steps": 7},
            {"level": "0.333", "steps": 5},
        ]


class TestCalibration:
    PARTS = (("1", 8), ("0.7", 12))

    def test_it_is_the_lowest_course_within_epsilon(self) -> None:
        found, certified = calibrate_schedule(**ASKED, parts=self.PARTS)
        height = Decimal(found.at(0)[0])
        below = scaled(self.PARTS, height - GRID)
        assert found == scaled(self.PARTS, height)
        assert pld_epsilon(found.events("0.2"), "1e-5") == certified
        assert Decimal(certified) <= 2 < Decimal(pld_epsilon(below.events("0.2"), "1e-5"))

    def test_it_lies_on_both_sides_of_the_constant_noise(self) -> None:
        found, _ = calibrate_schedule(**ASKED, parts=self.PARTS)
        constant, _ = calibrate_fixed(**ASKED, steps=20)
        assert Decimal(found.levels[0]) < Decimal(constant) < Decimal(found.levels[1])

    def test_an_independent_accountant_agrees_on_the_composition(self) -> None:
        """Opacus' PRV composes the same two levels; its upper bound stands just above."""
        found, certified = calibrate_schedule(**ASKED, parts=self.PARTS)
        upper = float(prv_epsilon_upper(found.events("0.2"), "1e-5"))
        assert float(certified) <= upper <= float(certified) + 0.03

    def test_a_flat_shape_is_the_constant_plan_byte_for_byte(self) -> None:
        flat = scheduled_plan(noise_shape=NoiseShape(factors=("1", "1")))
        assert flat == make_plan(target_epsilon="1") and flat.noise_schedule is None


class TestPlan:
    def test_it_covers_every_step_that_may_be_started(self) -> None:
        plan = scheduled_plan()
        assert plan.noise_schedule is not None
        assert [s.steps for s in plan.noise_schedule.segments] == [2, 2, 2, 4]
        assert plan.noise_levels == plan.noise_schedule.levels
        certified = pld_epsilon(plan.training_events(), plan.delta)
        assert plan.epsilon_certified == certified and Decimal("0.98") < Decimal(certified) <= 1

    def test_it_survives_its_document_and_changes_no_plan_without_one(self) -> None:
        plan = scheduled_plan()
        assert RunPlan.from_dict(plan.to_dict()) == plan
        assert RunPlan.from_dict(plan.to_dict()).digest() == plan.digest()
        assert "noise_schedule" not in make_plan().to_dict()

    @pytest.mark.parametrize(
        ("parts", "levels"),
        [
            ((("1.0", 5), ("0.9", 4)), ("0.9", "1.0")),  # a step short
            ((("1.0", 5), ("0.9", 6)), ("0.9", "1.0")),  # a step more
            ((("1.0", 5), ("0.9", 5)), ("0.9", "1.1")),
            ((("1.0", 5), ("0.9", 5)), ("1.0",)),
            ((("1.0", 10),), ("1.0",)),
        ],
    )
    def test_a_schedule_that_is_not_the_plans_is_refused(
        self, parts: tuple[tuple[str, int], ...], levels: tuple[str, ...]
    ) -> None:
        plan = make_plan()
        assert plan.steps_started_max == 10
        with pytest.raises(PlanInvalid, match=r"noise_schedule|noise_levels"):
            dataclasses.replace(plan, noise_levels=levels, noise_schedule=schedule_of(*parts))

    def test_adaptive_mode_takes_none(self) -> None:
        with pytest.raises(PlanInvalid, match="adaptive_sigma"):
            scheduled_plan(mode="adaptive_sigma")
        menu = make_plan(mode="adaptive_sigma")
        with pytest.raises(PlanInvalid, match="adaptive_sigma"):
            dataclasses.replace(menu, noise_schedule=schedule_of(("1.0", 5), ("0.9", 5)))

    def test_the_report_prices_each_level_and_the_signal_of_the_whole(self) -> None:
        plan = scheduled_plan()
        report = report_plan(plan, population_alpha=4)
        assert plan.noise_schedule is not None
        price = {x: step_pico(plan.sampling_probability, x, 4) for x in plan.noise_levels}
        parts = plan.noise_schedule.to_list()
        assert report.population_pico == str(sum(p["steps"] * price[p["level"]] for p in parts))
        assert [x.noise_multiplier for x in report.levels] == list(plan.noise_levels)
        total = sum(2 / float(part["level"]) ** 2 for part in parts[:3])  # without the margin
        assert float(report.signal_to_noise) == pytest.approx(10 * total**0.5, rel=1e-3)

    def test_the_action_map_takes_the_schedules_level_whatever_the_action_says(self) -> None:
        plan, layout = scheduled_plan(), GroupLayout(ids=("a", "b"), sizes=(30, 40))
        assert plan.noise_schedule is not None
        for step, wanted in ((0, -1.0), (3, 1.0), (9, float("nan"))):
            action = dataclasses.replace(GroupActions.neutral(2), level=wanted)
            settings = admit(plan, layout, (0.1, 0.1), action, first_step=step)
            assert settings.noise_multiplier == plan.noise_schedule.at(step)[0]
        with pytest.raises(PlanViolation, match="first step"):
            admit(plan, layout, (0.1, 0.1), GroupActions.neutral(2))
        with pytest.raises(PlanInvalid, match="outside the schedule"):
            admit(plan, layout, (0.1, 0.1), GroupActions.neutral(2), first_step=10)


def levels_charged(journal: MemoryJournal) -> list[tuple[int, int, str]]:
    return [(c.first_step, c.steps, c.noise_multiplier) for c in journal.charges]


class TestRun:
    def test_each_window_is_charged_and_noised_at_the_level_of_its_place(
        self, blocks: Blocks
    ) -> None:
        run = Recorded(blocks, plan=scheduled_plan(), policy=Greedy())
        assert run.run().outcome == "completed"
        schedule = run.plan.worst_schedule
        expected = [(first, 2, schedule.at(first)[0]) for first in (0, 2, 4)]
        assert levels_charged(run.journal) == expected
        assert len({level for _, _, level in expected}) == 3
        seen = [w.telemetry.noise_multiplier for w in run.progress.windows]
        assert seen == [float(level) for _, _, level in expected]
        assert run.first_seen.noise_multiplier == float(schedule.at(0)[0])
        for charge in run.journal.charges:
            inverse = sum((float(c.sensitivity) / float(c.std)) ** 2 for c in charge.components)
            assert inverse**-0.5 == pytest.approx(float(charge.noise_multiplier), rel=1e-5)

    def test_a_window_ends_where_the_level_does(self, blocks: Blocks) -> None:
        plan = scheduled_plan()
        levels = plan.noise_levels[:2]
        schedule = schedule_of((levels[1], 3), (levels[0], 7))
        plan = dataclasses.replace(plan, noise_levels=levels, noise_schedule=schedule)
        run = Recorded(blocks, plan=plan)
        assert run.run().steps_finished == 6
        assert levels_charged(run.journal) == [
            (0, 2, levels[1]),
            (2, 1, levels[1]),
            (3, 2, levels[0]),
            (5, 1, levels[0]),
        ]

    def test_redone_steps_move_along_the_schedule(self, blocks: Blocks) -> None:
        """A lost window: its redo is a later started step and takes that step's level."""
        plan = scheduled_plan()
        journal, store = MemoryJournal(plan), MemoryStore()
        first = Recorded(blocks, plan=plan, journal=journal, store=store, stop_after=3)
        assert first.run().outcome == "cancelled"
        second = Recorded(blocks, plan=plan, journal=journal, store=store)
        assert second.run().steps_finished == 6
        started = plan.worst_schedule
        assert levels_charged(journal) == [(i, 2, started.at(i)[0]) for i in (0, 2, 4, 6)]
        assert journal.charges[2].noise_multiplier == started.at(5)[0]

    def test_another_level_of_the_schedule_is_refused_before_the_draw(self, blocks: Blocks) -> None:
        run = Recorded(blocks, plan=scheduled_plan())
        permit, settings = run.training._open(GroupActions.neutral(len(run.training.groups)))
        later = admit(
            run.plan,
            run.training.layout,
            run.training.references,
            GroupActions.neutral(len(run.training.groups)),
            first_step=4,
        )
        optimizer = run.training.optimizer
        with pytest.raises(PlanViolation, match="schedule"):
            optimizer.arm(permit, later)
        with pytest.raises(PlanViolation, match="schedule"):
            optimizer.arm(dataclasses.replace(permit, steps=3), settings)
        optimizer.arm(permit, settings)


def test_the_event_of_one_level_is_what_it_was_before_schedules() -> None:
    plan = make_plan()
    expected = PoissonGaussian(
        q=plan.sampling_probability,
        noise_multiplier=plan.noise_levels[0],
        steps=plan.steps_started_max,
    )
    assert plan.training_events() == (expected,)
