"""Seeded simulations end with every unit accounted for, and the verifier agrees (T2, T5).

One seed again: RLDP_SIM_SEED=17 pytest tests/service/ledger/test_simulation.py
Ten thousand, or any range of them: make test-histories SEEDS=0:10000
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.database import Database
from tests.service.ledger.long_histories import play_simulations, quick_database

SEEDS_QUICK, SEEDS_CI = 4, 500
SHARES = 10  # of the seeds of CI; every second share runs on the other database
ONE = os.environ.get("RLDP_SIM_SEED")


@pytest.fixture(params=["sqlite", "postgresql"])
def quick_db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with quick_database(request.param, tmp_path) as db:
        yield db


@pytest.mark.parametrize("quick_db", ["sqlite"], indirect=True)
def test_some_seeds_in_every_run(quick_db: Database, tmp_path: Path) -> None:
    seeds = range(SEEDS_QUICK) if ONE is None else range(int(ONE), int(ONE) + 1)
    play_simulations(quick_db, seeds, tmp_path)


@pytest.mark.ci
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("quick_db", "share"),
    [(("sqlite", "postgresql")[share % 2], share) for share in range(SHARES)],
    indirect=["quick_db"],
)
def test_five_hundred_seeds(quick_db: Database, share: int, tmp_path: Path) -> None:
    each = SEEDS_CI // SHARES
    first = SEEDS_QUICK + share * each
    play_simulations(quick_db, range(first, first + each), tmp_path)
