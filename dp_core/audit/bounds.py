"""Lower bounds on epsilon and attack figures from canary scores, in numpy and scipy alone.

A one-run bound is a smoke alarm: it can show that a claim is false, never that it is true.
Sources: one run, (epsilon, delta): arXiv 2305.08846; one run, f-DP: arXiv 2410.22235
Algorithm 3; Clopper-Pearson audits: arXiv 2101.04535; exposure: arXiv 1802.08232.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special, stats

from dp_core.audit.errors import AuditInvalid

EPSILON_MAX, _TOLERANCE = 50.0, 1e-6  # no bound of this module is larger; how fine it is


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """`correct` of `made` membership guesses about `canaries` canaries; the rest abstain."""

    canaries: int
    made: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.made <= self.canaries or self.canaries < 1:
            raise AuditInvalid("guesses", "needs 0 <= correct <= made <= canaries")


def count_guesses(
    scores: np.ndarray, is_member: np.ndarray, ids: Sequence[str], *, k_plus: int, k_minus: int
) -> Guesses:
    """Guesses the `k_plus` highest scores as members and the `k_minus` lowest as not.

    Both counts come from the manifest, fixed before any coin was seen (AU26): a scan over
    them reports a positive epsilon on pure noise. Equal scores are ordered by a hash of
    the id, so that an order of ids by membership cannot turn ties into right guesses.
    """
    if not len(scores) == len(is_member) == len(ids) or not np.isfinite(scores).all():
        raise AuditInvalid("scores", "needs one finite score, coin and id per canary")
    if k_plus < 0 or k_minus < 0 or not 1 <= k_plus + k_minus <= len(scores):
        raise AuditInvalid("guess_rule", "needs 1 <= k_plus + k_minus <= canaries")
    hashes = b"".join(hashlib.sha256(i.encode()).digest()[:8] for i in ids)
    order = np.lexsort((np.frombuffer(hashes, dtype="<u8"), scores))
    correct = int(is_member[order[len(order) - k_plus :]].sum())
    correct += int((~is_member[order[:k_minus]]).sum())
    return Guesses(canaries=len(scores), made=k_plus + k_minus, correct=correct)


def steinke_p_value(epsilon: float, guesses: Guesses, delta: float) -> float:
    """P-value of "the mechanism is (epsilon, delta)-DP" after one run (2305.08846)."""
    r, v = guesses.made, guesses.correct
    rate = 1 / (1 + math.exp(-epsilon))
    tail = float(stats.binom.sf(v - 1, r, rate))
    if v == 0 or delta == 0:
        return min(1.0, tail)
    i = np.arange(1, v + 1)
    below = stats.binom.cdf(v - 1, r, rate) - stats.binom.cdf(v - i - 1, r, rate)
    return min(1.0, tail + 2 * guesses.canaries * delta * float((below / i).max()))


@lru_cache(maxsize=4096)
def steinke_bound(guesses: Guesses, *, delta: float, alpha: float) -> float:
    """The largest epsilon that one run refutes at level `alpha`; 0 if it refutes none."""
    return _largest(lambda e: steinke_p_value(e, guesses, delta) <= alpha)


def fdp_rejects(inverse: Callable[[float], float], guesses: Guesses, level: float) -> bool:
    """Whether one run refutes a trade-off curve f at `level` (2410.22235, Algorithm 3).

    `inverse(y)` is f(1 - y) of a symmetric f. Conservative for every curve below f.
    """
    m, r, v = guesses.canaries, guesses.made, guesses.correct
    right, wrong = level * v / m, level * (r - v) / m
    for i in range(v - 1, -1, -1):
        wrong_next = max(wrong, inverse(right))
        right, wrong = right + i / (r - i) * (wrong_next - wrong), wrong_next
        if right + wrong >= r / m:  # both only grow
            break
    return right + wrong >= r / m


def gaussian_inverse(mu: float) -> Callable[[float], float]:
    """f(1 - y) of the trade-off curve between N(0, 1) and N(mu, 1)."""
    return lambda y: float(special.ndtr(special.ndtri(y) - mu))


@lru_cache(maxsize=4096)
def fdp_bound(guesses: Guesses, *, delta: float, alpha: float) -> float:
    """Epsilon at `delta` of the largest Gaussian curve that one run refutes; 0 if none.

    For reporting. A job is refuted with the ledger's own curve, never with this family:
    a subsampled mechanism may leak more than the Gaussian of equal epsilon (AU27).
    """
    mu = _largest(lambda x: fdp_rejects(gaussian_inverse(x), guesses, alpha))
    return gaussian_epsilon(mu, delta)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """delta(epsilon) between N(0, 1) and N(mu, 1); 0 for mu <= 0."""
    if mu <= 0:
        return 0.0
    second = math.exp(epsilon + float(special.log_ndtr(-epsilon / mu - mu / 2)))
    return max(0.0, float(special.ndtr(-epsilon / mu + mu / 2)) - second)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon at `delta` between N(0, 1) and N(mu, 1). A mu <= 0 gives 0, never |mu|."""
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(high, mu) > delta:
        high *= 2
    return float(optimize.brentq(lambda e: gaussian_delta(e, mu) - delta, 0.0, high, xtol=1e-10))


def _largest(refutes: Callable[[float], bool]) -> float:
    if not refutes(0.0):
        return 0.0
    low, high = 0.0, EPSILON_MAX
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if refutes(middle) else (low, middle)
    return low


def clopper_pearson(successes: int, trials: int, alpha: float) -> tuple[float, float]:
    """Exact binomial interval; each side fails with probability at most alpha / 2."""
    if not 0 <= successes <= trials or trials < 1:
        raise AuditInvalid("successes", "needs 0 <= successes <= trials, trials > 0")
    low = stats.beta.ppf(alpha / 2, successes, trials - successes + 1) if successes else 0.0
    failures = trials - successes
    high = stats.beta.isf(alpha / 2, successes + 1, failures) if failures else 1.0
    return float(low), float(high)


def clopper_pearson_bound(
    *, hits: int, members: int, false_alarms: int, outsiders: int, delta: float, alpha: float
) -> float:
    """Lower bound on epsilon from independent trials: many runs, or coordinates of one call."""
    tpr_low = clopper_pearson(hits, members, alpha)[0]
    fpr_high = clopper_pearson(false_alarms, outsiders, alpha)[1]
    odds = max((tpr_low - delta) / fpr_high, (1 - fpr_high - delta) / (1 - tpr_low))
    return max(0.0, math.log(odds)) if odds > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its standard error and interval."""

    value: float
    standard_error: float
    low: float
    high: float


def auc(members: np.ndarray, outsiders: np.ndarray, alpha: float = 0.05) -> Estimate:
    """Mann-Whitney AUC, ties one half, with the interval of Hanley and McNeil (1982)."""
    n, k = len(members), len(outsiders)
    ranks = stats.rankdata(np.concatenate([members, outsiders]))
    area = float((ranks[:n].sum() - n * (n + 1) / 2) / (n * k))
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (n - 1) * (q1 - area**2) + (k - 1) * (q2 - area**2)
    error = math.sqrt(max(spread, 0.0) / (n * k))
    reach = float(stats.norm.isf(alpha / 2)) * error
    low, high = max(0.0, area - reach), min(1.0, area + reach)
    return Estimate(value=area, standard_error=error, low=low, high=high)


def tpr_at(
    false_positive_rate: float, members: np.ndarray, outsiders: np.ndarray, alpha: float = 0.05
) -> Estimate:
    """True positives at a low false-positive rate, on the empirical curve, never its hull.

    At the lowest threshold within that rate; the interval is exact binomial there.
    """
    allowed = math.floor(false_positive_rate * len(outsiders) + 1e-9)
    threshold = np.sort(outsiders)[::-1][allowed] if allowed < len(outsiders) else -np.inf
    hits = int((members > threshold).sum())
    low, high = clopper_pearson(hits, len(members), alpha)
    rate = hits / len(members)
    error = math.sqrt(rate * (1 - rate) / len(members))
    return Estimate(value=rate, standard_error=error, low=low, high=high)


def exposure(members: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """log2 of the reference size minus log2 of each member's rank in it, in bits (AU24).

    Higher scores mean membership; ties count against the member.
    """
    ordered = np.sort(reference)
    above = len(ordered) - np.searchsorted(ordered, members, side="left")
    return np.asarray(np.log2(len(ordered)) - np.log2(np.clip(above + 1, 1, len(ordered))))
