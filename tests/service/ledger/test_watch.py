"""The watch halts the ledger within one turn of a break, and reads only what is new."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, text

from service.dispatcher import Dispatcher
from service.error_table import as_service_error
from service.ledger import anomalies, guard
from service.ledger import service as ledger
from service.ledger.errors import LedgerHalted
from service.ledger.watch import Watch
from service.settings import Settings
from tests.service.ledger import world as w


@pytest.fixture
def world(tmp_path: Path) -> Iterator[w.World]:
    with w.sqlite_database(tmp_path) as db:
        yield w.open_world(db)


def test_a_balance_edited_behind_the_service_halts_it_within_one_turn(
    world: w.World, tmp_path: Path
) -> None:
    with world.db.transaction() as session:
        w.reserve(session, world, job="ftjob-a")
        w.start(session, "ftjob-a")
    dispatcher = Dispatcher(db=world.db, settings=Settings(data_dir=tmp_path), ring=None)
    gauges = tmp_path / "metrics" / "rldp.prom"
    assert dispatcher.watch() == 0
    assert 'rldp_invariant_broken{name="I1"} 0.0' in gauges.read_text()
    with world.db.transaction() as session:
        session.execute(
            text("UPDATE account SET balance_pico = balance_pico + 1 WHERE kind = 'budget'")
        )
    assert dispatcher.watch() > 0
    lines = gauges.read_text().splitlines()
    assert 'rldp_invariant_broken{name="I1"} 1.0' in lines
    assert 'rldp_invariant_broken{name="I4"} 1.0' in lines
    assert "rldp_ledger_halted 1.0" in lines
    with pytest.raises(LedgerHalted) as refused, world.db.transaction() as session:
        w.reserve(session, world, job="ftjob-b")
    answer = as_service_error(refused.value)
    assert answer is not None and (answer.status, answer.code) == (503, "ledger_halted")
    with pytest.raises(LedgerHalted, match="invariant"), world.db.transaction() as session:
        ledger.charge_window(session, job_id="ftjob-a", epoch=1, charge=w.window(0))
    with world.db.reading() as session:
        found = anomalies.anomalies_of(session, world.tenant)
    assert {a.subject for a in found if a.kind == "invariant_broken"} == {"I1", "I4"}


def test_a_later_look_reads_only_new_entries_and_stays_quiet(world: w.World) -> None:
    watch = Watch(db=world.db)
    assert watch.turn() == 0
    with world.db.transaction() as session:
        w.reserve(session, world, job="ftjob-a")
    loaded: list[int] = []
    from service.ledger.models import Entry

    def note(entry: Entry, _context: object) -> None:
        loaded.append(entry.idx)

    event.listen(Entry, "load", note)
    try:
        assert watch.turn() == 0
    finally:
        event.remove(Entry, "load", note)
    assert len(loaded) == 1
    with world.db.reading() as session:
        assert guard.state(session)["state"] == "open"
