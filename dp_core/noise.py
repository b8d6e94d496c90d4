"""Gaussian noise that cannot be drawn without a durable charge.

`NoiseSource.draw` consumes one step of a permit, so that noise without a charge cannot
be written in code (privacy.md N2). `OsEntropySource` is the production source (N3):
kernel entropy, Box-Muller in float64, the sum of four draws divided by two.

The vector of a permit's next step may be prepared in a thread while the current step is
computed: only for a step that is already charged, never across chunks, and dropped at
`close`. A source has no seed to set and no state to take: it refuses to be pickled or
copied, and its repr names its class alone (N5).
"""

from __future__ import annotations

import math
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NoReturn

import numpy as np
import torch

from dp_core.discrete_gaussian import discrete_gaussian
from dp_core.errors import PermitExhausted, PlanInvalid, PlanViolation
from dp_core.ports import ChunkPermit, QueryPermit

_BLOCK = 1 << 14  # coordinates at a time: the work stays in the cache, memory stays small
_AHEAD_LENGTH_MIN = 1 << 14  # shorter vectors cost less than the thread that would draw them
_STATE_WORDS = 624  # of the Mersenne twister

_Fill = Callable[[int], torch.Tensor]
_Order = tuple[int, tuple[str, int, int], int, _Fill]  # process, permit, length, distribution


class _Preparation:
    """One vector drawn by a thread that ends with it."""

    def __init__(self, order: _Order) -> None:
        self.order = order
        self._vector: torch.Tensor | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="noise-ahead")
        self._thread.start()

    def _run(self) -> None:
        *_, length, fill = self.order
        try:
            self._vector = fill(length)
        except BaseException as error:  # handed to the step that asks for the vector
            self._error = error

    def take(self) -> torch.Tensor | None:
        """The vector, once finished; raises what its thread raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._vector

    def drop(self) -> None:
        self._thread.join()
        self._vector = None


class NoiseSource(ABC):
    """Hands out unit Gaussian vectors against permits, each step of a permit once.

    Used by one thread, the training loop; the thread it starts itself is not visible.
    """

    name: ClassVar[str]
    is_private: ClassVar[bool]
    _prepares_ahead: ClassVar[bool] = False

    def __init__(self) -> None:
        self._drawn: dict[tuple[str, int, int], int] = {}
        self._ahead: _Preparation | None = None

    def draw(self, permit: ChunkPermit, length: int) -> torch.Tensor:
        """The noise of one step: float32, shape (length,), unit variance.

        Raises:
            PermitExhausted: every step of the permit was drawn; nothing is drawn.
        """
        return self._step(permit, length, self._gaussian)

    def draw_integers(self, permit: ChunkPermit, length: int) -> torch.Tensor:
        """The noise of one step on an integer grid: int64, shape (length,).

        Discrete Gaussian of std `mechanism.GRID_QUANTA`; consumes a step as
        `draw` does.

        Raises:
            PermitExhausted: every step of the permit was drawn; nothing is drawn.
            PlanInvalid: this source has no exact entropy to draw integers from.
        """
        return self._step(permit, length, self._integers)

    def draw_query(self, permit: QueryPermit, length: int) -> torch.Tensor:
        """The noise of one validation query: float32, shape (length,), unit variance."""
        self._consume(("query", permit.attempt, permit.query_index), 1)
        return self._gaussian(length)

    def close(self, permit: ChunkPermit) -> None:
        """Ends a chunk: what was prepared is dropped and the permit gives no more noise."""
        self._drawn[_key(permit)] = permit.steps
        self._drop_ahead()

    def _step(self, permit: ChunkPermit, length: int, fill: _Fill) -> torch.Tensor:
        key = _key(permit)
        self._consume(key, permit.steps)
        # The process is part of the order: a child of fork must not use its parent's vector.
        order: _Order = (os.getpid(), key, length, fill)
        vector = self._take_ahead(order)
        if vector is None:
            vector = fill(length)
        has_next = self._drawn[key] < permit.steps
        if self._prepares_ahead and has_next and length >= _AHEAD_LENGTH_MIN:
            self._ahead = _Preparation(order)
        return vector

    def _consume(self, key: tuple[str, int, int], allowed: int) -> None:
        used = self._drawn.get(key, 0)
        if used >= allowed:
            raise PermitExhausted(f"All {allowed} charged draws of {key[0]} {key[2]} are used.")
        self._drawn[key] = used + 1

    def _take_ahead(self, order: _Order) -> torch.Tensor | None:
        ahead = self._ahead
        if ahead is None or ahead.order != order:
            self._drop_ahead()
            return None
        self._ahead = None
        return ahead.take()

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.drop()
            self._ahead = None

    @abstractmethod
    def _gaussian(self, length: int) -> torch.Tensor: ...

    def _integers(self, length: int) -> torch.Tensor:
        raise PlanInvalid("noise_source", f"{self.name} draws no exact integers", "Use os_entropy.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("A noise source is neither pickled nor copied: make one per attempt.")

    def __getstate__(self) -> NoReturn:
        raise TypeError("A noise source gives no state away: make one per attempt.")


class OsEntropySource(NoiseSource):
    """Kernel entropy; no seed, no state that could leak or repeat (N3).

    Residual (G12): values are float64 sums rounded to float32. A single Box-Muller draw
    ends at 8.57, where the tail has 1e-17 left; the four draws behind one value come from
    four pairs, so that no two of them share a radius.
    """

    name = "os_entropy"
    is_private = True
    _prepares_ahead = True

    def _gaussian(self, length: int) -> torch.Tensor:
        return _in_blocks(length, lambda count: _four_draw_normals(count, self._entropy))

    def _integers(self, length: int) -> torch.Tensor:
        return torch.from_numpy(discrete_gaussian(length, self._entropy))

    def _entropy(self, length: int, /) -> bytes:
        return os.urandom(length)


class TorchGeneratorSource(NoiseSource):
    """torch's Mersenne twister, seeded by the OS in the process that draws (N3, N4).

    Faster than kernel entropy and weaker: its future follows from enough of its past, and
    where a group's sum is zero a release shows the noise itself. Only for a plan that names
    it; the certificate then carries the reason `generator_not_os_entropy`.

    `manual_seed` keeps 32 bits of its argument on the CPU, few enough to be tried out, so
    the whole state is filled from the OS instead. Draws are float64: torch's float32
    normals end at 5.77, which a neighbour's shift would pass visibly.
    """

    name = "torch_generator"
    is_private = True
    _prepares_ahead = True

    def __init__(self) -> None:
        super().__init__()
        self._generator = _os_seeded_generator()
        self._process = os.getpid()

    def _gaussian(self, length: int) -> torch.Tensor:
        if self._process != os.getpid():  # a child of fork would repeat its parent's noise
            self._generator, self._process = _os_seeded_generator(), os.getpid()
        return _in_blocks(
            length,
            lambda count: torch.randn(
                count, dtype=torch.float64, generator=self._generator
            ).numpy(),
        )


class SeededSource(NoiseSource):
    """For tests only: repeatable, and therefore without any privacy (N5)."""

    name = "seeded_test"
    is_private = False

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)
        self._bytes = np.random.default_rng(seed).bytes

    def _gaussian(self, length: int) -> torch.Tensor:
        return torch.randn(length, generator=self._generator)

    def _integers(self, length: int) -> torch.Tensor:
        return torch.from_numpy(discrete_gaussian(length, lambda count: self._bytes(count)))


_PRIVATE_SOURCES: dict[str, type[OsEntropySource] | type[TorchGeneratorSource]] = {
    source.name: source for source in (OsEntropySource, TorchGeneratorSource)
}


def make_noise_source(name: str) -> NoiseSource:
    """A fresh source of the class that a plan's `noise_source` names; one per attempt.

    Raises:
        PlanInvalid: the name is no production source; a seeded one has no name here (N5).
    """
    source = _PRIVATE_SOURCES.get(name)
    if source is None:
        raise PlanInvalid(
            "noise_source",
            "neither os_entropy nor torch_generator",
            "Use os_entropy; noise takes no seed.",
        )
    return source()


def require_private(source: NoiseSource) -> None:
    """Refuses a source that production and certificates must not know (N5).

    Judges by class, not by `is_private`, which a subclass could claim.

    Raises:
        PlanViolation: `source` is not exactly one of the production classes.
    """
    if type(source) not in _PRIVATE_SOURCES.values():
        raise PlanViolation(
            "noise_source: repeatable or unknown noise keeps nothing private and gets no "
            "certificate. Use make_noise_source with the plan's noise_source."
        )


def _key(permit: ChunkPermit) -> tuple[str, int, int]:
    return ("chunk", permit.attempt, permit.chunk_index)


def _in_blocks(length: int, normals: Callable[[int], np.ndarray]) -> torch.Tensor:
    """float64 blocks of `normals(count)`, rounded to one float32 vector."""
    vector = torch.empty(length, dtype=torch.float32)
    values = vector.numpy()
    for start in range(0, length, _BLOCK):
        part = values[start : start + _BLOCK]
        part[:] = normals(part.size)
    return vector


def _four_draw_normals(count: int, entropy: Callable[[int], bytes]) -> np.ndarray:
    """Unit normals, each half the sum of four Box-Muller draws; float64, shape (count,)."""
    pairs = max(count, 2)  # a lone pair would give both its draws to one value
    words = np.frombuffer(entropy(32 * pairs), dtype=np.uint64).reshape(2, 2, pairs)
    # 53 random bits in (0, 1]; zero is excluded so that the logarithm is finite.
    uniform = (words >> np.uint64(11)).astype(np.float64)
    uniform += 1.0
    uniform *= 2.0**-53
    radius, angle = uniform
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle *= 2.0 * math.pi
    cosines = (radius * np.cos(angle)).sum(axis=0)
    radius *= np.sin(angle)
    # The sine of a pair goes to the neighbour: cos + sin of one pair is one draw, shifted.
    normals: np.ndarray = (cosines + np.roll(radius.sum(axis=0), 1)) / 2.0
    return normals[:count]


def _os_seeded_generator() -> torch.Generator:
    """A CPU generator whose whole state is kernel entropy."""
    generator = torch.Generator()
    state = generator.manual_seed(0).get_state()
    # Layout: seed (8 bytes), left and seeded (4 each), next (8), the state words (8 each).
    words = np.frombuffer(os.urandom(4 * _STATE_WORDS), dtype=np.uint32)
    state.numpy()[24 : 24 + 8 * _STATE_WORDS].view(np.uint64)[:] = words
    return generator.set_state(state)
