"""Partition canaries: public synthetic patients whose trace in a noised sum is exactly known.

A public seed cuts the coordinates of every clip group into m blocks with random signs.
Canary i is its block in each group, far above the clip norm. Supports are disjoint, so
that all m scores of a step are one `bincount` over the coordinates (audit.md 4).

This is the audit code's side; the trainer's is `dp_core.audit.units`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dp_core.audit.errors import AuditInvalid
from dp_core.events import canonical_digest
from dp_core.mechanism import GroupLayout, StepSettings
from dp_core.plan import ClipFactor

AMPLITUDE = 10.0  # canary norm per group in units of its clip norm: always clipped
# The clip rules of privacy.md G11, restated: the audit must not read them from the engine.
_CLIP_EPSILON, _STABILITY = 1e-6, 0.01


def layout_digest(layout: GroupLayout) -> str:
    """Digest of the clip groups, as the certificate and the manifest name them."""
    return canonical_digest({"ids": list(layout.ids), "sizes": list(layout.sizes)})


@dataclass(frozen=True, kw_only=True, eq=False)
class StepScores:
    """White-box scores of one released step.

    `values` x: (m, K) projections on the canaries in units of the journal's stds; N(0, 1)
    where the canary was not sampled, N(a, 1) where it was. `expected` a: (m, K), zero
    where a canary is absent from a group.
    """

    values: np.ndarray
    expected: np.ndarray


class PartitionCanaries:
    """Geometry of `canaries` gradient canaries on a layout; a function of public values.

    One stream of signs and blocks serves all groups, each taking as many coordinates as it
    has: two groups that were given the same noise then have correlated scores. A group
    with fewer coordinates than canaries carries the first ones only.
    """

    def __init__(self, layout: GroupLayout, *, canaries: int, construction_seed: str) -> None:
        if canaries < 1:
            raise AuditInvalid("canaries", "below 1")
        self.layout, self.canaries = layout, canaries
        longest = max(layout.sizes)
        blocks, signs = _partition(longest, canaries, construction_seed)
        self._positions = _positions(blocks)  # (runs, m)
        self._blocks, self._signs = blocks.reshape(-1)[:longest], signs.reshape(-1)[:longest]
        counts = {n: np.bincount(self._blocks[:n], minlength=canaries) for n in set(layout.sizes)}
        self._counts = np.stack([counts[n] for n in layout.sizes], axis=1)  # (m, K) coordinates
        self.is_carried: np.ndarray = self._counts > 0  # (m, K)

    def expected(self, settings: StepSettings) -> np.ndarray:
        """a: (m, K), a sampled canary's norm after the declared clip, in stds (AU17)."""
        clips = np.asarray(settings.clip_norms)
        stds = np.asarray(settings.noise_stds)
        raw = np.where(self.is_carried, AMPLITUDE * clips, 0.0)
        if settings.rule == "whitened":
            weights = clips / np.sqrt(np.asarray(settings.shares))
            joint = np.sqrt(((raw / weights) ** 2).sum(axis=1, keepdims=True))
            return np.asarray(raw * _factors(np.ones(()), joint, settings.factor) / stds)
        return np.asarray(raw * _factors(clips, raw, settings.factor) / stds)

    def scores(self, sums: Sequence[np.ndarray], settings: StepSettings) -> StepScores:
        """Projects a released step, one flat array (size_k,) per group, on all canaries.

        `settings` are those written in the journal; the sums are neither divided by the
        batch size nor touched by the optimiser. Cost: O(coordinates).
        """
        values = np.zeros((self.canaries, len(self.layout)))
        for k, (z, size) in enumerate(zip(sums, self.layout.sizes, strict=True)):
            if z.shape != (size,):
                raise AuditInvalid("sums", "needs one flat array of the group's size each")
            signed = self._signs[:size] * z
            totals = np.bincount(self._blocks[:size], weights=signed, minlength=self.canaries)
            values[:, k] = totals / np.sqrt(np.maximum(self._counts[:, k], 1))
        values /= np.asarray(settings.noise_stds)
        return StepScores(values=values, expected=self.expected(settings))

    def vectors(self, ids: np.ndarray, group: int, clip_norm: float) -> np.ndarray:
        """(n, size) float32: the unclipped vectors of canaries `ids` in one group.

        Norm 10 C; a row of zeros for a canary the group does not carry.
        """
        size = self.layout.sizes[group]
        positions = self._positions[: math.ceil(size / self.canaries), ids]  # (runs, n)
        run, row = np.nonzero(positions < size)
        columns = positions[run, row]
        lengths = np.sqrt(np.maximum(self._counts[ids, group], 1))
        vectors = np.zeros((len(ids), size), dtype=np.float32)
        vectors[row, columns] = self._signs[columns] * (AMPLITUDE * clip_norm / lengths[row])
        return vectors


def _factors(clips: np.ndarray, norms: np.ndarray, factor: ClipFactor) -> np.ndarray:
    """The declared factor of a gradient of each norm, restated from the specification (G11)."""
    if factor == "auto_s":
        return np.asarray(clips / (norms + _STABILITY))
    if factor == "psac":
        return np.asarray(clips / (norms + _STABILITY / (norms + _STABILITY)))
    return np.asarray(np.minimum(1.0, clips / (norms + _CLIP_EPSILON)))


def _partition(size: int, canaries: int, construction_seed: str) -> tuple[np.ndarray, np.ndarray]:
    """Block and sign of each coordinate, (runs, m) int32 and float32, the last run in full.

    Every run of m coordinates meets every block once, so that any prefix is cut into
    blocks whose sizes differ by at most one; the first run is in order. From SHAKE-256
    and a sort: the same on every platform and library version.
    """
    runs = math.ceil(size / canaries)
    stream = hashlib.shake_256(f"canary blocks {construction_seed}".encode())
    words = np.frombuffer(stream.digest(8 * runs * canaries), dtype="<u8").reshape(runs, canaries)
    blocks = np.argsort(words >> np.uint64(1), axis=1, kind="stable").astype(np.int32)
    blocks[0] = np.arange(canaries)
    signs = np.where(words & np.uint64(1), -1, 1).astype(np.float32)
    return blocks, signs


def _positions(blocks: np.ndarray) -> np.ndarray:
    """The coordinate of each block in each run, (runs, m): the inverse of `blocks`."""
    runs, canaries = blocks.shape
    coordinates = np.arange(runs * canaries, dtype=np.int32).reshape(runs, canaries)
    positions = np.empty_like(blocks)
    np.put_along_axis(positions, blocks, coordinates, axis=1)
    return positions


class MembershipScores:
    """Accumulates the pre-registered score of every canary over the released steps (AU20).

    sum_t ln(1 - q + q exp(y mu - mu^2 / 2)): the log likelihood ratio of "in" against
    "out", blind to which steps sampled the canary. A plain sum loses up to 45 % of a bound.
    """

    name = "log_likelihood_ratio"

    def __init__(self, *, canaries: int, sampling_probability: str) -> None:
        self._rate = float(sampling_probability)
        self.values: np.ndarray = np.zeros(canaries)

    def add(self, step: StepScores) -> None:
        half_energy = (step.expected**2).sum(axis=1) / 2  # mu^2 / 2
        exponent = (step.expected * step.values).sum(axis=1) - half_energy
        with np.errstate(divide="ignore"):  # log(1 - q) is -inf where q = 1
            self.values += np.logaddexp(np.log1p(-self._rate), np.log(self._rate) + exponent)
