"""Were the canaries drawn by independent coins of rate q, as the accounting assumes?

Exact tests: each compares a count with its binomial distribution, bin by bin. A chi-square
sum is not exact at the gate's level of 1e-6 where bins hold few draws. They find shuffled
or fixed batches, dropped or doubled draws and units that travel together
(audit.md 4; why it matters: arXiv 2411.10614).
"""

from __future__ import annotations

import numpy as np
from scipy import stats

_EXPECTED_MIN = 5.0  # of a bin; rarer values are merged into the tails


class DrawTest:
    """Collects which of the included canaries each step drew. The draws stay in here."""

    def __init__(self, *, members: int, sampling_probability: str) -> None:
        self._members = members
        self._rate = float(sampling_probability)
        self._steps: list[np.ndarray] = []  # (members,) bool each

    def add(self, is_drawn: np.ndarray) -> None:
        self._steps.append(is_drawn.astype(bool))

    def p_value(self) -> float:
        """Smallest of the tests' p-values after Bonferroni over them; 1 without canaries.

        ===========  ==============================================  ==================
        count        distribution if the draws are Poisson           finds
        ===========  ==============================================  ==================
        total        Bin(T m, q)                                     dropped, doubled
        per canary   Bin(T, q), over canaries; extremes by a union   epochs, fixed sets
        per step     Bin(m, q), over steps                           fixed batch sizes
        repeats      in disjoint pairs of steps: Bin(m T/2, q^2)     no or sure repeats
        companions   of each pair of canaries: Bin(T, q^2), union    units in blocks
        ===========  ==============================================  ==================
        """
        if not self._steps or self._members == 0 or self._rate >= 1:
            return self._sure()
        drawn = np.stack(self._steps)  # (T, m)
        steps, q = len(drawn), self._rate
        per_canary, per_step = drawn.sum(axis=0), drawn.sum(axis=1)
        even = drawn[: steps // 2 * 2]
        repeats = int((even[::2] & even[1::2]).sum())
        tests = [
            _two_sided(int(drawn.sum()), drawn.size, q),
            _bins(per_canary, steps, q),
            _extremes(per_canary, steps, q),
            _bins(per_step, self._members, q),
            _two_sided(repeats, even.size // 2, q**2),
            self._companions(drawn),
        ]
        return min(1.0, len(tests) * min(tests))

    def _sure(self) -> float:
        """At q = 1 every canary is drawn at every step; anything else is impossible."""
        missed = self._rate >= 1 and any(not step.all() for step in self._steps)
        return 0.0 if missed else 1.0

    def _companions(self, drawn: np.ndarray) -> float:
        if self._members < 2:
            return 1.0
        together = drawn.T.astype(np.float32) @ drawn.astype(np.float32)
        np.fill_diagonal(together, 0)
        pairs = self._members * (self._members - 1) / 2
        most = float(stats.binom.sf(together.max() - 1, len(drawn), self._rate**2))
        return min(1.0, pairs * most)


def _two_sided(count: int, trials: int, rate: float) -> float:
    if trials == 0:
        return 1.0
    low = float(stats.binom.cdf(count, trials, rate))
    high = float(stats.binom.sf(count - 1, trials, rate))
    return min(1.0, 2 * min(low, high))


def _extremes(counts: np.ndarray, trials: int, rate: float) -> float:
    low = float(stats.binom.cdf(counts.min(), trials, rate))
    high = float(stats.binom.sf(counts.max() - 1, trials, rate))
    return min(1.0, 2 * len(counts) * min(low, high))


def _bins(counts: np.ndarray, trials: int, rate: float) -> float:
    """How often each value occurs among independent Bin(trials, rate) counts."""
    values = np.arange(trials + 1)
    chances = stats.binom.pmf(values, trials, rate)
    usual = np.flatnonzero(chances * len(counts) >= _EXPECTED_MIN)
    if len(usual) == 0:
        return 1.0
    first, last = int(usual[0]), int(usual[-1])
    found = [int((counts == v).sum()) for v in range(first, last + 1)]
    shares = [float(c) for c in chances[first : last + 1]]
    found += [int((counts < first).sum()), int((counts > last).sum())]
    shares += [float(chances[:first].sum()), float(chances[last + 1 :].sum())]
    tests = [_two_sided(f, len(counts), s) for f, s in zip(found, shares, strict=True)]
    return min(1.0, len(tests) * min(tests))
