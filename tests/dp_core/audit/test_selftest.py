"""The self-test trips on every positive control and is silent on the correct engine (CANARY).

Faults are those of `toy`; step counts are those of audit.md 8, at its total level of 1e-4.
"""

from __future__ import annotations

import numpy as np
import pytest

from dp_core.audit.canaries import PartitionCanaries, StepScores
from dp_core.audit.errors import AuditInvalid
from dp_core.audit.selftest import ALARM_LEVEL, Look, SelfTest, SelfTestResult
from tests.dp_core.audit import toy
from tests.dp_core.audit.toy import (
    SIGMA_OF_EPSILON,
    ToyMechanism,
    run_toy,
    toy_layout,
    toy_settings,
)

TABLE_LEVEL = 1e-4  # of the table of expected speeds
# Fault: steps until flagged at epsilon 1 and at epsilon 8, K = 24, q = .0256, m = 1000.
TABLE: list[tuple[type[ToyMechanism], int, int]] = [
    (toy.NoiseOff, 1, 1),
    (toy.NoiseHalved, 1, 1),
    (toy.NoiseTimes09, 1, 1),
    (toy.NoiseHalvedInOneGroup, 1, 1),
    (toy.SigmaTimesClip, 1, 1),
    (toy.OneGroupUnclipped, 5, 1),
    (toy.PairClippedApart, 50, 5),
    (toy.OneGroupAtTwiceTheClip, 400, 50),
]
FAST_ROWS = [
    pytest.param(row[0], epsilon, allowed, id=f"{row[0].__name__}-{epsilon}")
    for row in TABLE
    for epsilon, allowed in ((1, row[1]), (8, row[2]))
    if allowed <= 5
]
# Faults the table has no speed for: steps within which they have to trip at epsilon 4.
OTHERS: list[tuple[type[ToyMechanism], int]] = [
    (toy.NoiseAddedTwice, 1),
    (toy.ReusedSeed, 2),
    (toy.OneSeedForAllGroups, 1),
    (toy.ClipOfTheSum, 20),
    (toy.ClipListDoubled, 10),
]


def steps_until_flagged(
    fault: type[ToyMechanism], epsilon: int, seed: int, *, steps: int, level: float = TABLE_LEVEL
) -> float:
    run = run_toy(
        fault,
        sigma=SIGMA_OF_EPSILON[epsilon],
        steps=steps,
        canaries=1000,
        groups=24,
        size=1024,
        seed=seed,
        stop_below=level,
    )
    min_p = run.result.min_p
    return run.result.steps if min_p is not None and min_p < level else np.inf


class TestPositiveControls:
    @pytest.mark.parametrize(("fault", "epsilon", "allowed"), FAST_ROWS)
    def test_trips_within_the_steps_of_the_table(
        self, fault: type[ToyMechanism], epsilon: int, allowed: int
    ) -> None:
        """Median of three fixed runs, for rows of at most 5 steps; all rows are slow."""
        found = [steps_until_flagged(fault, epsilon, s, steps=2 * allowed) for s in range(3)]
        assert np.median(found) <= allowed

    @pytest.mark.slow
    @pytest.mark.timeout(3600)
    @pytest.mark.parametrize("epsilon", [1, 8])
    def test_the_whole_table(self, epsilon: int) -> None:
        medians = {}
        for fault, one, eight in TABLE:
            allowed = one if epsilon == 1 else eight
            found = [steps_until_flagged(fault, epsilon, s, steps=800) for s in range(11)]
            medians[fault.__name__] = (float(np.median(found)), allowed)
        print(epsilon, medians)
        assert not {name: pair for name, pair in medians.items() if pair[0] > pair[1]}

    @pytest.mark.parametrize("row", OTHERS, ids=lambda r: r[0].__name__)
    def test_other_faults_trip_at_the_gate(self, row: tuple[type[ToyMechanism], int]) -> None:
        fault, allowed = row
        found = steps_until_flagged(fault, 4, 1, steps=2 * allowed, level=ALARM_LEVEL)
        assert found <= allowed

    def test_noise_that_stays_behind_a_clip_change_trips_at_the_next_look(self) -> None:
        run = run_toy(toy.StaleNoise, steps=20, moves_clips=True)
        assert [look.min_p < ALARM_LEVEL for look in run.result.looks] == [
            look.step > 5 for look in run.result.looks
        ]
        assert run.result.verdict == "FAIL"

    def test_only_canaries_that_share_the_patients_clip_see_that_it_is_gone(self) -> None:
        """M31, AU15: an unclipped engine looks right to canaries with a clip of their own."""
        shared = run_toy(toy.EverythingUnclipped, steps=10).result
        apart = run_toy(toy.CanaryPastTheClip, steps=10).result
        assert shared.verdict == "FAIL"
        assert min(r for r in shared.mean_ratio if r is not None) > 5
        assert apart.verdict == "PASS"

    def test_required_controls_reach_the_level_of_t0(self) -> None:
        """AU32: p < 1e-9 with 6 groups, 60 steps, 400 canaries."""
        for fault in (
            toy.NoiseOff,
            toy.NoiseHalved,
            toy.SigmaTimesClip,
            toy.OneGroupUnclipped,
        ):
            run = run_toy(fault, steps=60, canaries=400, stop_below=1e-9)
            assert run.result.min_p is not None
            assert run.result.min_p < 1e-9, fault


def correct_runs(runs: int, steps: int) -> list[SelfTestResult]:
    """Correct runs of several epsilons, half of them under a policy that moves clips."""
    return [
        run_toy(
            sigma=SIGMA_OF_EPSILON[(1, 2, 4, 8)[seed % 4]],
            steps=steps,
            seed=1000 + seed,
            moves_clips=seed % 8 >= 4,
        ).result
        for seed in range(runs)
    ]


@pytest.fixture(scope="module")
def hundred() -> list[SelfTestResult]:
    return correct_runs(100, steps=10)


class TestCorrectEngine:
    """At the gate's level 1000 runs raise an alarm with probability below 1e-3."""

    def test_100_runs_raise_no_alarm(self, hundred: list[SelfTestResult]) -> None:
        assert [r.reasons for r in hundred if r.verdict != "PASS"] == []

    @pytest.mark.slow
    @pytest.mark.timeout(3600)
    def test_1000_runs_raise_no_alarm(self) -> None:
        assert [r.reasons for r in correct_runs(1000, steps=60) if r.verdict != "PASS"] == []

    def test_small_adjusted_p_values_are_as_rare_as_they_claim(
        self, hundred: list[SelfTestResult]
    ) -> None:
        """p <= 0.2 in at most 20 % and four standard errors (false alarm 3e-5)."""
        assert np.mean([r.min_p is not None and r.min_p <= 0.2 for r in hundred]) <= 0.36

    def test_figures_stand_at_their_true_values(self) -> None:
        """Six groups, 100 steps, about 1280 sampled and 49 000 free scores per group.

        5 standard errors: variance 5 * sqrt(2/49000) = .032; mean 5 / (a sqrt(1280)) = .31.
        """
        result = run_toy(steps=100, seed=3).result
        assert np.array(result.var_ratio, float) == pytest.approx(1, abs=0.045)
        assert np.array(result.mean_ratio, float) == pytest.approx(1, abs=0.4)
        assert result.lag1 == pytest.approx(0, abs=0.01)
        assert result.cross_group == pytest.approx(0, abs=0.03)

    def test_microbatches_and_ranks_change_no_verdict(self) -> None:
        """AU40; the sums differ by float rounding."""
        ours = run_toy(steps=20, seed=4)
        split = run_toy(toy.Microbatched, steps=20, seed=4)
        assert split.result.verdict == ours.result.verdict == "PASS"
        assert split.result.min_p == pytest.approx(ours.result.min_p, rel=1e-2)
        assert split.scores == pytest.approx(ours.scores, abs=1e-4)

    def test_members_score_higher_than_outsiders(self) -> None:
        """The accumulated score is one of membership; mean difference above 5 errors."""
        run = run_toy(steps=200, sigma=SIGMA_OF_EPSILON[8], seed=5, groups=3)
        inside, outside = run.scores[run.is_member], run.scores[~run.is_member]
        error = np.sqrt(inside.var() / len(inside) + outside.var() / len(outside))
        assert inside.mean() - outside.mean() > 5 * error


def result(**changes: object) -> SelfTestResult:
    fields: dict[str, object] = {
        "steps": 1,
        "canaries": 500,
        "var_ratio": (1.0,),
        "mean_ratio": (1.0,),
        "lag1": None,
        "cross_group": None,
        "looks": (look(0.5),),
        "looks_planned": (1,),
    }
    return SelfTestResult(**(fields | changes))  # type: ignore[arg-type]


def look(p: float) -> Look:
    kinds = ("variance", "mean", "lag1", "cross_group", "sampler")
    return Look(step=1, p_values=dict.fromkeys(kinds, 1.0) | {"mean": p})


class TestVerdict:
    def test_silence_with_enough_canaries_is_a_pass(self) -> None:
        assert (result().verdict, result().reasons) == ("PASS", ())

    @pytest.mark.parametrize(("p", "verdict"), [(0.9e-6, "FAIL"), (1.1e-6, "PASS")])
    def test_the_alarm_level_is_one_in_a_million(self, p: float, verdict: str) -> None:
        assert result(looks=(look(p),)).verdict == verdict

    def test_a_failure_names_test_and_step(self) -> None:
        failed = result(looks=(look(1e-9),))
        assert failed.reasons == ("self-test: mean at step 1, adjusted p 1.0e-09",)

    @pytest.mark.parametrize(
        "changes",
        [
            {"canaries": 499},
            {"looks": ()},
            {"mean_ratio": (1.0, None)},
            {"var_ratio": (None,)},
        ],
    )
    def test_what_was_not_observed_is_inconclusive(self, changes: dict[str, object]) -> None:
        assert result(**changes).verdict == "INCONCLUSIVE"
        assert result(**changes).reasons

    def test_an_early_alarm_is_not_forgotten(self) -> None:
        assert result(looks=(look(1e-9), look(0.5))).verdict == "FAIL"


def fresh_selftest(groups: int = 2) -> SelfTest:
    """Twenty canaries, nine of them members."""
    geometry = PartitionCanaries(toy_layout(groups, 50), canaries=20, construction_seed="5eed")
    return SelfTest(
        is_carried=geometry.is_carried,
        members=np.arange(9),
        sampling_probability="0.1",
        batch_size_expected=3,
        looks=(1, 2),
    )


class TestSelfTest:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_score_that_is_not_finite_is_an_alarm(self, value: float) -> None:
        """NaN compares with nothing; it must not read as silence."""
        selftest, settings = fresh_selftest(), next(toy_settings(2))
        values = np.zeros((20, 2))
        values[3, 1] = value
        step = StepScores(values=values, expected=np.ones((20, 2)))
        look = selftest.add(step, np.array([1]), settings)
        assert look is not None
        assert look.min_p == 0.0
        assert selftest.result().verdict == "FAIL"

    def test_a_canary_the_coins_left_out_cannot_be_drawn(self) -> None:
        step = StepScores(values=np.zeros((20, 2)), expected=np.ones((20, 2)))
        with pytest.raises(AuditInvalid, match="left out"):
            fresh_selftest().add(step, np.array([9]), next(toy_settings(2)))

    def test_looks_only_at_the_public_steps(self) -> None:
        run = run_toy(steps=20)
        assert [each.step for each in run.result.looks] == [1, 2, 5, 10, 20]

    def test_before_the_first_step_nothing_is_known(self) -> None:
        empty = fresh_selftest().result()
        assert (empty.min_p, empty.lag1, empty.cross_group) == (None, None, None)
        assert empty.var_ratio == empty.mean_ratio == (None, None)
        assert empty.verdict == "INCONCLUSIVE"

    def test_one_group_has_no_pairs(self) -> None:
        assert run_toy(steps=5, groups=1).result.verdict == "PASS"

    @pytest.mark.parametrize("looks", [(), (2, 1), tuple(range(1, 14))])
    def test_unordered_or_too_many_looks_are_refused(self, looks: tuple[int, ...]) -> None:
        with pytest.raises(AuditInvalid, match="looks"):
            SelfTest(
                is_carried=np.ones((2, 1), bool),
                members=np.arange(1),
                sampling_probability="0.1",
                batch_size_expected=1,
                looks=looks,
            )
