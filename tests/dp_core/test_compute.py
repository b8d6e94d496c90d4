"""Device speed, utility law and the search over batch size and steps."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dp_core.calibration import calibrate_fixed
from dp_core.compute import (
    BATCH_MIN,
    STEPS_EXPONENT,
    STEPS_MAX,
    DeviceSpeed,
    Target,
    best_candidate,
    estimated_speed,
    signal_to_noise,
    utility_score,
)
from dp_core.errors import PlanInvalid
from dp_core.noise_estimate import noise_multiplier_estimate

TARGET = Target(epsilon="2", delta="1e-5", patients_public=10_000, steps_margin=50)
# controller.md section 5: (batch, steps, perplexity), 24.5 without privacy
TOY_RUNS = (
    (256, 200, 34.9),
    (256, 400, 32.0),
    (256, 800, 30.6),
    (512, 200, 32.2),
    (1024, 100, 32.5),
)


TOY_NOISE = ("1.017", "1.213", "1.530", "1.571", "2.101")  # at epsilon 2, delta 5e-5, 10,000


def toy_signals() -> list[float]:
    return [
        signal_to_noise(batch, steps, float(sigma))
        for (batch, steps, _), sigma in zip(TOY_RUNS, TOY_NOISE, strict=True)
    ]


class TestLaw:
    def test_the_task_shows_the_stated_third_more_signal_at_four_times_the_steps(self) -> None:
        signals = toy_signals()
        assert signals[2] / signals[0] == pytest.approx(1.33, abs=0.02)

    def test_the_fit_of_the_five_runs_gives_the_exponents(self) -> None:
        excess = np.log([math.log(p / 24.5) for _, _, p in TOY_RUNS])
        steps = [math.log(t) for _, t, _ in TOY_RUNS]
        design = np.stack([np.log(toy_signals()), steps, np.ones(5)], axis=1)
        (signal, count, _), *_ = np.linalg.lstsq(design, excess, rcond=None)
        assert signal == pytest.approx(-1, abs=0.05)
        assert count == pytest.approx(-STEPS_EXPONENT, abs=0.02)

    def test_with_one_constant_it_is_within_a_hundredth_of_a_nat_of_every_run(self) -> None:
        scores = [utility_score(s, t) for s, (_, t, _) in zip(toy_signals(), TOY_RUNS, strict=True)]
        excess = [math.log(p / 24.5) for _, _, p in TOY_RUNS]
        constant = float(np.mean([e * s for e, s in zip(excess, scores, strict=True)]))
        assert all(abs(constant / s - e) < 0.01 for e, s in zip(excess, scores, strict=True))

    @pytest.mark.slow
    def test_the_noise_of_the_toy_runs_is_the_calibrated_one(self) -> None:
        for (batch, steps, _), sigma in zip(TOY_RUNS, TOY_NOISE, strict=True):
            q = str(Decimal(batch) / 10_000)
            found, _ = calibrate_fixed(epsilon="2", delta="5e-5", q=q, steps=steps)
            assert found == sigma


class TestEstimate:
    @pytest.mark.parametrize(("epsilon", "q", "steps"), [("2", "0.2", 50), ("1", "0.1", 200)])
    def test_it_is_near_the_calibration(self, epsilon: str, q: str, steps: int) -> None:
        calibrated, _ = calibrate_fixed(epsilon=epsilon, delta="1e-5", q=q, steps=steps)
        estimate = noise_multiplier_estimate(
            epsilon=float(epsilon), delta=1e-5, q=[float(q)], steps=[steps]
        )
        assert float(estimate[0]) == pytest.approx(float(calibrated), rel=0.07)

    @settings(max_examples=40, deadline=None)
    @given(
        epsilon=st.floats(0.05, 20),
        exponent=st.integers(3, 9),
        q=st.floats(1e-6, 1),
        steps=st.integers(1, 100_000),
    )
    def test_it_is_finite_and_falls_with_epsilon(
        self, epsilon: float, exponent: int, q: float, steps: int
    ) -> None:
        low, high = (
            float(
                noise_multiplier_estimate(epsilon=e, delta=10.0**-exponent, q=[q], steps=[steps])[0]
            )
            for e in (epsilon, 2 * epsilon)
        )
        assert 0.05 <= high <= low * (1 + 1e-3) and low <= 200


class TestSearch:
    def test_more_compute_never_lowers_the_score(self) -> None:
        scores = [
            best_candidate(TARGET, passages_max=passes * 10_000).score
            for passes in (1, 2, 4, 8, 16, 64, 256)
        ]
        assert scores == sorted(scores) and scores[-1] > 3 * scores[0]

    @settings(max_examples=40, deadline=None)
    @given(
        passages=st.integers(BATCH_MIN * 60, 5_000_000),
        evaluation=st.sampled_from([0, 256]),
        window=st.integers(1, 50),
    )
    def test_it_stays_within_the_limit(self, passages: int, evaluation: int, window: int) -> None:
        target = Target(
            epsilon="3",
            delta="1e-6",
            patients_public=20_000,
            steps_margin=2 * window,
            evaluation_batch_size=evaluation,
            steps_per_window=window,
        )
        limit = passages + int(target.passages(0, 60))
        found = best_candidate(target, passages_max=limit)
        assert target.passages(found.batch_size, found.steps) <= limit
        assert 1 <= found.steps <= STEPS_MAX and found.batch_size <= 10_000

    def test_it_beats_every_other_split_of_the_same_compute(self) -> None:
        best = best_candidate(TARGET, passages_max=100_000)
        for batch in (32, 64, 128, 512, 1024, 2000):
            other = best_candidate(TARGET, passages_max=100_000, batch_size=batch)
            assert other.batch_size == batch and other.score <= best.score * 1.01

    def test_a_given_batch_or_number_of_steps_stays(self) -> None:
        assert best_candidate(TARGET, passages_max=9_000, batch_size=90).steps == 100
        assert best_candidate(TARGET, passages_max=9_000, steps=90).batch_size == 100
        both = best_candidate(TARGET, passages_max=9_000, steps=7, batch_size=9)
        assert (both.batch_size, both.steps) == (9, 7)

    def test_a_limit_below_one_step_gives_one_step_of_the_smallest_batch(self) -> None:
        found = best_candidate(TARGET, passages_max=3)
        assert (found.batch_size, found.steps) == (BATCH_MIN, 1)

    def test_the_margin_for_redone_windows_is_paid_for(self) -> None:
        wide = Target(epsilon="2", delta="1e-5", patients_public=10_000, steps_margin=500)
        few = best_candidate(wide, passages_max=30_000, steps=50)
        assert (
            few.signal_to_noise
            < best_candidate(TARGET, passages_max=30_000, steps=50).signal_to_noise
        )

    def test_no_compute_is_refused(self) -> None:
        with pytest.raises(PlanInvalid, match="Grant more minutes"):
            best_candidate(TARGET, passages_max=0)

    def test_abundant_compute_stays_on_the_grid_of_multipliers(self) -> None:
        target = Target(epsilon="0.5", delta="1e-6", patients_public=100_000, steps_margin=50)
        assert best_candidate(target, passages_max=10**10).is_calibratable


class TestSpeed:
    def test_four_operations_a_weight_and_token(self) -> None:
        speed = estimated_speed(parameters=10**6, tokens_per_patient=250, flop_per_second=1e10)
        assert (speed.patients_per_second, speed.source) == (10.0, "estimated")

    def test_minutes_and_patients_are_each_others_inverse(self) -> None:
        speed = DeviceSpeed(patients_per_second=12.5, source="measured")
        assert speed.patients_in(Decimal("2")) == 1500
        assert speed.minutes_for(1500) == 2

    @pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
    def test_no_speed_is_refused(self, value: float) -> None:
        with pytest.raises(PlanInvalid, match="patients_per_second"):
            DeviceSpeed(patients_per_second=value, source="measured")
