"""The exact sampler behind the integer grid, and the price of its noise (G12).

Statistics are seeded: a correct sampler was seen to pass, and a change of the algorithm
meets each bound with the false-alarm rate that the test states.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dp_core.accounting import rdp_per_step
from dp_core.discrete_gaussian import (
    SIGMA_MAX,
    bernoulli,
    bernoulli_exp,
    discrete_gaussian,
)
from dp_core.errors import InvariantViolation
from dp_core.mechanism import GRID_QUANTA
from dp_core.sampling import EntropySource
from tests.dp_core.noise_checks import noise_failures


def seeded(seed: int) -> EntropySource:
    generator = np.random.default_rng(seed)
    return lambda length: generator.bytes(length)


def words(*calls: list[int]) -> EntropySource:
    """Gives the listed 16-bit words, one list per call."""
    left = iter(calls)
    return lambda _: np.array(next(left), dtype=np.uint16).tobytes()


def exact_bernoulli(numerator: int, denominator: int, drawn: list[int]) -> bool:
    """X < numerator / denominator for the real X = 0.w1 w2 .. in base 2^16, in fractions."""
    low = sum(Fraction(w, 2 ** (16 * (i + 1))) for i, w in enumerate(drawn))
    return low < Fraction(numerator, denominator)


class TestBernoulli:
    @pytest.mark.parametrize(
        ("numerator", "denominator"), [(0, 1), (1, 1), (1, 3), (5, 7), (1, 2**14), (12345, 2**29)]
    )
    def test_over_all_first_words_the_share_is_the_fraction(
        self, numerator: int, denominator: int
    ) -> None:
        """2^16 a/b words decide for true, one at most is left open, for exactly its part."""
        numerators = np.full(2**16, numerator)
        every = list(range(2**16))
        sure = int(bernoulli(numerators, denominator, words(every, [2**16 - 1], [2**16 - 1])).sum())
        rest = Fraction(numerator * 2**16, denominator) - sure
        assert 0 <= rest < 1
        if rest == 0:
            return
        open_word = np.full(2**16, numerator)
        second = bernoulli(open_word, denominator, words([sure] * 2**16, every, [2**16 - 1], []))
        assert int(second.sum()) == math.floor(rest * 2**16)

    @given(
        denominator=st.integers(1, 2**46),
        share=st.fractions(0, 1),
        drawn=st.lists(st.integers(0, 2**16 - 1), min_size=12, max_size=12),
    )
    def test_agrees_with_fractions_up_to_the_largest_denominator(
        self, denominator: int, share: Fraction, drawn: list[int]
    ) -> None:
        numerator = int(share * denominator)
        got = bernoulli(np.array([numerator]), denominator, words(*[[w] for w in drawn]))
        assert got[0] == exact_bernoulli(numerator, denominator, drawn)

    @pytest.mark.parametrize(("a", "b"), [(0, 5), (1, 3), (1, 2), (1, 1), (2**28 + 1, 2**29)])
    def test_exponentials_have_their_probability(self, a: int, b: int) -> None:
        """4.5 sigma on 400,000 coins; false alarm 7e-6."""
        count = 400_000
        got = int(bernoulli_exp(np.full(count, a), b, seeded(a)).sum())
        p = math.exp(-a / b)
        assert abs(got - count * p) <= 4.5 * math.sqrt(count * p * (1 - p))

    def test_a_sure_first_coin_may_be_left_out(self) -> None:
        """4.5 sigma; false alarm 7e-6."""
        count = 400_000
        ones = np.ones(count, dtype=np.int64)
        got = int(bernoulli_exp(ones, 1, seeded(4), first_round=2).sum())
        p = math.exp(-1)
        assert abs(got - count * p) < 4.5 * math.sqrt(count * p * (1 - p))


def exact_probabilities(sigma: int, reach: int) -> np.ndarray:
    """Of -reach .. reach, the rest on both ends added to the ends."""
    wide = np.arange(-40 * sigma, 40 * sigma + 1)
    weights = np.exp(-(wide.astype(float) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    middle = weights[np.abs(wide) <= reach]
    middle[[0, -1]] += weights[wide > reach].sum()
    return middle


class TestDiscreteGaussian:
    @pytest.mark.parametrize("sigma", [1, 2, 3, 7, 64])
    def test_every_value_has_its_exact_probability(self, sigma: int) -> None:
        """Chi-square over all values out to 3 sigma and both tails; false alarm 1e-3."""
        count, reach = 200_000, 3 * sigma
        drawn = discrete_gaussian(count, seeded(sigma), sigma=sigma)
        observed = np.bincount(np.clip(drawn, -reach, reach) + reach, minlength=2 * reach + 1)
        expected = exact_probabilities(sigma, reach) * count
        assert stats.chisquare(observed, expected).pvalue > 1e-3

    def test_at_the_std_of_the_grid_it_is_the_gaussian_rounded(self) -> None:
        """The NOISE row at 2^14; false alarm 1e-3. Between them lies less than 1e-9."""
        drawn = [torch.from_numpy(discrete_gaussian(100_000, seeded(seed))) for seed in range(1, 5)]
        assert noise_failures(drawn, [float(GRID_QUANTA)] * 4) == []

    def test_moments_and_parity_at_the_std_of_the_grid(self) -> None:
        """4.5 sigma on mean, square, fourth power and odd values; false alarm 3e-5."""
        count = 1_000_000
        drawn = discrete_gaussian(count, seeded(9))
        unit = drawn / GRID_QUANTA
        for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
            assert abs((unit**power).mean() - mean) < 4.5 * math.sqrt(variance / count)
        assert abs((drawn % 2).mean() - 0.5) < 4.5 * 0.5 / math.sqrt(count)
        assert drawn.dtype == np.int64

    @pytest.mark.parametrize("length", [0, 1, 5, 40_000])
    def test_gives_the_length_asked_for(self, length: int) -> None:
        assert discrete_gaussian(length).shape == (length,)

    def test_the_largest_std_does_not_overflow(self) -> None:
        """KS; false alarm 1e-3."""
        unit = discrete_gaussian(20_000, seeded(2), sigma=SIGMA_MAX) / SIGMA_MAX
        assert stats.kstest(unit, "norm").pvalue > 1e-3

    @pytest.mark.parametrize("sigma", [0, -1, SIGMA_MAX + 1])
    def test_a_std_outside_the_range_is_refused(self, sigma: int) -> None:
        with pytest.raises(InvariantViolation):
            discrete_gaussian(1, sigma=sigma)

    def test_values_are_fresh_each_time(self) -> None:
        assert not np.array_equal(discrete_gaussian(100), discrete_gaussian(100))


def divergence(
    first: dict[tuple[int, ...], mpmath.mpf], second: dict[tuple[int, ...], mpmath.mpf], alpha: int
) -> mpmath.mpf:
    """Renyi divergence of two laws on the lattice, summed directly."""
    terms = (first[x] ** alpha * second[x] ** (1 - alpha) for x in first)
    return mpmath.log(mpmath.fsum(terms)) / (alpha - 1)


def both_directions(
    sigma: int, shift: tuple[mpmath.mpf, ...], q: str, alpha: int
) -> tuple[mpmath.mpf, mpmath.mpf]:
    """One subsampled step on Z^d, worst neighbour `shift`: (with | without), (without | with)."""
    reach = math.ceil(alpha * max(map(float, shift)) + 13 * sigma)

    def axis(mean: mpmath.mpf) -> dict[int, mpmath.mpf]:
        points = range(-reach, reach + 1)
        weights = {x: mpmath.exp(-((x - mean) ** 2) / (2 * sigma**2)) for x in points}
        total = mpmath.fsum(weights.values())
        return {x: weight / total for x, weight in weights.items()}

    def law(mean: tuple[mpmath.mpf, ...]) -> dict[tuple[int, ...], mpmath.mpf]:
        axes = [axis(m).items() for m in mean]
        return {tuple(x for x, _ in p): mpmath.fprod(w for _, w in p) for p in product(*axes)}

    without, moved, rate = law((mpmath.mpf(0),) * len(shift)), law(shift), mpmath.mpf(q)
    together = {x: (1 - rate) * without[x] + rate * moved[x] for x in without}
    return divergence(together, without, alpha), divergence(without, together, alpha)


class TestPrice:
    @pytest.mark.parametrize("q", ["0.01", "0.4", "1"])
    @pytest.mark.parametrize("alpha", [2, 3, 8, 32])
    @pytest.mark.parametrize(("sigma", "shift", "ratio"), [(3, 1, "3"), (3, 2, "1.5"), (2, 2, "1")])
    def test_an_integer_shift_costs_what_the_continuous_gaussian_costs(
        self, sigma: int, shift: int, ratio: str, q: str, alpha: int
    ) -> None:
        """One direction equals A1 to 1e-25, the other is not above it."""
        with mpmath.workdps(40):
            forward, backward = both_directions(sigma, (mpmath.mpf(shift),), q, alpha)
            price = rdp_per_step(q, ratio, alpha)
            assert abs(forward - price) < mpmath.mpf(10) ** -25 * price
            assert backward <= forward * (1 + mpmath.mpf(10) ** -25)

    def test_only_the_length_of_a_shift_over_several_coordinates_counts(self) -> None:
        with mpmath.workdps(30):
            shift = (mpmath.mpf(3), mpmath.mpf(4))
            forward, backward = both_directions(5, shift, "0.1", 2)
            price = rdp_per_step("0.1", "1", 2)
            assert abs(forward - price) < mpmath.mpf(10) ** -20 * price
            assert backward <= forward

    def test_a_shift_off_the_lattice_costs_something_else(self) -> None:
        """Why rows are rounded before they are summed."""
        with mpmath.workdps(40):
            forward, _ = both_directions(1, (mpmath.mpf("0.5"),), "0.4", 2)
            price = rdp_per_step("0.4", "2", 2)
            assert abs(forward - price) > mpmath.mpf(10) ** -9 * price
