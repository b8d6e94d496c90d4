"""The noise checks themselves: sound noise passes, each kind of wrong noise is named."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from tests.dp_core.noise_checks import LENGTH_MIN, assert_noise, noise_failures

STDS = (0.5, 3.0)


def sound(seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5000, generator=generator) * std for std in STDS]


def test_sound_noise_passes() -> None:
    assert noise_failures(sound(), STDS) == []


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda a, b: (a * 2 / 3, b), "vector 0: p = .* at the stated std"),
        (lambda a, b: (a, b * 1.5), "vector 1: p = .* at the stated std"),
        (lambda a, b: (a, torch.zeros_like(b)), "vector 1: p = .* at the stated std"),
        (lambda a, b: (a, torch.full_like(b, torch.nan)), "vector 1: p = nan"),
        (lambda a, b: (a, a * 6), "vectors 0 and 1 are correlated"),
        (lambda a, b: (a.bfloat16(), b), "vector 0 is torch.bfloat16"),
        (lambda a, b: (a, b.half().float()), "vector 1 was drawn in less than float32"),
        (lambda a, b: ((a + a.roll(1)) / 2**0.5, b), "vector 0: neighbouring"),
    ],
    ids=["narrow", "wide", "none", "nan", "reused", "bf16", "widened", "smoothed"],
)
def test_wrong_noise_is_named(
    spoil: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]], reason: str
) -> None:
    failures = noise_failures(spoil(*sound()), STDS)
    assert any(re.match(reason, failure) for failure in failures), failures


def test_too_few_coordinates_are_refused_instead_of_passing() -> None:
    with pytest.raises(ValueError, match="under"):
        noise_failures([torch.randn(LENGTH_MIN - 1)], [1.0])


def test_noise_that_fails_twice_fails_and_once_does_not() -> None:
    wrong = [vector * 2 for vector in sound()]
    with pytest.raises(AssertionError):
        assert_noise(lambda: wrong, STDS)
    draws = iter([wrong, sound()])
    assert_noise(lambda: next(draws), STDS)
