"""Opacus' accountants on our events, against the vectors (VECTORS)."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from opacus.accountants import RDPAccountant

from dp_core.accounting import pld_epsilon
from dp_core.events import PoissonGaussian
from dp_core.second_opinion import history_of, prv_epsilon_upper

SECTIONS = ("constant_noise", "schedules")


@pytest.fixture(scope="module")
def vectors(shared: Path) -> dict[str, list[dict[str, Any]]]:
    return json.loads((shared / "vectors" / "accounting.json").read_text())  # type: ignore[no-any-return]


def events_of(case: dict[str, Any]) -> list[PoissonGaussian]:
    return [PoissonGaussian(**event) for event in case["events"]]


@pytest.mark.parametrize("section", SECTIONS)
def test_opacus_rdp_at_its_default_orders(vectors: dict[str, Any], section: str) -> None:
    for case in vectors[section]:
        accountant = RDPAccountant()
        accountant.history = history_of(events_of(case))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where its orders end
            epsilon = accountant.get_epsilon(float(case["delta"]))
        assert epsilon == pytest.approx(case["expect"]["opacus_rdp_epsilon"], rel=1e-6), case["id"]


@pytest.mark.parametrize(
    "section", [SECTIONS[0], pytest.param(SECTIONS[1], marks=pytest.mark.slow)]
)
def test_opacus_prv_upper_bound(vectors: dict[str, Any], section: str) -> None:
    for case in vectors[section]:
        epsilon = float(prv_epsilon_upper(events_of(case), case["delta"]))
        assert abs(epsilon - case["expect"]["prv_epsilon_upper"]) <= 2e-2, case["id"]


def test_the_second_opinion_stands_above_the_certificate_and_near_it() -> None:
    events = [PoissonGaussian(q="0.05", noise_multiplier="1.2", steps=60)]
    certified = float(pld_epsilon(events, "1e-5"))
    assert certified <= float(prv_epsilon_upper(events, "1e-5")) <= certified + 0.03


def test_parts_without_a_step_change_nothing() -> None:
    event = PoissonGaussian(q="0.05", noise_multiplier="1.2", steps=60)
    unused = PoissonGaussian(q="0.5", noise_multiplier="0.3", steps=0)
    assert history_of([unused, event]) == history_of([event]) == [(1.2, 0.05, 60)]
