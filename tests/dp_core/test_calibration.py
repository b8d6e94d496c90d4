"""Noise levels of fixed schedules and menus, and proposed orders (PLANNER: C1, C2, C3)."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp_core import accounting
from dp_core.calibration import GRID, calibrate_adaptive, calibrate_fixed, propose_alpha
from dp_core.errors import CalibrationImpossible, PlanInvalid
from dp_core.events import PoissonGaussian


@pytest.fixture(scope="module")
def vectors(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "vectors" / "accounting.json").read_text())  # type: ignore[no-any-return]


class TestFixed:
    def test_vectors(self, vectors: dict[str, Any]) -> None:
        for case in vectors["planner_fixed"]:
            multiplier, epsilon = calibrate_fixed(
                epsilon=case["epsilon"],
                delta=case["delta"],
                q=case["q"],
                steps=case["steps_started_max"],
            )
            assert multiplier == case["noise_multiplier"]
            assert abs(float(epsilon) - case["pld_epsilon"]) < 1e-3

    @pytest.mark.parametrize(
        ("epsilon", "delta", "q", "steps"),
        [
            ("3", "1e-5", "0.3", 10),
            ("0.3", "1e-6", "0.05", 60),  # where coarse PLDs overstate
            ("2", "1e-5", "1", 4),
        ],
    )
    def test_it_is_the_smallest_of_the_grid(
        self, epsilon: str, delta: str, q: str, steps: int
    ) -> None:
        found, certified = calibrate_fixed(epsilon=epsilon, delta=delta, q=q, steps=steps)
        at = PoissonGaussian(q=q, noise_multiplier=found, steps=steps)
        below = PoissonGaussian(q=q, noise_multiplier=str(Decimal(found) - GRID), steps=steps)
        assert accounting.pld_epsilon([at], delta) == certified
        assert Decimal(certified) <= Decimal(epsilon)
        assert Decimal(accounting.pld_epsilon([below], delta)) > Decimal(epsilon)

    def test_less_epsilon_or_delta_and_more_steps_or_rate_take_more_noise(self) -> None:
        def sigma(**changes: Any) -> Decimal:
            asked = {"epsilon": "2", "delta": "1e-5", "q": "0.2", "steps": 20} | changes
            return Decimal(calibrate_fixed(**asked)[0])

        middle = sigma()
        assert sigma(epsilon="1") > middle
        assert sigma(delta="1e-7") > middle
        assert sigma(steps=60) > middle
        assert sigma(q="0.4") > middle

    def test_no_multiplier_on_the_grid_is_said_with_a_remedy(self) -> None:
        with pytest.raises(CalibrationImpossible, match="Raise epsilon"):
            calibrate_fixed(epsilon="0.01", delta="1e-6", q="1", steps=10_000)

    @pytest.mark.parametrize(
        "changes", [{"epsilon": "0"}, {"delta": "0"}, {"delta": "1"}, {"q": "0"}, {"q": "1.1"}]
    )
    def test_values_out_of_range_are_refused(self, changes: dict[str, str]) -> None:
        asked = {"epsilon": "1", "delta": "1e-5", "q": "0.1"} | changes
        with pytest.raises(PlanInvalid):
            calibrate_fixed(**asked, steps=5)


class TestAdaptive:
    def test_vectors(self, vectors: dict[str, Any]) -> None:
        for case in vectors["planner_adaptive"]:
            alpha, menu, steps = calibrate_adaptive(
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

    def test_steps_affordable_are_the_filters_last(self) -> None:
        alpha, menu, affordable = calibrate_adaptive(
            epsilon="4", delta="1e-5", q="0.05", steps_started_max=200
        )
        limit = accounting.limit_pico("4", "1e-5", alpha)
        assert affordable[1] >= 200 and affordable[0] * 8 >= 200
        for level, steps in zip(menu, affordable, strict=True):
            charged = accounting.RdpFilter(limit_pico=limit, alpha=alpha)
            charged.charge(PoissonGaussian(q="0.05", noise_multiplier=level, steps=steps))
            assert not charged.fits(PoissonGaussian(q="0.05", noise_multiplier=level, steps=1))

    def test_no_order_has_a_smaller_reference(self) -> None:
        _, menu, _ = calibrate_adaptive(epsilon="4", delta="1e-5", q="0.05", steps_started_max=200)
        below = str(Decimal(menu[1]) - GRID)
        for order in range(2, 65):
            try:
                limit = accounting.limit_pico("4", "1e-5", order)
            except CalibrationImpossible:
                continue
            affords = limit // accounting.step_pico("0.05", below, order)
            lowest = str((Decimal(below) * Decimal("0.9")).quantize(GRID, rounding="ROUND_CEILING"))
            admissible = 8 * (limit // accounting.step_pico("0.05", lowest, order)) >= 200
            assert affords < 200 or not admissible, order

    def test_monotone_in_epsilon_delta_rate_and_steps(self) -> None:
        def reference(**changes: Any) -> Decimal:
            asked = {"epsilon": "4", "delta": "1e-5", "q": "0.05", "steps_started_max": 200}
            return Decimal(calibrate_adaptive(**(asked | changes))[1][1])

        middle = reference()
        assert reference(epsilon="2") > middle > reference(epsilon="8")
        assert reference(delta="1e-7") > middle > reference(delta="1e-3")
        assert reference(steps_started_max=800) > middle > reference(steps_started_max=50)
        assert reference(q="0.1") > middle > reference(q="0.02")

    def test_without_any_usable_order_it_is_impossible(self) -> None:
        with pytest.raises(CalibrationImpossible, match="No order"):
            calibrate_adaptive(epsilon="0.1", delta="1e-6", q="0.05", steps_started_max=10)

    def test_a_menu_too_steep_to_choose_from_is_told_apart_and_its_advice_helps(self) -> None:
        asked: dict[str, Any] = {"epsilon": "8", "delta": "1e-5", "q": "0.01"}
        with pytest.raises(CalibrationImpossible, match=r"only 0\.522, and a tenth less"):
            calibrate_adaptive(**asked, steps_started_max=90)
        for advice in ({"q": "0.02"}, {"steps_started_max": 150}):
            assert calibrate_adaptive(**(asked | {"steps_started_max": 90} | advice))


class TestProposal:
    def test_examples_of_the_specification(self) -> None:
        assert propose_alpha("8", "1e-6") == 4
        assert 6 <= propose_alpha("3", "1e-6") <= 8

    @settings(max_examples=60, deadline=None)
    @given(epsilon=st.integers(5, 200), exponent=st.integers(3, 9))
    def test_it_errs_low(self, epsilon: int, exponent: int) -> None:
        """The order below leaves under 40 % of epsilon as budget, the proposed one does not."""
        text, delta = str(Decimal(epsilon) / 10), f"1e-{exponent}"
        share = Decimal("0.4") * Decimal(text) * accounting.PICO
        try:
            alpha = propose_alpha(text, delta)
        except CalibrationImpossible:
            assert accounting.rdp_budget(text, delta, 64) * accounting.PICO < float(share)
            return
        assert accounting.limit_pico(text, delta, alpha) >= share
        if alpha > 2:
            assert accounting.rdp_budget(text, delta, alpha - 1) * accounting.PICO < float(share)

    def test_a_higher_order_makes_steps_of_little_noise_explode(self) -> None:
        def steps(alpha: int) -> int:
            limit = accounting.limit_pico("8", "1e-6", alpha)
            return limit // accounting.step_pico("0.01", "0.6", alpha)

        proposed = propose_alpha("8", "1e-6")
        assert steps(2 * proposed) < steps(proposed) / 4
