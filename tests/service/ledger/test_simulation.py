"""Seeded simulations end with every unit accounted for, and the verifier agrees (T2, T5).

One seed again: RLDP_SIM_SEED=17 pytest tests/service/ledger/test_simulation.py
Ten thousand, on both databases: make test-faults (RLDP_SIM_SEEDS sets another number)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import event

from service.database import Database
from service.ledger import bundle, fsck
from service.ledger.publisher import make_publisher
from service.settings import Settings
from tests.deploy.test_verify_ledger import verifier
from tests.service.ledger import world as w
from tests.service.ledger.simulation import Simulation

SEEDS_QUICK, SEEDS_CI = 4, 500
SEEDS_MANY = int(os.environ.get("RLDP_SIM_SEEDS", "10000"))
SHARES = 10  # of the seeds of CI; every second share runs on the other database
ONE = os.environ.get("RLDP_SIM_SEED")


@pytest.fixture(params=["sqlite", "postgresql"])
def quick_db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Without waiting for the disk: a simulated kill loses no power."""
    with ExitStack() as stack:
        if request.param == "postgresql":
            yield stack.enter_context(w.postgres_database())
            return
        db = stack.enter_context(w.sqlite_database(tmp_path))
        event.listen(db.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))
        db.engine.dispose()
        yield db


def play(db: Database, seeds: range, folder: Path) -> None:
    world = w.found(db)
    for seed in seeds:
        simulation = Simulation(world, seed)
        try:
            simulation.run()
            simulation.check()
        except BaseException as failure:
            failure.add_note(f"replay with RLDP_SIM_SEED={seed}")
            raise
    with db.reading() as session:
        assert fsck.check_all(session) == []
    publisher = make_publisher(Settings(data_dir=folder), db)
    publisher.turn()
    path = folder / "bundle.zip"
    with (
        db.reading() as session,
        bundle.write_bundle(session, keys=publisher.keys, tenant_id=world.tenant) as archive,
    ):
        path.write_bytes(archive.read())
    assert verifier.main([str(path)]) == 0


@pytest.mark.parametrize("quick_db", ["sqlite"], indirect=True)
def test_some_seeds_in_every_run(quick_db: Database, tmp_path: Path) -> None:
    seeds = range(SEEDS_QUICK) if ONE is None else range(int(ONE), int(ONE) + 1)
    play(quick_db, seeds, tmp_path)


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
    play(quick_db, range(first, first + each), tmp_path)


@pytest.mark.faults
@pytest.mark.timeout(0)
def test_many_seeds(quick_db: Database, tmp_path: Path) -> None:
    play(quick_db, range(SEEDS_MANY), tmp_path)
