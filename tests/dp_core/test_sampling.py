"""Poisson draws of patients and microbatches (SAMPLE; S1, S3-S6, L6, N4; M14-M16, M21).

Statistical tests use kernel entropy, as production does. Each states the rate at which it
would fail on a correct implementation.
"""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from dp_core.errors import PlanInvalid
from dp_core.sampling import PoissonSampler, is_validation_patient, microbatches, padded


def draws(q: str, patients: int, count: int) -> list[np.ndarray]:
    sampler = PoissonSampler(sampling_probability=q, raw_population_size=patients)
    return [sampler.draw().reveal_inside_step() for _ in range(count)]


def included(q: str, patients: int, count: int) -> np.ndarray:
    """Who was in which draw; bool, (draws, patients)."""
    table = np.zeros((count, patients), dtype=bool)
    for row, drawn in enumerate(draws(q, patients, count)):
        table[row, drawn] = True
    return table


class TestPoissonSampler:
    def test_batch_sizes_are_binomial(self) -> None:
        """Chi-square on sizes; false alarm 1e-5. Fixed sizes fail (M14)."""
        sizes = [len(d) for d in draws("0.1", 60, 4000)]
        counts = np.bincount(sizes, minlength=61)
        expected = stats.binom.pmf(np.arange(61), 60, 0.1) * 4000
        keep = expected >= 5
        observed = np.append(counts[keep], counts[~keep].sum())
        wanted = np.append(expected[keep], expected[~keep].sum())
        assert stats.chisquare(observed, wanted).pvalue > 1e-5

    def test_each_patient_is_included_at_the_rate(self) -> None:
        """Chi-square over the counts of patients, both tails; false alarm 2e-5."""
        counts = included("0.2", 40, 3000).sum(axis=0)
        statistic = ((counts - 600) ** 2 / (3000 * 0.2 * 0.8)).sum()
        assert stats.chi2.sf(statistic, 40) > 1e-5
        assert stats.chi2.cdf(statistic, 40) > 1e-5  # fixed quotas would be too even

    def test_gaps_between_a_patients_steps_are_geometric(self) -> None:
        """Chi-square on gaps; false alarm 1e-5. Epochs and shuffles have other gaps (M14)."""
        table = included("0.2", 40, 3000)
        gaps = np.concatenate([np.diff(np.flatnonzero(table[:, p])) for p in range(40)])
        last = 25  # and above
        observed = np.bincount(np.minimum(gaps, last), minlength=last + 1)[1:]
        wanted = stats.geom.pmf(np.arange(1, last + 1), 0.2)
        wanted[-1] = stats.geom.sf(last - 1, 0.2)
        # A gap that outlasts the run is cut off: less than 1 in 500 of all gaps.
        assert stats.chisquare(observed, wanted * len(gaps)).pvalue > 1e-5

    def test_patients_and_steps_are_independent(self) -> None:
        """4.5 / sqrt(n) on neighbours in a draw and on one patient's next step; 1.4e-5."""
        unit = (included("0.2", 40, 3000) - 0.2) / np.sqrt(0.2 * 0.8)
        for product in (unit[:, 1:] * unit[:, :-1], unit[1:] * unit[:-1]):
            assert abs(product.mean()) < 4.5 / np.sqrt(product.size)

    @pytest.mark.parametrize(
        "q", ["0.3", "0.1", "0.000000001", "0.0312499999999999999999999999999999"]
    )
    def test_the_realised_rate_is_the_largest_not_above_q(self, q: str) -> None:
        """S1: floor(q 2^53) of the 2^53 words. Long decimals must not round up."""
        threshold = math.floor(Fraction(q) * 2**53)

        def is_in(word: int) -> bool:
            sampler = PoissonSampler(
                sampling_probability=q,
                raw_population_size=1,
                entropy=lambda _: (word << 11).to_bytes(8, "little"),
            )
            return len(sampler.draw().reveal_inside_step()) == 1

        assert is_in(threshold - 1)
        assert not is_in(threshold)

    def test_every_patient_takes_a_fresh_word_of_its_own(self) -> None:
        asked: list[int] = []

        def entropy(length: int) -> bytes:
            asked.append(length)
            return bytes(length)

        sampler = PoissonSampler(
            sampling_probability="0.5", raw_population_size=30, entropy=entropy
        )
        for _ in range(3):
            assert len(sampler.draw().reveal_inside_step()) == 30
        assert asked == [240, 240, 240]

    def test_at_rate_one_everyone_is_in(self) -> None:
        assert len(draws("1", 70, 1)[0]) == 70

    def test_empty_draws_happen_and_take_one_microbatch(self) -> None:
        """S3 at q = 1e-4: 40 of 50 empty fails once in 1e17."""
        empty = [d for d in draws("0.0001", 50, 50) if len(d) == 0]
        assert len(empty) >= 40
        (only,) = microbatches(padded(empty[0], 4), 4)
        assert only.is_last
        assert (only.raw_slots == -1).all()

    @pytest.mark.parametrize("rate", ["0", "1.2", "-0.1", "nan", "inf", "a third"])
    def test_a_rate_outside_the_unit_interval_is_refused(self, rate: str) -> None:
        with pytest.raises(PlanInvalid):
            PoissonSampler(sampling_probability=rate, raw_population_size=5)

    def test_rows_are_picked_without_replacement(self) -> None:
        sampler = PoissonSampler(sampling_probability="1", raw_population_size=1)
        seen = {tuple(sampler.pick(4, 2)) for _ in range(200)}
        assert seen == {(a, b) for a in range(4) for b in range(a + 1, 4)}
        assert list(sampler.pick(2, 5)) == [0, 1]

    def test_rows_are_picked_uniformly(self) -> None:
        """Chi-square over the 6 pairs of 4 rows; false alarm 1e-5."""
        sampler = PoissonSampler(sampling_probability="1", raw_population_size=1)
        seen = Counter(tuple(sampler.pick(4, 2)) for _ in range(3000))
        assert stats.chisquare(list(seen.values())).pvalue > 1e-5

    def test_row_choice_leaves_the_stream_of_draws_alone(self) -> None:
        """N4: two samplers on equal draw streams agree, whatever rows one of them picked."""

        def sampler(rows_seed: int) -> PoissonSampler:
            return PoissonSampler(
                sampling_probability="0.5",
                raw_population_size=200,
                entropy=np.random.default_rng(1).bytes,
                row_entropy=np.random.default_rng(rows_seed).bytes,
            )

        first, second = sampler(2), sampler(3)
        picked = [first.pick(1000, 5), second.pick(1000, 5)]
        assert not np.array_equal(*picked)
        first.pick(10, 5)
        drawn = [s.draw().reveal_inside_step() for s in (first, second)]
        assert np.array_equal(*drawn)

    def test_two_samplers_share_nothing(self) -> None:
        """N4, M21: equal draws of 200 patients happen once in 1e60."""
        assert not np.array_equal(draws("0.5", 200, 1)[0], draws("0.5", 200, 1)[0])


class TestMicrobatches:
    @pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 40])
    def test_every_drawn_patient_appears_once_in_constant_shape(self, size: int) -> None:
        parts = list(microbatches(padded(np.arange(size), 8), 8))
        assert [len(p.raw_slots) for p in parts] == [8] * max(1, -(-size // 8))
        assert [p.is_last for p in parts] == [False] * (len(parts) - 1) + [True]
        together = np.concatenate([p.raw_slots for p in parts])
        assert sorted(together[together >= 0]) == list(range(size))


class TestSplit:
    def test_blocks_are_disjoint_stable_and_of_the_declared_size(self) -> None:
        """5 sigma on the share."""
        inside = [is_validation_patient(b"key", f"p{i}", "0.1") for i in range(20_000)]
        assert inside == [is_validation_patient(b"key", f"p{i}", "0.1") for i in range(20_000)]
        assert abs(sum(inside) - 2000) < 5 * np.sqrt(20_000 * 0.1 * 0.9)
        other = [is_validation_patient(b"other", f"p{i}", "0.1") for i in range(20_000)]
        assert inside != other
