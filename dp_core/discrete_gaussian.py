"""Exact draws of the discrete Gaussian, for noise on an integer grid (privacy.md G12).

Guarantee: each value has probability exp(-x^2 / 2 sigma^2) / sum_y exp(-y^2 / 2 sigma^2)
exactly, given uniform entropy. Every accept or reject compares integers; no floating-point
number takes part. Canonne, Kamath, Steinke 2004.00010: Algorithm 1 (`bernoulli_exp`),
Algorithm 2 (`_discrete_laplace`), Algorithm 3 (`discrete_gaussian`), vectorised.

Use. A group with noise std s_k has the public quantum gamma_k = s_k / GRID_QUANTA. Clipped
rows are rounded towards zero to multiples of it, so no norm grows and the bound C_k holds
without inflation; V is their int64 sum, in quanta, and gamma_k (V + N) is released.

Price. The charge is that of the continuous Gaussian, A1, at every integer order. With p the
discrete Gaussian on Z^d, mu in Z^d one patient's rounded row, L(x) = p(x - mu) / p(x):

    E_p[L^j] = sum_x exp(-(|x|^2 - 2 j <x, mu> + j |mu|^2) / 2 sigma^2) / Z
             = exp(j (j-1) |mu|^2 / 2 sigma^2) * sum_x exp(-|x - j mu|^2 / 2 sigma^2) / Z

and the last sum is Z, because x -> x - j mu maps the lattice onto itself: this is where mu
must be an integer vector. A1 is the binomial expansion of E_p[(1 - q + q L)^alpha] in these
moments, so at integer alpha it is the divergence of (with the patient | without) itself.

The other direction is never larger (1908.10530 for the continuous case). x -> mu - x maps
the lattice onto itself and swaps p(x) with p(x - mu), so L >= 1 is paired with 1/L. Put
a = 1 + q (L-1), b = 1 - q (L-1) / L, h(u) = u^alpha - u^(1-alpha): the pair adds a multiple
of h(a) + L h(b) to the difference of the moments. L (1-b) = a-1, and h(u) / (u-1) =
sinh((alpha - 1/2) t) / sinh(t/2) at t = log u is even and grows with |t|; a b >= 1 gives
|log b| <= log a, hence h(a) + L h(b) >= 0.

A1 grows with |mu|, and over all groups |mu|^2 <= sum_k (C_k / gamma_k)^2 =
(GRID_QUANTA / noise_multiplier)^2 (G2). Other patients shift both laws by the same integer
vector, which changes no divergence; the mixture over who else is drawn is covered by
quasi-convexity, as for the continuous Gaussian.

The dominating pair behind a PLD certificate is proven for the continuous Gaussian only: the
grid goes with the RDP filter, never with a PLD.
"""

from __future__ import annotations

import os

import numpy as np

from dp_core.errors import InvariantViolation
from dp_core.mechanism import GRID_QUANTA
from dp_core.sampling import EntropySource

SIGMA_MAX = 2**16  # keeps (2 sigma^2 k) 2^16 below 2^63 in every round k that can be reached
_WORD_BITS = 16
_BLOCK = 1 << 15
_CANDIDATES_PER_DRAW = 2.15  # 1 / (0.632 accepted as Laplace * 0.76 as Gaussian), rounded up
_MAGNITUDE_MAX = 2**31  # its square still fits; beyond it with probability < exp(-2^14)


def discrete_gaussian(
    length: int, entropy: EntropySource = os.urandom, *, sigma: int = GRID_QUANTA
) -> np.ndarray:
    """Independent draws with parameter sigma^2; int64, shape (length,).

    Algorithm 3 with Laplace scale t = sigma: a candidate y is kept with probability
    exp(-(|y| - sigma)^2 / 2 sigma^2), a fraction of small integers. The variance lies
    below sigma^2 by 8 pi^2 sigma^2 exp(-2 pi^2 sigma^2) relative: 2e-7 at sigma = 1, 2e-32
    at sigma = 2. The price holds for the parameter, not for the variance.

    Args:
        entropy: independent uniform bytes; the kernel's unless a test says otherwise.
        sigma: integer, 1 to `SIGMA_MAX`.
    """
    if not 1 <= sigma <= SIGMA_MAX:
        raise InvariantViolation(f"sigma of the discrete Gaussian is outside 1..{SIGMA_MAX}.")
    drawn = np.empty(length, dtype=np.int64)
    filled = 0
    while filled < length:
        wanted = min(length - filled, _BLOCK)
        count = int(_CANDIDATES_PER_DRAW * wanted) + 16
        # Candidates are independent and judged one by one, so any prefix of the kept is fair.
        kept = _kept_candidates(count, sigma, entropy)[:wanted]
        drawn[filled : filled + kept.size] = kept
        filled += kept.size
    return drawn


def bernoulli(numerators: np.ndarray, denominator: int, entropy: EntropySource) -> np.ndarray:
    """True with probability numerators / denominator, exactly; bool, same shape.

    X = (w + X') / 2^16 with a 16-bit word w and a uniform X' in [0, 1). X < a/b is certain
    from w unless 0 < a 2^16 - w b < b; then X' is compared with that number over b in the
    same way.

    Args:
        numerators: int64, shape (n,), each in [0, denominator].
        denominator: at most 2^46.
    """
    words = _words(numerators.size, entropy)
    margin = (numerators << _WORD_BITS) - words * denominator
    accepted: np.ndarray = margin >= denominator
    unsure = np.flatnonzero((margin > 0) & ~accepted)
    if unsure.size:
        accepted[unsure] = bernoulli(margin[unsure], denominator, entropy)
    return accepted


def bernoulli_exp(
    numerators: np.ndarray, denominator: int, entropy: EntropySource, *, first_round: int = 1
) -> np.ndarray:
    """True with probability exp(-numerators / denominator), exactly; bool, same shape.

    Algorithm 1, case gamma <= 1: with K the first k at which a coin of probability gamma/k
    fails, P(K odd) = sum_k (-gamma)^k / k! = exp(-gamma).

    Args:
        numerators: int64, shape (n,), each in [0, denominator].
        first_round: 2 leaves out the first coin, which is sure where numerator = denominator.
    """
    accepted = np.zeros(numerators.size, dtype=bool)
    alive, k = np.arange(numerators.size), first_round
    while alive.size:
        goes_on = bernoulli(numerators, denominator * k, entropy)
        if k % 2:
            accepted[alive[~goes_on]] = True
        alive, numerators = alive[goes_on], numerators[goes_on]
        k += 1
    return accepted


def _kept_candidates(count: int, sigma: int, entropy: EntropySource) -> np.ndarray:
    """What Algorithm 3 keeps of about `count` Laplace candidates, in order."""
    candidates = _discrete_laplace(count, sigma, entropy)
    magnitude = np.abs(candidates)
    if magnitude.size and int(magnitude.max()) >= _MAGNITUDE_MAX:
        raise InvariantViolation("A candidate of the discrete Gaussian is outside 31 bits.")
    square = (magnitude - sigma) ** 2
    denominator = 2 * sigma * sigma
    whole = square // denominator
    kept = bernoulli_exp(square - whole * denominator, denominator, entropy)
    # exp(-(whole + rest)) = exp(-rest) * exp(-1)^whole: `whole` further coins, all to hold.
    pending = np.flatnonzero(kept & (whole > 0))
    while pending.size:
        holds = _bernoulli_exp_of_one(pending.size, entropy)
        kept[pending[~holds]] = False
        whole[pending] -= 1
        pending = pending[holds & (whole[pending] > 0)]
    return np.asarray(candidates[kept])


def _discrete_laplace(count: int, scale: int, entropy: EntropySource) -> np.ndarray:
    """Algorithm 2 on `count` tries, P(x) ~ exp(-|x| / scale); refused tries are left out."""
    remainder = _words(count, entropy) & ((1 << (scale - 1).bit_length()) - 1)
    remainder = remainder[remainder < scale]  # uniform on 0 .. scale-1
    remainder = remainder[bernoulli_exp(remainder, scale, entropy)]
    magnitude = remainder + scale * _exp_geometric(remainder.size, entropy)
    is_negative = (_words(magnitude.size, entropy) & 1).astype(bool)
    is_second_zero = is_negative & (magnitude == 0)
    return np.asarray(np.where(is_negative, -magnitude, magnitude)[~is_second_zero])


def _exp_geometric(count: int, entropy: EntropySource) -> np.ndarray:
    """How many coins of probability exp(-1) succeed before one fails; int64, (count,)."""
    successes = np.zeros(count, dtype=np.int64)
    alive = np.arange(count)
    while alive.size:
        alive = alive[_bernoulli_exp_of_one(alive.size, entropy)]
        successes[alive] += 1
    return successes


def _bernoulli_exp_of_one(count: int, entropy: EntropySource) -> np.ndarray:
    return bernoulli_exp(np.ones(count, dtype=np.int64), 1, entropy, first_round=2)


def _words(count: int, entropy: EntropySource) -> np.ndarray:
    """Uniform 16-bit words; int64, shape (count,)."""
    return np.frombuffer(entropy(2 * count), dtype=np.uint16).astype(np.int64)
