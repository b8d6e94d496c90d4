"""Draw test: silent on Poisson draws, loud on everything else (SAMPLE, M14, M31)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dp_core.audit.draws import DrawTest

MEMBERS, RATE, STEPS = 500, 0.0256, 100
ALARM = 1e-8  # far below the gate's level after all its corrections


def p_of(draws: np.ndarray, rate: float = RATE) -> float:
    test = DrawTest(members=draws.shape[1], sampling_probability=str(rate))
    for row in draws:
        test.add(row)
    return test.p_value()


def poisson(generator: np.random.Generator, rate: float = RATE) -> np.ndarray:
    return generator.random((STEPS, MEMBERS)) < rate


def shuffled_epochs(generator: np.random.Generator) -> np.ndarray:
    """Every unit once per epoch, in batches of 12 or 13."""
    drawn, per_epoch = np.zeros((STEPS, MEMBERS), bool), 39
    for first in range(0, STEPS, per_epoch):
        parts = np.array_split(generator.permutation(MEMBERS), per_epoch)
        for offset, part in enumerate(parts[: STEPS - first]):
            drawn[first + offset, part] = True
    return drawn


def fixed_size_batches(generator: np.random.Generator) -> np.ndarray:
    drawn = np.zeros((STEPS, MEMBERS), bool)
    for row in drawn:
        row[generator.choice(MEMBERS, 13, replace=False)] = True
    return drawn


def blocks_of_units(generator: np.random.Generator) -> np.ndarray:
    """Fixed batches that come in random order: units travel together."""
    batches = np.array_split(generator.permutation(MEMBERS), 39)
    drawn = np.zeros((STEPS, MEMBERS), bool)
    for row in drawn:
        for batch in batches:
            row[batch] = generator.random() < RATE
    return drawn


def same_batch(generator: np.random.Generator) -> np.ndarray:
    return np.tile(poisson(generator)[0], (STEPS, 1))


def half_dropped(generator: np.random.Generator) -> np.ndarray:
    return poisson(generator) & (generator.random((STEPS, MEMBERS)) < 0.5)


def doubled(generator: np.random.Generator) -> np.ndarray:
    return poisson(generator, 2 * RATE)


def one_always_in(generator: np.random.Generator) -> np.ndarray:
    drawn = poisson(generator)
    drawn[:, 7] = True
    return drawn


@pytest.mark.parametrize(
    "broken",
    [
        shuffled_epochs,
        fixed_size_batches,
        blocks_of_units,
        same_batch,
        half_dropped,
        doubled,
        one_always_in,
    ],
    ids=lambda f: f.__name__,
)
def test_draws_that_are_not_poisson_are_noticed(
    broken: Callable[[np.random.Generator], np.ndarray],
) -> None:
    assert p_of(broken(np.random.default_rng(1))) < ALARM


@pytest.mark.parametrize(("rate", "members"), [(RATE, 500), (0.2, 60), (0.001, 100)])
def test_poisson_draws_have_p_values_no_smaller_than_uniform(rate: float, members: int) -> None:
    """100 runs: p <= 0.05 in at most 5 % and four standard errors (false alarm 3e-5)."""
    generator = np.random.default_rng(2)
    found = [p_of(generator.random((40, members)) < rate, rate) for _ in range(100)]
    assert np.mean(np.array(found) <= 0.05) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 100)


def test_without_draws_or_canaries_nothing_is_said() -> None:
    assert DrawTest(members=5, sampling_probability="0.1").p_value() == 1.0
    assert p_of(np.zeros((3, 0), bool)) == 1.0
    assert p_of(np.zeros((1, 1), bool)) == 1.0


def test_a_missing_canary_at_rate_one_is_impossible() -> None:
    drawn = np.ones((4, 5), bool)
    assert p_of(drawn, 1.0) == 1.0
    drawn[2, 3] = False
    assert p_of(drawn, 1.0) == 0.0
