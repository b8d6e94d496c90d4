"""Accounting against the project's vectors and an independent library (VECTORS, FILTER)."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mpf

from dp_core import accounting
from dp_core.errors import BudgetExhausted, CalibrationImpossible, PlanInvalid
from dp_core.events import PoissonGaussian
from dp_core.mechanism import choose_level, effective_noise_multiplier, level_position
from dp_core.ports import GroupActions, JournalPosition
from dp_core.training import PrivateTraining
from tests.dp_core.conftest import make_plan


@pytest.fixture(scope="module")
def vectors(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "vectors" / "accounting.json").read_text())  # type: ignore[no-any-return]


def events_of(case: dict[str, Any]) -> list[PoissonGaussian]:
    return [PoissonGaussian(**event) for event in case["events"]]


class TestVectors:
    def test_rdp_per_step_matches_string_and_units(self, vectors: dict[str, Any]) -> None:
        for case in vectors["rdp_per_step"]:
            key = (case["q"], case["noise_multiplier"], case["alpha"])
            rho = accounting.rdp_per_step(*key)
            assert abs(rho / mpf(case["rho"]) - 1) < 1e-15
            assert accounting.step_pico(*key) == int(case["units"])

    def test_without_sampling_the_price_is_the_exact_rational(self) -> None:
        assert accounting.step_pico("1", "0.8", 4) == 3_125_000_000_000
        assert accounting.step_pico("1.0", "3", 4) == 222_222_222_223

    def test_budget_is_exact_and_unusable_orders_are_refused(self, vectors: dict[str, Any]) -> None:
        for case in vectors["rdp_budget"]:
            key = (case["epsilon"], case["delta"], case["alpha"])
            assert abs(accounting.rdp_budget(*key) / mpf(case["budget"]) - 1) < 1e-15
            if case["usable"]:
                assert accounting.limit_pico(*key) == int(case["units"])
            else:
                with pytest.raises(CalibrationImpossible, match="higher order"):
                    accounting.limit_pico(*key)

    def test_filter_takes_the_last_affordable_step_and_refuses_the_next(
        self, vectors: dict[str, Any]
    ) -> None:
        for case in vectors["integer_filter"]:
            alpha = case["alpha"]
            limit = accounting.limit_pico(case["epsilon"], case["delta"], alpha)
            assert limit == int(case["budget_units"])
            rdp_filter = accounting.RdpFilter(limit_pico=limit, alpha=alpha)
            level = {"q": case["q"], "noise_multiplier": case["noise_multiplier"]}
            rdp_filter.charge(PoissonGaussian(**level, steps=case["steps_allowed"]))
            before = rdp_filter.spent_pico
            with pytest.raises(BudgetExhausted, match="fewer steps"):
                rdp_filter.charge(PoissonGaussian(**level, steps=1))
            assert rdp_filter.spent_pico == before

    @pytest.mark.parametrize("section", ["constant_noise", "schedules"])
    def test_rdp_epsilon_of_the_events_we_hand_out(
        self, vectors: dict[str, Any], section: str
    ) -> None:
        for case in vectors[section]:
            library = RdpAccountant()  # its own orders, fractional ones too
            for event in events_of(case):
                library.compose(accounting.to_dp_event(event))
            epsilon, order = library.get_epsilon_and_optimal_order(float(case["delta"]))
            expect = case["expect"]
            assert epsilon == pytest.approx(expect["rdp_epsilon"], rel=1e-6), case["id"]
            assert order == expect["rdp_order"], case["id"]

    def test_rdp_epsilon_of_the_effective_multiplier(self, vectors: dict[str, Any]) -> None:
        for case in vectors["effective_noise_multiplier"]:
            sigma = effective_noise_multiplier(case["sensitivity"], case["noise_std"])
            library = RdpAccountant()
            event = PoissonGaussian(q=case["q"], noise_multiplier=repr(sigma), steps=case["steps"])
            library.compose(accounting.to_dp_event(event))
            epsilon = library.get_epsilon(float(case["delta"]))
            assert epsilon == pytest.approx(case["rdp_epsilon"], rel=1e-6)

    def test_every_section_of_the_vectors_is_known(self, vectors: dict[str, Any]) -> None:
        tested_here = {
            "constant_noise", "schedules", "rdp_per_step", "rdp_budget", "integer_filter",
            "effective_noise_multiplier",
        }  # fmt: skip
        elsewhere = {"planner_fixed", "planner_adaptive", "one_run_audit"}
        about = {
            "schema", "relation", "sampling", "unit_of_account", "formulas", "tolerances", "note",
        }  # fmt: skip
        assert set(vectors) == tested_here | elsewhere | about

    @pytest.mark.parametrize("section", ["constant_noise", "schedules"])
    def test_pld_epsilon(self, vectors: dict[str, Any], section: str) -> None:
        for case in vectors[section]:
            epsilon = Decimal(accounting.pld_epsilon(events_of(case), case["delta"]))
            expected = Decimal(str(case["expect"]["pld_epsilon"]))
            assert abs(epsilon - expected) <= Decimal("1e-3"), case["id"]
            assert epsilon >= expected - Decimal("1e-6"), "rounded up, never below"


class TestAgainstDpAccounting:
    @pytest.mark.parametrize("alpha", [2, 3, 8, 32, 64])
    @pytest.mark.parametrize(("q", "sigma"), [("0.01", "1.0"), ("0.2", "2.5"), ("1", "4")])
    def test_rdp_agrees_at_integer_orders(self, alpha: int, q: str, sigma: str) -> None:
        oracle = RdpAccountant([float(alpha)])
        event = PoissonGaussian(q=q, noise_multiplier=sigma, steps=1)
        oracle.compose(accounting.to_dp_event(event))
        ours = float(accounting.rdp_per_step(q, sigma, alpha))
        assert ours == pytest.approx(float(oracle._rdp[0]), rel=1e-10)

    def test_epsilon_so_far_is_an_upper_bound_of_the_library_optimum(self) -> None:
        event = PoissonGaussian(q="0.02", noise_multiplier="1.1", steps=300)
        oracle = RdpAccountant(list(range(2, 65)))
        oracle.compose(accounting.to_dp_event(event))
        best = oracle.get_epsilon(1e-5)
        assert best <= float(accounting.epsilon_so_far([event], "1e-5")) <= best + 2e-4

    def test_nothing_charged_is_zero(self) -> None:
        assert accounting.epsilon_so_far([], "1e-5") == "0"

    def test_pld_is_never_above_rdp(self) -> None:
        event = PoissonGaussian(q="0.05", noise_multiplier="0.9", steps=50)
        assert Decimal(accounting.pld_epsilon([event], "1e-6")) <= Decimal(
            accounting.epsilon_so_far([event], "1e-6")
        )


LEVELS = st.tuples(st.sampled_from(["0.7", "1.0", "1.6", "4"]), st.integers(1, 400))


class TestFilterProperties:
    @settings(max_examples=30, deadline=None)
    @given(choices=st.lists(LEVELS, max_size=20), order=st.randoms(use_true_random=False))
    def test_answers_depend_on_charges_only(
        self, choices: list[tuple[str, int]], order: Random
    ) -> None:
        """Whatever was refused in between, and in whatever order the same was booked."""
        limit = accounting.limit_pico("3", "1e-6", 8)
        first = accounting.RdpFilter(limit_pico=limit, alpha=8)
        events = [PoissonGaussian(q="0.05", noise_multiplier=s, steps=n) for s, n in choices]
        booked = [event for event in events if first.fits(event) and first.charge(event)]
        order.shuffle(booked)
        second = accounting.RdpFilter(limit_pico=limit, alpha=8)
        for event in booked:
            second.charge(event)
        assert second.spent_pico == first.spent_pico
        resumed = accounting.RdpFilter(limit_pico=limit, alpha=8, spent_pico=first.spent_pico)
        assert [resumed.fits(e) for e in events] == [first.fits(e) for e in events]

    @settings(max_examples=60, deadline=None)
    @given(
        choices=st.lists(
            st.tuples(st.sampled_from(["0.7", "1.0", "1.6", "4"]), st.integers(1, 400)),
            max_size=30,
        )
    )
    def test_no_adaptive_history_passes_the_budget(self, choices: list[tuple[str, int]]) -> None:
        limit = accounting.limit_pico("3", "1e-6", 8)
        rdp_filter = accounting.RdpFilter(limit_pico=limit, alpha=8)
        total = 0
        for level, steps in choices:
            event = PoissonGaussian(q="0.05", noise_multiplier=level, steps=steps)
            if rdp_filter.fits(event):
                total += rdp_filter.charge(event)
            else:
                with pytest.raises(BudgetExhausted):
                    rdp_filter.charge(event)
        assert total == rdp_filter.spent_pico <= limit


class TestSubstitution:
    """A8, in its order: the level asked for, the next cheaper ones, fewer steps, the end."""

    plan = make_plan(mode="adaptive_sigma", steps_max=40, patients_public=1000)

    def price(self, index: int) -> int:
        assert self.plan.alpha_job is not None
        level = self.plan.noise_levels[index]
        return accounting.step_pico(self.plan.sampling_probability, level, self.plan.alpha_job)

    def opened(self, *, wanted: int, free: int) -> tuple[str, int]:
        training = SimpleNamespace(plan=self.plan)
        position = JournalPosition(
            attempt=1,
            next_chunk=0,
            next_query=0,
            steps_started=0,
            job_units=self.plan.job_limit - free,
        )
        action = replace(GroupActions.neutral(1), level=level_position(self.plan, wanted))
        chosen, steps = PrivateTraining._affordable(training, action, 10, position)  # type: ignore[arg-type]
        return choose_level(self.plan, chosen.level), steps

    def test_the_level_asked_for_while_it_fits_to_the_last_pico(self) -> None:
        for index, level in enumerate(self.plan.noise_levels):
            assert self.opened(wanted=index, free=10 * self.price(index)) == (level, 10)

    def test_one_pico_short_takes_the_next_cheaper_level_never_a_dearer_one(self) -> None:
        for index in range(4):
            free = 10 * self.price(index) - 1
            assert self.opened(wanted=index, free=free) == (self.plan.noise_levels[index + 1], 10)

    def test_when_the_cheapest_does_not_fit_the_window_shrinks(self) -> None:
        free = 10 * self.price(4) - 1
        assert self.opened(wanted=0, free=free) == (self.plan.noise_levels[4], 9)
        assert self.opened(wanted=4, free=self.price(4)) == (self.plan.noise_levels[4], 1)

    def test_below_one_step_the_budget_is_exhausted(self) -> None:
        with pytest.raises(BudgetExhausted, match="no further step"):
            self.opened(wanted=2, free=self.price(4) - 1)


class TestBadInput:
    @pytest.mark.parametrize(
        ("q", "sigma"), [("0", "1"), ("1.5", "1"), ("0.1", "0"), ("0.1", "nan"), ("x", "1")]
    )
    def test_values_outside_the_mechanism_are_refused(self, q: str, sigma: str) -> None:
        with pytest.raises(PlanInvalid):
            accounting.step_pico(q, sigma, 4)

    def test_epsilon_and_delta_swapped_is_refused(self) -> None:
        with pytest.raises(PlanInvalid, match="delta"):
            accounting.limit_pico("1e-6", "8", 4)

    @pytest.mark.parametrize("epsilon", ["-3", "0"])
    def test_an_epsilon_not_above_zero_is_refused(self, epsilon: str) -> None:
        with pytest.raises(PlanInvalid, match="epsilon"):
            accounting.limit_pico(epsilon, "1e-6", 4)

    def test_unknown_event_kind_is_refused(self) -> None:
        document = PoissonGaussian(q="0.1", noise_multiplier="1", steps=2).to_dict()
        assert PoissonGaussian.from_dict(document).steps == 2
        with pytest.raises(PlanInvalid, match="unknown kind"):
            PoissonGaussian.from_dict(document | {"kind": "laplace"})
