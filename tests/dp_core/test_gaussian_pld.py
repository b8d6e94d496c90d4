"""The figures of whole-array arithmetic are those of dp_accounting's unmodified accountant."""

from __future__ import annotations

import dp_accounting
import pytest
from dp_accounting import pld

from dp_core.accounting import PLD_INTERVAL, pld_epsilon, round_up, to_dp_event
from dp_core.events import PoissonGaussian
from dp_core.gaussian_pld import epsilon_of_events

Parts = tuple[tuple[str, str, int], ...]
COARSE = 1e-3  # what the library does point by point is the same at every width


def by_the_library(events: list[PoissonGaussian], delta: float, interval: float) -> float:
    accountant = pld.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        value_discretization_interval=interval,
    )
    for event in events:
        accountant.compose(to_dp_event(event))
    return float(accountant.get_epsilon(delta))


def made(parts: Parts) -> list[PoissonGaussian]:
    return [PoissonGaussian(q=q, noise_multiplier=s, steps=n) for q, s, n in parts]


@pytest.mark.parametrize(
    "parts",
    [
        (("0.01", "1.000", 120),),
        (("0.05", "1.694", 450),),
        (("0.0001", "0.500", 3000),),
        (("0.000000001", "0.700", 10),),
        (("0.5", "20.000", 7),),
        (("0.999", "3.000", 2),),
        (("0.3", "0.400", 1),),
        (("1", "4.000", 5),),
        (("0.02", "2.000", 40), ("0.02", "1.200", 30), ("0.01", "0.900", 1)),
    ],
)
@pytest.mark.parametrize("delta", [1e-5, 1e-9])
def test_epsilon_is_the_librarys(parts: Parts, delta: float) -> None:
    events = made(parts)
    ours, theirs = epsilon_of_events(events, delta, COARSE), by_the_library(events, delta, COARSE)
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-15)


def test_a_certificate_is_the_librarys_to_its_last_digit() -> None:
    from decimal import Decimal

    events = made((("0.01", "1.000", 120), ("0.01", "1.250", 40)))
    theirs = by_the_library(events, 1e-6, PLD_INTERVAL)
    assert pld_epsilon(events, "1e-6") == str(round_up(Decimal(repr(theirs))))


def test_no_step_costs_nothing_and_hopeless_noise_is_infinite() -> None:
    assert epsilon_of_events([], 1e-5, COARSE) == 0
    events = made((("0.9", "0.300", 2),))
    assert epsilon_of_events(events, 1e-300, COARSE) == by_the_library(events, 1e-300, COARSE)
