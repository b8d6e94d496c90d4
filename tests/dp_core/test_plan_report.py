"""What a plan report says, against the filter and the plan it is made from (C3, A12)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from dp_core.accounting import epsilon_of_pico, step_pico, total_pico
from dp_core.compute import DeviceSpeed
from dp_core.plan import RunPlan
from dp_core.plan_report import report_plan
from tests.dp_core.conftest import make_plan

SPEED = DeviceSpeed(patients_per_second=5, source="measured")


def adaptive(**changes: Any) -> RunPlan:
    fields = {"mode": "adaptive_sigma", "steps_max": 40, "patients_public": 1000} | changes
    return make_plan(**fields)


def fixed(**changes: Any) -> RunPlan:
    """Without hold-out and at a small epsilon, where PLDs are quick."""
    return make_plan(**({"target_epsilon": "1", "validation_fraction": "0"} | changes))


class TestLevels:
    def test_a_menu_shows_price_steps_and_share_of_each_level(self) -> None:
        plan = adaptive()
        assert plan.alpha_job is not None
        report = report_plan(plan, population_alpha=6)
        for level, text in zip(report.levels, plan.noise_levels, strict=True):
            price = step_pico(plan.sampling_probability, text, plan.alpha_job)
            assert level.job_step_price == str(price)
            assert level.steps_affordable == plan.job_limit // price
            share = plan.steps_per_chunk * price / plan.job_limit
            assert float(level.budget_share_per_chunk) == pytest.approx(share, abs=1e-4)
            at_population = step_pico(plan.sampling_probability, text, 6)
            assert level.population_step_pico == str(at_population)
        assert report.steps_affordable == report.levels[1].steps_affordable >= 40

    def test_a_fixed_schedule_affords_its_registered_steps(self) -> None:
        plan = fixed()
        (level,) = report_plan(plan, population_alpha=4).levels
        assert (level.job_step_price, level.steps_affordable) == ("1", plan.steps_started_max)
        share = plan.steps_per_chunk / plan.steps_started_max
        assert float(level.budget_share_per_chunk) == pytest.approx(share, abs=1e-4)


class TestPrice:
    def test_the_populations_charge_stands_beside_the_jobs_epsilon(self) -> None:
        plan = fixed()
        report = report_plan(plan, population_alpha=4)
        worst = total_pico(plan.training_events(), 4)
        assert report.epsilon_job == plan.epsilon_certified
        assert report.population_pico == str(worst)
        assert report.population_epsilon == str(epsilon_of_pico(worst, plan.delta, 4))
        assert float(report.population_epsilon) > float(report.epsilon_job)

    def test_a_menu_is_priced_at_its_dearest_level(self) -> None:
        plan = adaptive()
        price = step_pico(plan.sampling_probability, plan.noise_levels[0], 4)
        assert report_plan(plan, population_alpha=4).population_pico == str(
            price * plan.steps_started_max
        )


class TestWorth:
    def test_signal_passes_and_minutes_follow_their_formulas(self) -> None:
        plan = fixed(steps_max=16, batch_size=8, validation_fraction="0.2")
        report = report_plan(plan, population_alpha=4, speed=SPEED)
        signal = 4 * 8 / float(plan.noise_levels[0])
        assert float(report.signal_to_noise) == pytest.approx(signal, rel=1e-3)
        assert float(report.passes) == pytest.approx(16 * 8 / plan.patients_public, rel=1e-2)
        # 16 steps of 8 and, at half price, 9 evaluations of 16 on a device of 5 a second
        assert report.minutes == pytest.approx((16 * 8 + 9 * 16 / 2) / 5 / 60, abs=0.01)

    def test_half_the_compute_is_worse_and_twice_is_better(self) -> None:
        plan = adaptive(steps_max=100, batch_size=40)
        report = report_plan(plan, population_alpha=4, speed=SPEED)
        half, double = report.alternatives
        assert (half.compute_factor, double.compute_factor) == ("0.5", "2")
        assert float(half.excess_loss_ratio) > 1 > float(double.excess_loss_ratio)
        assert half.minutes is not None and report.minutes is not None
        assert half.minutes < report.minutes

    def test_without_a_speed_there_are_no_minutes(self) -> None:
        report = report_plan(fixed(), population_alpha=4)
        assert report.minutes is None and report.speed_source is None
        assert all(alternative.minutes is None for alternative in report.alternatives)

    def test_it_is_json(self) -> None:
        document = report_plan(adaptive(), population_alpha=4, speed=SPEED).to_dict()
        assert json.loads(json.dumps(document)) == document


class TestNotes:
    def test_small_rates_in_adaptive_mode_are_told_what_they_cost(self) -> None:
        small = replace(adaptive(), sampling_probability="0.0008")
        assert "1.6 to 10 times" in " ".join(report_plan(small, population_alpha=4).notes)
        assert "Use fixed_sigma" in " ".join(report_plan(small, population_alpha=4).notes)

    def test_small_rates_in_fixed_mode_name_the_populations_charge(self) -> None:
        small = replace(fixed(), sampling_probability="0.0008")
        assert "population's filter charges" in " ".join(
            report_plan(small, population_alpha=4).notes
        )

    def test_other_menus_are_told_the_price_of_free_choice(self) -> None:
        assert "13 to 32 %" in " ".join(report_plan(adaptive(), population_alpha=4).notes)

    @pytest.mark.parametrize(("steps", "is_outside"), [(99, True), (100, False)])
    def test_steps_outside_the_fitted_law_are_said(self, steps: int, is_outside: bool) -> None:
        notes = " ".join(report_plan(adaptive(steps_max=steps), population_alpha=4).notes)
        assert ("lies outside" in notes) is is_outside
