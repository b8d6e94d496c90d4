"""Privacy loss distributions of Gaussian steps, with dp_accounting's arithmetic over whole arrays.

dp_accounting finds the points of a distribution one by one in Python, which is most of the time
of an epsilon. Here the same operations run on arrays; everything else is the library's own code
(connect-the-dots, composition, conversion). Guarantee: the figures are the library's, which
`tests/dp_core/test_gaussian_pld.py` compares with its unmodified accountant.

Source of the formulas: `dp_accounting.pld.privacy_loss_mechanism`, version 0.6, and the
supplementary material of google/differential-privacy it names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from dp_accounting.pld import pld_pmf
from dp_accounting.pld import privacy_loss_distribution as distributions
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss

from dp_core.events import PoissonGaussian

_CLOSE = 1e-9  # as math.isclose


class _GaussianLoss(GaussianPrivacyLoss):  # type: ignore[misc]
    """The library's loss at noise multiplier sigma and rate q < 1, for arrays of epsilons."""

    def get_delta_for_epsilon(self, epsilon: Any) -> Any:
        epsilons = np.asarray(epsilon, dtype=float)
        border = math.log1p(-self.sampling_prob)
        deltas = np.zeros_like(epsilons)
        if self.adjacency_type == AdjacencyType.ADD:
            inside = epsilons < -border
        else:
            inside = epsilons > border
            deltas[~inside] = -np.expm1(epsilons[~inside])
        asked = epsilons[inside]
        cutoffs = self._cutoffs(asked)
        deltas[inside] = self.mu_upper_cdf(cutoffs) - np.exp(asked + self.mu_lower_log_cdf(cutoffs))
        return np.clip(deltas, 0, 1)

    def _cutoffs(self, epsilons: np.ndarray) -> np.ndarray:
        """The largest x at which the loss is at least each epsilon."""
        adds = self.adjacency_type == AdjacencyType.ADD
        q, sign = self.sampling_prob, -1.0 if adds else 1.0
        border = sign * math.log(1 - q)
        near = np.abs(epsilons - border) <= _CLOSE * np.maximum(np.abs(epsilons), abs(border))
        whole = np.full_like(epsilons, -sign * math.inf)  # loss without sampling, at the border
        whole[~near] = sign * _log_sum(1 / q, sign * epsilons[~near], 1 - 1 / q)
        cutoffs: np.ndarray = -0.5 * self.sensitivity - whole * (
            self.standard_deviation**2 / self.sensitivity
        )
        return self.sensitivity + cutoffs if adds else cutoffs


def _log_sum(a: float, b: np.ndarray, c: float) -> np.ndarray:
    """log(a exp(b) + c) for a > 0 > c, in the order of the library's operations."""
    d = b + np.log(a)
    found: np.ndarray = np.where(b == 0, np.log(a + c), d + np.log1p(-np.exp(np.log(-c) - d)))
    return found


def _one_way(q: float, sigma: float, adjacency: AdjacencyType, interval: float) -> Any:
    loss = _GaussianLoss(sigma, sampling_prob=q, adjacency_type=adjacency)
    bounds = loss.connect_dots_bounds()
    upper = math.ceil(bounds.epsilon_upper / interval)
    lower = math.floor(bounds.epsilon_lower / interval)
    deltas = loss.get_delta_for_epsilon(np.arange(lower, upper + 1) * interval)
    return pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(interval, lower, upper, deltas)


def _composed(event: PoissonGaussian, interval: float) -> Any:
    """The distribution of an event's steps together."""
    q, sigma = float(event.q), float(event.noise_multiplier)
    if q == 1:
        return distributions.from_gaussian_mechanism(
            sigma / math.sqrt(event.steps), value_discretization_interval=interval
        )
    step = distributions.PrivacyLossDistribution(
        _one_way(q, sigma, AdjacencyType.REMOVE, interval),
        _one_way(q, sigma, AdjacencyType.ADD, interval),
    )
    return step.self_compose(event.steps)


def epsilon_of_events(events: Sequence[PoissonGaussian], delta: float, interval: float) -> float:
    """Pessimistic epsilon at delta of all events together, one patient added or removed.

    0 for no step; infinite where the numerics cannot decide.
    """
    total = distributions.identity(value_discretization_interval=interval)
    for event in events:
        if event.steps:
            total = total.compose(_composed(event, interval))
    return float(total.get_epsilon_for_delta(delta))
