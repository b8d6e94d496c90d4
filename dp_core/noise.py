"""Gaussian noise that cannot be drawn without a durable charge.

`NoiseSource.draw` consumes one step of a permit, so that noise without a charge cannot
be written in code (privacy.md N2). `OsEntropySource` is the production source (N3):
kernel entropy, Box-Muller in float64, the sum of four draws divided by two.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod

import numpy as np
import torch

from dp_core.errors import PermitExhausted
from dp_core.ports import ChunkPermit, QueryPermit

_DRAWS = 4


class NoiseSource(ABC):
    """Hands out unit Gaussian vectors against permits, each step of a permit once."""

    name: str
    is_private: bool

    def __init__(self) -> None:
        self._drawn: dict[tuple[str, int, int], int] = {}

    def draw(self, permit: ChunkPermit, length: int) -> torch.Tensor:
        """The noise of one step: float32, shape (length,), unit variance.

        Raises:
            PermitExhausted: every step of the permit was drawn; nothing is drawn.
        """
        self._consume(("chunk", permit.attempt, permit.chunk_index), permit.steps)
        return self._gaussian(length)

    def draw_query(self, permit: QueryPermit, length: int) -> torch.Tensor:
        """The noise of one validation query: float32, shape (length,), unit variance."""
        self._consume(("query", permit.attempt, permit.query_index), 1)
        return self._gaussian(length)

    def _consume(self, key: tuple[str, int, int], allowed: int) -> None:
        used = self._drawn.get(key, 0)
        if used >= allowed:
            raise PermitExhausted(f"All {allowed} charged draws of {key[0]} {key[2]} are used.")
        self._drawn[key] = used + 1

    @abstractmethod
    def _gaussian(self, length: int) -> torch.Tensor: ...


class OsEntropySource(NoiseSource):
    """Kernel entropy; no seed, no state that could leak or repeat."""

    name = "os_entropy"
    is_private = True

    def _gaussian(self, length: int) -> torch.Tensor:
        pairs = (length * _DRAWS + 1) // 2
        words = np.frombuffer(os.urandom(pairs * 16), dtype=np.uint64).reshape(2, pairs)
        # 53 random bits in (0, 1]; zero is excluded so that the logarithm is finite.
        uniform = ((words >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log(uniform[0]))
        angle = 2.0 * math.pi * uniform[1]
        normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        summed = normal[: length * _DRAWS].reshape(_DRAWS, length).sum(axis=0)
        return torch.from_numpy((summed / math.sqrt(_DRAWS)).astype(np.float32))


class SeededSource(NoiseSource):
    """For tests only: repeatable, and therefore without any privacy (N5)."""

    name = "seeded_test"
    is_private = False

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def _gaussian(self, length: int) -> torch.Tensor:
        return torch.randn(length, generator=self._generator)
