"""Accounting against the project's vectors and an independent library (VECTORS, FILTER)."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mpf

from dp_core import accounting, planner
from dp_core.errors import BudgetExhausted, CalibrationImpossible, PlanInvalid
from dp_core.events import PoissonGaussian


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
    def test_pld_epsilon(self, vectors: dict[str, Any], section: str) -> None:
        for case in vectors[section]:
            epsilon = Decimal(accounting.pld_epsilon(events_of(case), case["delta"]))
            expected = Decimal(str(case["expect"]["pld_epsilon"]))
            assert abs(epsilon - expected) <= Decimal("1e-3"), case["id"]
            assert epsilon >= expected - Decimal("1e-6"), "rounded up, never below"

    def test_planner_fixed(self, vectors: dict[str, Any]) -> None:
        for case in vectors["planner_fixed"]:
            multiplier, epsilon = planner.calibrate_fixed(
                epsilon=case["epsilon"],
                delta=case["delta"],
                q=case["q"],
                steps=case["steps_started_max"],
            )
            assert multiplier == case["noise_multiplier"]
            assert abs(float(epsilon) - case["pld_epsilon"]) < 1e-3

    def test_planner_adaptive(self, vectors: dict[str, Any]) -> None:
        for case in vectors["planner_adaptive"]:
            alpha, menu, steps = planner.calibrate_adaptive(
                epsilon=case["epsilon"],
                delta=case["delta"],
                q=case["q"],
                steps_started_max=case["steps_started_max"],
            )
            assert (alpha, list(menu), list(steps)) == (
                case["alpha"],
                case["menu"],
                case["steps_affordable"],
            )


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


class TestFilterProperties:
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

    def test_unknown_event_kind_is_refused(self) -> None:
        document = PoissonGaussian(q="0.1", noise_multiplier="1", steps=2).to_dict()
        assert PoissonGaussian.from_dict(document).steps == 2
        with pytest.raises(PlanInvalid, match="unknown kind"):
            PoissonGaussian.from_dict(document | {"kind": "laplace"})


class TestPlannerMonotone:
    def test_more_epsilon_less_noise_more_steps_more_noise(self) -> None:
        def sigma(epsilon: str, steps: int, q: str = "0.05") -> Decimal:
            return Decimal(
                planner.calibrate_fixed(epsilon=epsilon, delta="1e-5", q=q, steps=steps)[0]
            )

        assert sigma("1", 50) > sigma("2", 50) > sigma("8", 50)
        assert sigma("2", 200) > sigma("2", 50)
        assert sigma("2", 50, "0.1") > sigma("2", 50)

    def test_the_grid_value_below_would_break_the_target(self) -> None:
        found, epsilon = planner.calibrate_fixed(epsilon="3", delta="1e-5", q="0.03", steps=100)
        assert Decimal(epsilon) <= 3
        below = PoissonGaussian(
            q="0.03", noise_multiplier=str(Decimal(found) - Decimal("0.001")), steps=100
        )
        assert Decimal(accounting.pld_epsilon([below], "1e-5")) > 3
        assert dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE  # the relation we certify
