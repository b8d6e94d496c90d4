"""What a training step needs of the processes that share it (privacy.md 7).

Rank 0 leads: it alone owns sampler and noise source and talks to journal, policy,
checkpoints and progress. The others hear its orders and take their slots of each draw.
`SINGLE` is the one process of an ordinary run; `dp_core.distributed` has the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from dp_core.errors import InvariantViolation


@dataclass(frozen=True, kw_only=True)
class Order:
    """What rank 0 told: a kind, public values, and bytes such as released weights."""

    kind: str
    document: Mapping[str, Any]
    blob: bytes


class Ranks(Protocol):
    """The processes of one job. Every method is called by all of them, in the same order.

    Ranks and the links between them lie inside the privacy boundary: drawn indices and
    un-noised partial sums of some ranks travel there. The sum of all ranks exists nowhere
    without its noise (W3).
    """

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def tell(
        self, kind: str, document: Mapping[str, object] | None = None, blob: bytes = b""
    ) -> None:
        """Rank 0 only: sends an order. `document` is JSON; no bytes are ever unpickled."""
        ...

    def hear(self) -> Order:
        """The other ranks: waits for the next order.

        Raises:
            RankLost: rank 0 went silent.
        """
        ...

    def deal(self, draw: Callable[[], np.ndarray]) -> np.ndarray:
        """This rank's slots of one draw: rows w, w + W, ... of what rank 0 drew (W1).

        `draw` gives int64 (S, 1 + R), S a multiple of W, and is called on rank 0 alone.
        Every rank gets S / W slots, so message and work show S and nothing finer. Secret.
        """
        ...

    def add_up(self, vector: torch.Tensor) -> None:
        """Replaces `vector` by its sum over the ranks, bit-equal on all of them.

        Rank 0's part carries the noise already.

        Raises:
            RankLost: a rank dropped out or went silent; `vector` holds zeros.
        """
        ...

    def drop_out(self, vector: torch.Tensor) -> None:
        """Takes part in the pending `add_up` of the others so that all of it fails at once.

        What the others receive is masked, hence no un-noised sum even if rank 0 drops out.
        Never raises.
        """
        ...

    def agree(self, fingerprint: Callable[[], bytes]) -> None:
        """Compares 32-byte fingerprints.

        Raises:
            RanksDiffer: on every rank, if any two differ.
        """
        ...


class SingleProcess:
    """One process that does everything."""

    rank = 0
    world_size = 1

    def tell(
        self, kind: str, document: Mapping[str, object] | None = None, blob: bytes = b""
    ) -> None: ...

    def hear(self) -> Order:
        raise InvariantViolation("A single process has nobody to listen to.")

    def deal(self, draw: Callable[[], np.ndarray]) -> np.ndarray:
        return draw()

    def add_up(self, vector: torch.Tensor) -> None: ...

    def drop_out(self, vector: torch.Tensor) -> None: ...

    def agree(self, fingerprint: Callable[[], bytes]) -> None: ...


SINGLE = SingleProcess()
