"""Ratios and intervals on numbers made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controller.benchmark.statistics import mean_loss, paired_ratio, perplexity


def losses(per_seed: list[list[float]], tokens: float = 10.0) -> np.ndarray:
    """(S, M, 2) from the mean loss of each note."""
    means = np.asarray(per_seed)
    return np.stack([means * tokens, np.full_like(means, tokens)], axis=-1)


class TestMeanLoss:
    def test_long_notes_weigh_by_their_tokens(self) -> None:
        one_seed = np.array([[[10.0, 10.0], [90.0, 30.0]]])  # 1 nat and 3 nats a token
        assert mean_loss(one_seed) == pytest.approx(100 / 40)

    def test_seeds_count_alike(self) -> None:
        assert mean_loss(losses([[1.0, 1.0], [2.0, 4.0]])) == pytest.approx(2.0)

    def test_perplexity_is_the_geometric_mean_over_seeds(self) -> None:
        both = losses([[math.log(2)], [math.log(8)]])
        assert perplexity(both) == pytest.approx(4.0)

    def test_notes_without_slots_have_no_loss(self) -> None:
        assert math.isnan(mean_loss(np.zeros((2, 3, 2))))


class TestPairedRatio:
    def test_equal_arms_have_ratio_one_and_no_width(self) -> None:
        a = losses([[1.0, 3.0], [2.0, 5.0]])
        ratio = paired_ratio([(a, a)])
        assert (ratio.value, ratio.low, ratio.high) == (1.0, 1.0, 1.0)
        assert not ratio.is_lower

    def test_a_constant_gain_has_no_width_however_noisy_the_seeds(self) -> None:
        b = losses([[1.0, 9.0], [5.0, 2.0], [0.5, 0.1]])
        a = b.copy()
        a[..., 0] -= 0.1 * a[..., 1]
        ratio = paired_ratio([(a, b)])
        assert ratio.value == pytest.approx(math.exp(-0.1))
        assert ratio.low == pytest.approx(ratio.high)
        assert ratio.is_lower and ratio.seeds == 3

    def test_the_interval_covers_what_seeds_disagree_on(self) -> None:
        """Differences -0.2 and 0.2 of two seeds: means of two draws are -0.2, 0 and 0.2."""
        b = losses([[1.0], [1.0]])
        a = losses([[0.8], [1.2]])
        ratio = paired_ratio([(a, b)])
        assert ratio.value == pytest.approx(1.0)
        assert ratio.low == pytest.approx(math.exp(-0.2))
        assert ratio.high == pytest.approx(math.exp(0.2))

    def test_the_interval_covers_the_choice_of_notes(self) -> None:
        b = losses([[1.0] * 50])
        a = losses([[0.9 if m % 2 else 1.1 for m in range(50)]])
        ratio = paired_ratio([(a, b)])
        # The mean of 50 notes of +-0.1 has standard deviation 0.1 / sqrt(50).
        half = 1.96 * 0.1 / math.sqrt(50)
        assert math.log(ratio.high) == pytest.approx(half, rel=0.15)
        assert math.log(ratio.low) == pytest.approx(-half, rel=0.15)

    def test_epsilons_are_averaged(self) -> None:
        b = losses([[1.0], [1.0]])
        ratio = paired_ratio([(losses([[0.9], [0.9]]), b), (losses([[0.7], [0.7]]), b)])
        assert ratio.value == pytest.approx(math.exp(-0.2))

    def test_other_seeds_or_notes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="same seeds"):
            paired_ratio([(losses([[1.0]]), losses([[1.0], [1.0]]))])
        with pytest.raises(ValueError, match="same seeds"):
            paired_ratio([])
