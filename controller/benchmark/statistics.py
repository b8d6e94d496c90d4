"""Perplexities and paired bootstrap intervals of their ratios. Plain numpy.

`Losses` of an arm has shape (S, M, 2): of seed s and note m, the summed loss in nats and
the number of tokens. Two arms are compared seed by seed and note by note, so that what both
share (initial adapter, draws of patients, noise, hard notes) cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Losses = NDArray[np.float64]

DRAWS = 4_000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Perplexity of one arm over another's with its interval; below 1: lower, hence better."""

    value: float
    low: float
    high: float
    seeds: int

    @property
    def is_lower(self) -> bool:
        """Whether the interval excludes 1 from below."""
        return self.high < 1


def mean_loss(losses: Losses) -> float:
    """Mean over seeds of the mean loss of a token, in nats; NaN without tokens."""
    tokens = losses[..., 1].sum(axis=1)
    if not len(losses) or not tokens.all():
        return math.nan
    return float(np.mean(losses[..., 0].sum(axis=1) / tokens))


def perplexity(losses: Losses) -> float:
    """Geometric mean over seeds of exp(loss of a token); a diverged arm gives infinity."""
    loss = mean_loss(losses)
    return math.nan if math.isnan(loss) else math.exp(loss) if loss < 700 else math.inf


def paired_ratio(
    pairs: Sequence[tuple[Losses, Losses]], *, draws: int = DRAWS, seed: int = 0
) -> Ratio:
    """Ratio of perplexities, geometric mean over the pairs (one for each epsilon).

    The interval is a percentile bootstrap that draws seeds, and notes, with replacement; the
    notes drawn are the same for both arms, all seeds and all pairs. With one seed it covers
    the choice of notes alone.

    Raises:
        ValueError: no pair, or two arms of other seeds or notes.
    """
    if not pairs or any(a.shape != b.shape or not a.size for a, b in pairs):
        raise ValueError("Arms are compared on the same seeds and notes.")
    generator = np.random.default_rng(seed)
    notes = pairs[0][0].shape[1]
    weights = generator.multinomial(notes, np.full(notes, 1 / notes), size=draws)
    value, drawn = 0.0, np.zeros(draws)
    for a, b in pairs:
        seeds = len(a)
        value += mean_loss(a) - mean_loss(b)
        differences = _token_losses(a, weights) - _token_losses(b, weights)  # (draws, S)
        chosen = generator.integers(seeds, size=(draws, seeds))
        drawn += np.take_along_axis(differences, chosen, axis=1).mean(axis=1)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn / len(pairs), [tail, 1 - tail])
    return Ratio(
        value=_exp(value / len(pairs)),
        low=_exp(float(low)),
        high=_exp(float(high)),
        seeds=min(len(a) for a, _ in pairs),
    )


def _token_losses(losses: Losses, weights: NDArray[np.int64]) -> Losses:
    """(draws, S): loss of a token over the notes that each draw weighs."""
    sums = weights @ losses[..., 0].T
    tokens = weights @ losses[..., 1].T
    return np.asarray(sums / np.maximum(tokens, 1))


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
