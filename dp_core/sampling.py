"""Poisson draws of patients, and microbatches of constant shape.

Every patient enters a draw independently (S1): a fresh 64-bit word w of kernel entropy,
in iff (w >> 11) < floor(q * 2^53). The realised rate is never above q. The number drawn
is secret; an empty draw is a step like any other (S3).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Protocol

import numpy as np

from dp_core.errors import PlanInvalid
from dp_core.events import decimal_of
from dp_core.telemetry import Raw


class EntropySource(Protocol):
    """A stream of random bytes of its own (N4)."""

    def __call__(self, length: int, /) -> bytes: ...


class PoissonSampler:
    """Independent inclusion of each of `raw_population_size` patients at rate q.

    Draws and row choice read two streams (N4). Both are the kernel's in production; tests
    may pass their own. There is no seed.
    """

    def __init__(
        self,
        *,
        sampling_probability: str,
        raw_population_size: int,
        entropy: EntropySource = os.urandom,
        row_entropy: EntropySource = os.urandom,
    ) -> None:
        rate = decimal_of(sampling_probability, field="sampling_probability")
        if not 0 < rate <= 1:
            raise PlanInvalid("sampling_probability", "outside (0, 1]")
        # Exact, then rounded down: a Decimal product of many digits would round up.
        self._threshold = np.uint64(int(Fraction(rate) * 2**53))
        self._raw_size = raw_population_size
        self._entropy = entropy
        self._row_entropy = row_entropy

    def draw(self) -> Raw[np.ndarray]:
        """Indices of the patients of one step. Secret, its length included."""
        words = np.frombuffer(self._entropy(8 * self._raw_size), dtype=np.uint64)
        return Raw(np.flatnonzero((words >> np.uint64(11)) < self._threshold))

    def pick(self, raw_choices: int, count: int) -> np.ndarray:
        """`count` of `raw_choices` row positions, uniform without replacement (L6)."""
        if raw_choices <= count:
            return np.arange(raw_choices)
        keys = np.frombuffer(self._row_entropy(8 * raw_choices), dtype=np.uint64)
        return np.sort(np.argsort(keys, kind="stable")[:count])


@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """Slots of one forward pass: (P, 1 + R) patient and row choice, -1 where free.

    A free slot is filled with a public dummy row.
    """

    raw_slots: np.ndarray
    is_last: bool  # noise is added after this one and no other (S5)


def padded(raw_drawn: np.ndarray, multiple: int) -> np.ndarray:
    """(n, ...) to (S, ...) with free slots, S the next multiple and at least one (S4).

    `multiple` is the slots that all ranks take at once: with it every rank runs the same
    number of microbatches, and S tells no more than that number.
    """
    rounds = max(1, -(-len(raw_drawn) // multiple))
    slots = np.full((rounds * multiple, *raw_drawn.shape[1:]), -1, dtype=np.int64)
    slots[: len(raw_drawn)] = raw_drawn
    return slots


def microbatches(raw_slots: np.ndarray, patients_per_microbatch: int) -> Iterator[Microbatch]:
    """Cuts padded slots into microbatches of exactly P slots."""
    parts = raw_slots.reshape(-1, patients_per_microbatch, *raw_slots.shape[1:])
    for index, part in enumerate(parts):
        yield Microbatch(raw_slots=part, is_last=index == len(parts) - 1)


def is_validation_patient(split_key: bytes, patient_id: str, fraction: str) -> bool:
    """Whether a patient belongs to the validation block (S6).

    HMAC-SHA256(population key, id) < fraction * 2^256: independent of counts and results,
    and the same for every dataset of the population.
    """
    digest = hmac.new(split_key, patient_id.encode(), hashlib.sha256).digest()
    return int.from_bytes(digest, "big") < int(Decimal(fraction) * 2**256)
