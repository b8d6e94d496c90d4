"""Own randomness for code that can only draw from the process-wide generators.

stable-baselines3 samples actions from torch's default generator and replay rows from
numpy's. `own_randomness` puts a seeded state in place for one call and puts the
caller's state back, also when the call raises. Each call is named (seed, purpose,
index), so a policy needs no generator state in its checkpoint: asked the same
question again, it draws the same numbers.

Where it applies: one thread. Nothing else may draw from the process-wide generators
meanwhile; noise and sampling of `dp_core` have generators of their own. Only torch's CPU
generator is touched; a policy never runs on another device.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_randomness(seed: int, purpose: str, index: int) -> Iterator[None]:
    """Makes (seed, purpose, index) the source of all draws inside the block."""
    torch_state = torch.default_generator.get_state()
    numpy_state = np.random.get_state()
    python_state = random.getstate()
    word = _word(seed, purpose, index)
    try:
        torch.default_generator.manual_seed(word)
        np.random.seed(word % 2**32)
        random.seed(word)
        yield
    finally:
        torch.default_generator.set_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _word(seed: int, purpose: str, index: int) -> int:
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
