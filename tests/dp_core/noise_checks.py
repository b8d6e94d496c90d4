"""What released noise must look like, group by group (NOISE; M1, M2, M21, M22).

Takes the noise itself, so that a source, an engine fed with zero sums and a mutated engine
are judged by the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from scipy import stats

LENGTH_MIN = 2000  # below it the wrong scales 2/3 and 3/2 are not told apart at 1e-6
P_RIGHT_MIN = 1e-3
P_WRONG_MAX = 1e-6
WRONG_SCALES = (2 / 3, 3 / 2)
CORRELATION_SIGMAS = 4.5
DISTINCT_LOOKED_AT = 20_000
DISTINCT_SHARE_MIN = 0.99  # float32 gives 0.9998; fp16 and bf16 give under 0.9 from 2000 on


def noise_failures(vectors: Sequence[torch.Tensor], stds: Sequence[float]) -> list[str]:
    """Reasons why `vectors` are not independent N(0, std^2); empty when they are.

    Per vector: a two-sided Kolmogorov-Smirnov test gives p > 1e-3 at the stated std and
    p < 1e-6 at 2/3 and 3/2 of it; lag-one correlation is within 4.5 / sqrt(n). Per pair of
    vectors: correlation within 4.5 / sqrt(n) of the shorter. float32, drawn as such and not
    widened from a shorter type; or int64 on the grid.

    False alarm on sound noise: 1e-3 per vector from the KS test, 7e-6 per correlation;
    for K vectors at most K * 1.01e-3 + K (K-1) / 2 * 7e-6.
    """
    failures: list[str] = []
    units: list[torch.Tensor] = []
    for index, (vector, std) in enumerate(zip(vectors, stds, strict=True)):
        if vector.numel() < LENGTH_MIN:
            raise ValueError(f"vector {index} has under {LENGTH_MIN} coordinates")
        if vector.dtype not in (torch.float32, torch.int64):
            failures.append(f"vector {index} is {vector.dtype}")
        if vector.dtype == torch.float32 and not _is_finely_grained(vector):
            failures.append(f"vector {index} was drawn in less than float32")
        units.append(vector.detach().double().cpu().reshape(-1) / std)
        failures += [f"vector {index}: {reason}" for reason in _vector_failures(units[-1])]
    for (i, a), (j, b) in combinations(enumerate(units), 2):
        length = min(a.numel(), b.numel())
        if not _is_uncorrelated(a[:length], b[:length]):
            failures.append(f"vectors {i} and {j} are correlated")
    return failures


def assert_noise(draw: Callable[[], Sequence[torch.Tensor]], stds: Sequence[float]) -> None:
    """`noise_failures` for noise that cannot be seeded: two fresh draws, one has to pass.

    False alarm: the square of the figure above, 1e-6 for one vector and 1e-4 for ten. Wrong
    noise fails both times.
    """
    first = noise_failures(draw(), stds)
    if first:
        again = noise_failures(draw(), stds)
        assert not again, (first, again)


def _vector_failures(unit: torch.Tensor) -> list[str]:
    failures = []
    p_value = _ks(unit)
    if not p_value > P_RIGHT_MIN:
        failures.append(f"p = {p_value:.1e} at the stated std")
    for scale in WRONG_SCALES:
        p_value = _ks(unit / scale)
        if not p_value < P_WRONG_MAX:
            failures.append(f"p = {p_value:.1e} at {scale:.2f} of the stated std")
    if not _is_uncorrelated(unit[1:], unit[:-1]):
        failures.append("neighbouring coordinates are correlated")
    return failures


def _is_finely_grained(vector: torch.Tensor) -> bool:
    looked_at = vector.detach().reshape(-1)[:DISTINCT_LOOKED_AT]
    return looked_at.unique().numel() > DISTINCT_SHARE_MIN * looked_at.numel()


def _ks(unit: torch.Tensor) -> float:
    return float(stats.kstest(unit.numpy(), "norm").pvalue)


def _is_uncorrelated(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The means are known to be 0 and the stds 1, so the mean product is the estimate."""
    return abs(float((a * b).mean())) < CORRELATION_SIGMAS / math.sqrt(a.numel())
