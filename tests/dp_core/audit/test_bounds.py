"""Bounds: golden values, known traps, and silence on pure noise (NULL, M32, AU37-AU39)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp_core.audit import bounds
from dp_core.audit.bounds import Guesses
from dp_core.audit.errors import AuditInvalid

DELTA, ALPHA = 1e-5, 0.05
IDS = tuple(f"{i:04d}" for i in range(1000))
# Expected bounds on ideal Gaussian scores (AU39): epsilon: (mu, Steinke, f-DP, tolerance)
IDEAL = {
    1: (0.268, 0.23, 0.33, 0.15),
    2: (0.502, 0.63, 0.99, 0.06),
    4: (0.925, 1.41, 2.26, 0.06),
    8: (1.666, 2.84, 4.71, 0.06),
}


def both(guesses: Guesses) -> tuple[float, float]:
    return (
        bounds.steinke_bound(guesses, delta=DELTA, alpha=ALPHA),
        bounds.fdp_bound(guesses, delta=DELTA, alpha=ALPHA),
    )


def guess(scores: np.ndarray, coins: np.ndarray, k: int = 100) -> Guesses:
    return bounds.count_guesses(scores, coins, IDS[: len(scores)], k_plus=k, k_minus=k)


class TestGoldenValues:
    def test_one_run_bounds_of_the_vectors(self, shared: Path) -> None:
        """The specification allows 1e-4; the vectors print five decimals."""
        cases = json.loads((shared / "vectors" / "accounting.json").read_text())["one_run_audit"]
        assert len(cases) >= 2
        for case in cases:
            guesses = Guesses(canaries=case["m"], made=case["r"], correct=case["v"])
            delta, alpha = float(case["delta"]), float(case["alpha"])
            steinke = bounds.steinke_bound(guesses, delta=delta, alpha=alpha)
            fdp = bounds.fdp_bound(guesses, delta=delta, alpha=alpha)
            assert steinke == pytest.approx(case["eps_lb_steinke"], abs=2e-5)
            assert fdp == pytest.approx(case["eps_lb_fdp_gaussian"], abs=2e-5)

    @pytest.mark.parametrize(
        ("canaries", "steinke", "fdp"),
        [(100, 3.5, 8.2), (250, 4.4, 9.9), (1000, 5.8, 12.3), (5000, 7.3, 15.0)],
    )
    def test_ceilings_when_every_guess_is_right(
        self, canaries: int, steinke: float, fdp: float
    ) -> None:
        found = both(Guesses(canaries=canaries, made=canaries, correct=canaries))
        assert found == pytest.approx((steinke, fdp), abs=0.05)

    @pytest.mark.parametrize(("delta", "ceiling"), [(1e-5, 4.3), (1e-6, 4.9)])
    def test_ceiling_of_the_gate(self, delta: float, ceiling: float) -> None:
        best = Guesses(canaries=1000, made=1000, correct=1000)
        found = bounds.steinke_bound(best, delta=delta, alpha=1e-3)
        assert found == pytest.approx(ceiling, abs=0.05)

    @pytest.mark.parametrize(("epsilon", "mu"), [(e, row[0]) for e, row in IDEAL.items()])
    def test_gaussian_epsilon_of_the_table(self, epsilon: int, mu: float) -> None:
        assert bounds.gaussian_epsilon(mu, DELTA) == pytest.approx(epsilon, rel=2e-3)

    def test_clopper_pearson_ceiling_of_one_call_with_1e5_canaries(self) -> None:
        found = bounds.clopper_pearson_bound(
            hits=50_000,
            members=50_000,
            false_alarms=0,
            outsiders=50_000,
            delta=DELTA,
            alpha=ALPHA,
        )
        assert found == pytest.approx(9.5, abs=0.05)


class TestMonotony:
    @settings(max_examples=60, deadline=None)
    @given(made=st.integers(1, 200), share=st.floats(0, 1), extra=st.integers(0, 300))
    def test_more_right_guesses_never_lower_a_bound(
        self, made: int, share: float, extra: int
    ) -> None:
        correct = int(share * (made - 1))
        fewer, more = (
            both(Guesses(canaries=made + extra, made=made, correct=c))
            for c in (correct, correct + 1)
        )
        assert fewer[0] <= more[0] + 1e-5
        assert fewer[1] <= more[1] + 1e-5

    def test_p_value_rises_with_epsilon(self) -> None:
        guesses = Guesses(canaries=1000, made=200, correct=150)
        p_values = [bounds.steinke_p_value(e, guesses, 1e-6) for e in np.linspace(0, 5, 40)]
        assert p_values == sorted(p_values)


class TestTraps:
    """Audit mutants (M32) and the public bugs of audit.md 11."""

    def test_a_negative_mu_gives_no_epsilon(self) -> None:
        assert bounds.gaussian_epsilon(-1.0, DELTA) == 0.0
        assert bounds.gaussian_delta(0.5, -1.0) == 0.0

    @pytest.mark.parametrize("wrong", [40, 80, 100])
    def test_guesses_worse_than_chance_give_no_bound(self, wrong: int) -> None:
        """An absolute value anywhere would read them as a leak."""
        assert both(Guesses(canaries=1000, made=100, correct=100 - wrong)) == (
            (0.0, 0.0) if wrong >= 50 else pytest.approx((0, 0), abs=0.5)
        )

    def test_higher_scores_are_guessed_in_and_not_out(self) -> None:
        coins = np.arange(1000) % 2 == 0
        assert guess(np.where(coins, 1.0, -1.0), coins).correct == 200
        assert guess(np.where(coins, -1.0, 1.0), coins).correct == 0

    def test_ties_of_canaries_sorted_by_membership_are_guessed_at_chance(self) -> None:
        """200 fair guesses: within 5 sigma of 100, false alarm 6e-7 (one fixed draw)."""
        for coins in (np.arange(1000) < 500, np.arange(1000) >= 500):
            correct = guess(np.zeros(1000), coins).correct
            assert abs(correct - 100) < 5 * math.sqrt(200 / 4)

    def test_the_order_of_canaries_does_not_matter(self) -> None:
        generator = np.random.default_rng(1)
        scores, coins = generator.integers(0, 4, 1000).astype(float), generator.random(1000) < 0.5
        order = generator.permutation(1000)
        moved = bounds.count_guesses(
            scores[order], coins[order], [IDS[i] for i in order], k_plus=100, k_minus=100
        )
        assert moved == guess(scores, coins)

    def test_a_scan_over_thresholds_would_raise_false_alarms(self) -> None:
        """Why k is fixed: the null simulation below can tell a scan from the rule."""
        generator = np.random.default_rng(2)
        scanned = 0
        for _ in range(100):
            scores, coins = generator.standard_normal(1000), generator.random(1000) < 0.5
            found = [guess(scores, coins, k) for k in range(25, 500, 25)]
            scanned += any(bounds.steinke_p_value(0.0, g, DELTA) <= ALPHA for g in found)
        assert scanned > 15  # of 100; nominal: 5

    @pytest.mark.parametrize("scores", [np.full(1000, np.nan), np.zeros(999)])
    def test_unusable_scores_are_refused(self, scores: np.ndarray) -> None:
        with pytest.raises(AuditInvalid, match="finite"):
            bounds.count_guesses(scores, np.zeros(1000, bool), IDS, k_plus=9, k_minus=9)

    def test_impossible_guesses_are_refused(self) -> None:
        with pytest.raises(AuditInvalid):
            Guesses(canaries=10, made=5, correct=6)
        with pytest.raises(AuditInvalid, match="guess_rule"):
            guess(np.zeros(10), np.zeros(10, bool), k=6)


def share_of_positive_bounds(runs: int, seed: int) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    positive = np.zeros(2)
    for _ in range(runs):
        scores, coins = generator.standard_normal(1000), generator.random(1000) < 0.5
        positive += np.array(both(guess(scores, coins))) > 0
    return float(positive[0] / runs), float(positive[1] / runs)


class TestNull:
    """False alarms on pure noise (AU38): at most 5 % and three standard errors."""

    def test_pure_noise_gives_a_positive_bound_in_at_most_5_percent(self) -> None:
        runs = 400
        limit = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
        assert max(share_of_positive_bounds(runs, seed=7)) <= limit

    @pytest.mark.slow
    def test_pure_noise_in_2000_runs(self) -> None:
        runs = 2000
        limit = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / runs)
        assert max(share_of_positive_bounds(runs, seed=8)) <= limit


class TestIdealScores:
    @pytest.mark.parametrize("epsilon", IDEAL)
    def test_mean_bound_over_200_runs(self, epsilon: int) -> None:
        """AU39. Mean of 200 fixed runs; its standard error is below 2 % (7 % at epsilon 1)."""
        mu, steinke, fdp, tolerance = IDEAL[epsilon]
        generator = np.random.default_rng(epsilon)
        found = []
        for _ in range(200):
            coins = generator.random(1000) < 0.5
            found.append(both(guess(generator.standard_normal(1000) + mu * coins, coins)))
        assert np.mean(found, axis=0) == pytest.approx((steinke, fdp), rel=tolerance)


class TestClopperPearson:
    def test_covers_the_extremes(self) -> None:
        assert bounds.clopper_pearson(0, 10, 0.05)[0] == 0.0
        assert bounds.clopper_pearson(10, 10, 0.05)[1] == 1.0
        low, high = bounds.clopper_pearson(5, 10, 0.05)
        assert (low, high) == pytest.approx((0.18709, 0.81291), abs=1e-5)  # textbook values

    def test_no_difference_gives_no_bound(self) -> None:
        found = bounds.clopper_pearson_bound(
            hits=50, members=100, false_alarms=50, outsiders=100, delta=0.0, alpha=0.05
        )
        assert found == 0.0

    def test_the_stronger_side_counts(self) -> None:
        """Missing members tells as much as finding them: the roles can be exchanged."""
        one = bounds.clopper_pearson_bound(
            hits=900, members=1000, false_alarms=1, outsiders=1000, delta=0.0, alpha=0.05
        )
        other = bounds.clopper_pearson_bound(
            hits=999, members=1000, false_alarms=100, outsiders=1000, delta=0.0, alpha=0.05
        )
        assert one == pytest.approx(other)

    def test_impossible_counts_are_refused(self) -> None:
        with pytest.raises(AuditInvalid):
            bounds.clopper_pearson(3, 2, 0.05)


class TestAuc:
    def test_counts_pairs_with_ties_one_half(self) -> None:
        found = bounds.auc(np.array([1.0, 2.0, 2.0]), np.array([0.0, 2.0]))
        assert found.value == pytest.approx((1 + 0 + 1 + 0.5 + 1 + 0.5) / 6)

    def test_is_no_hull(self) -> None:
        """A hull over the empirical curve is never below one half; the true AUC may be."""
        assert bounds.auc(np.zeros(5), np.ones(5)).value == 0.0

    def test_standard_error_at_chance_with_1000_canaries(self) -> None:
        generator = np.random.default_rng(3)
        found = bounds.auc(generator.standard_normal(500), generator.standard_normal(500))
        assert found.standard_error == pytest.approx(0.018, abs=5e-4)

    def test_interval_covers_the_truth(self) -> None:
        """500 runs at AUC .639: 95 % coverage, 4 standard errors (false alarm 6e-5)."""
        generator = np.random.default_rng(4)
        covered = 0
        for _ in range(500):
            found = bounds.auc(generator.normal(0.502, 1, 300), generator.standard_normal(300))
            covered += found.low <= 0.6387 <= found.high
        assert covered / 500 > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 500)


class TestTprAt:
    def test_stands_on_the_empirical_curve(self) -> None:
        outsiders = np.arange(1000.0)
        members = np.array([998.5, 990.5, 989.5, 500.0])
        assert bounds.tpr_at(0.001, members, outsiders).value == 0.25
        assert bounds.tpr_at(0.01, members, outsiders).value == 0.75
        assert bounds.tpr_at(0.009, members, outsiders).value == 0.5

    def test_no_false_positive_is_allowed_below_one_in_n(self) -> None:
        assert bounds.tpr_at(0.001, np.array([5.0, 4.0]), np.arange(6.0)).value == 0.0

    def test_everything_is_found_where_every_false_positive_is_allowed(self) -> None:
        found = bounds.tpr_at(1.0, np.array([-9.0, 4.0]), np.arange(6.0))
        assert (found.value, found.high) == (1.0, 1.0)


class TestExposure:
    def test_is_the_rank_among_the_reference_in_bits(self) -> None:
        reference = np.arange(512.0)
        found = bounds.exposure(np.array([600.0, 510.5, 255.5, -1.0]), reference)
        assert found == pytest.approx([9, 8, 9 - math.log2(257), 0])

    def test_ties_count_against_the_canary(self) -> None:
        assert bounds.exposure(np.zeros(1), np.zeros(512)) == pytest.approx([0.0])
