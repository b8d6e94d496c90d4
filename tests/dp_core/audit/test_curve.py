"""The ledger's trade-off curve and the ceilings taken from it (AU27, AU28)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp_core.accounting import limit_pico, pld_epsilon
from dp_core.audit import bounds
from dp_core.audit.bounds import Guesses
from dp_core.audit.curve import (
    TradeOffCurve,
    filter_curve,
    fixed_schedule_curve,
    gaussian_curve,
)
from dp_core.audit.errors import AuditInvalid
from dp_core.events import PoissonGaussian

EVENT = PoissonGaussian(q="0.05", noise_multiplier="1", steps=60)


@pytest.fixture(scope="module")
def ledger_curve() -> TradeOffCurve:
    return fixed_schedule_curve([EVENT])


@pytest.mark.parametrize(
    ("mu", "auc", "tpr_1", "tpr_01"),
    [
        (0.142, 0.540, 0.014, 0.0016),
        (0.268, 0.575, 0.020, 0.0024),
        (0.502, 0.639, 0.034, 0.0048),
        (0.925, 0.743, 0.081, 0.015),
        (1.666, 0.881, 0.255, 0.077),
    ],
)
def test_ceilings_of_the_gaussian_table(mu: float, auc: float, tpr_1: float, tpr_01: float) -> None:
    curve = gaussian_curve(mu)
    assert curve.max_auc() == pytest.approx(auc, abs=1.1e-3)
    assert curve.max_tpr(0.01) == pytest.approx(tpr_1, abs=6e-4)
    assert curve.max_tpr(0.001) == pytest.approx(tpr_01, abs=6e-4)


def test_a_curve_of_points_never_claims_more_than_the_exact_one() -> None:
    exact, points = bounds.gaussian_inverse(0.925), gaussian_curve(0.925)
    for y in np.linspace(0, 1, 301):
        assert points.inverse(float(y)) <= exact(float(y)) + 1e-12
        assert points.inverse(float(y)) == pytest.approx(exact(float(y)), abs=2e-5)


@settings(max_examples=100, deadline=None)
@given(x=st.floats(0, 1), step=st.floats(0, 1))
def test_a_curve_falls_from_one_to_zero(x: float, step: float) -> None:
    curve = gaussian_curve(1.0)
    assert curve(min(1.0, x + step)) <= curve(x) <= 1 - x + 1e-12
    assert curve(1.0) == 0.0


class TestFixedSchedule:
    def test_epsilon_is_the_certificates(self, ledger_curve: TradeOffCurve) -> None:
        """Rounded up to the next point of the curve, never down."""
        certified = float(pld_epsilon([EVENT], "1e-6"))
        assert certified - 1e-4 <= ledger_curve.epsilon_at(1e-6) <= certified + 0.03

    def test_a_subsampled_mechanism_leaks_more_than_the_gaussian_at_smaller_delta(
        self, ledger_curve: TradeOffCurve
    ) -> None:
        """Why the Gaussian family must not judge a job."""
        low, high = 0.01, 5.0
        for _ in range(50):
            mu = (low + high) / 2
            is_below = bounds.gaussian_epsilon(mu, 1e-5) < ledger_curve.epsilon_at(1e-5)
            low, high = (mu, high) if is_below else (low, mu)
        assert ledger_curve.epsilon_at(1e-9) > bounds.gaussian_epsilon(low, 1e-9) * 1.05

    def test_nothing_charged_means_that_nobody_can_tell(self) -> None:
        curve = fixed_schedule_curve([])
        assert curve.max_auc() == pytest.approx(0.5, abs=1e-3)
        assert curve.epsilon_at(1e-6) == 0.0

    def test_parts_of_a_schedule_compose(self) -> None:
        """Without sampling the closed form is at hand: mu = sqrt(2) / 10."""
        step = PoissonGaussian(q="1", noise_multiplier="10", steps=1)
        exact = bounds.gaussian_epsilon(2**0.5 / 10, 1e-6)
        assert exact <= fixed_schedule_curve([step, step]).epsilon_at(1e-6) <= exact + 0.01


class TestFilter:
    @pytest.mark.parametrize("epsilon", ["1", "8"])
    def test_epsilon_is_the_filters(self, epsilon: str) -> None:
        curve = filter_curve(limit_pico(epsilon, "1e-6", 16), 16)
        assert curve.epsilon_at(1e-6) == pytest.approx(float(epsilon), abs=0.03)
        assert curve.epsilon_at(1e-6) >= float(epsilon) - 1e-9

    def test_is_weaker_than_the_schedules_curve(self, ledger_curve: TradeOffCurve) -> None:
        epsilon = str(round(ledger_curve.epsilon_at(1e-6), 4))
        loose = filter_curve(limit_pico(epsilon, "1e-6", 8), 8)
        assert loose.max_auc() > ledger_curve.max_auc()


def test_perfect_guesses_refute_a_small_curve_and_not_a_large_one() -> None:
    perfect = Guesses(canaries=1000, made=200, correct=200)
    assert bounds.fdp_rejects(gaussian_curve(0.5).inverse, perfect, 1e-3)
    assert not bounds.fdp_rejects(gaussian_curve(6.0).inverse, perfect, 1e-3)


def test_no_point_within_delta_means_no_finite_claim() -> None:
    curve = TradeOffCurve(epsilons=np.array([0.0, 1.0]), deltas=np.array([0.5, 0.1]))
    assert curve.epsilon_at(1e-6) == math.inf


@pytest.mark.parametrize(
    ("epsilons", "deltas"), [([0.0, 0.0], [0.1, 0.1]), ([0.0], [1.5]), ([], []), ([-1.0], [0.0])]
)
def test_impossible_curves_are_refused(epsilons: list[float], deltas: list[float]) -> None:
    with pytest.raises(AuditInvalid, match="curve"):
        TradeOffCurve(epsilons=np.array(epsilons), deltas=np.array(deltas))
    with pytest.raises(AuditInvalid, match="mu"):
        gaussian_curve(0.0)
