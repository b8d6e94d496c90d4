"""Own randomness: reproducible inside, without a trace outside."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from controller.randomness import own_randomness
from tests.controller.cases import global_state


def draws(seed: int, purpose: str, index: int) -> tuple[float, float, float]:
    with own_randomness(seed, purpose, index):
        return float(torch.rand(())), float(np.random.rand()), random.random()


def test_same_name_gives_the_same_draws() -> None:
    assert draws(3, "exploration", 5) == draws(3, "exploration", 5)


@pytest.mark.parametrize(
    "other", [(4, "exploration", 5), (3, "training", 5), (3, "exploration", 6)]
)
def test_each_part_of_the_name_counts(other: tuple[int, str, int]) -> None:
    pairs = zip(draws(3, "exploration", 5), draws(*other), strict=True)
    assert all(ours != theirs for ours, theirs in pairs)


def test_callers_generators_are_put_back_even_after_an_error() -> None:
    before = global_state()
    with pytest.raises(ZeroDivisionError), own_randomness(1, "exploration", 0):
        torch.rand(3)
        np.random.rand(3)
        random.random()
        raise ZeroDivisionError
    assert global_state() == before
