"""Balances and "epsilon so far" are read from what is open, and still tell the whole."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event, select, text

from dp_core.accounting import epsilon_so_far
from dp_core.events import PoissonGaussian
from service.database import Database
from service.ids import new_id
from service.ledger import repository, views
from service.ledger import service as ledger
from service.ledger.models import SpendCurve, SpendTally
from tests.service.ledger import world as w


def run_job(db: Database, world: w.World, *, windows: int, is_settled: bool) -> str:
    job, plan = new_id("ftjob-"), w.plan(steps=10 * windows, margin_steps=0)
    with db.transaction() as session:
        w.reserve(session, world, job=job, run_plan=plan)
        w.start(session, job)
    for number in range(windows):
        charge = w.window(number, steps=10, first_step=10 * number, run_plan=plan)
        with db.transaction() as session:
            ledger.charge_window(session, job_id=job, epoch=1, charge=charge)
        with db.transaction() as session:
            ledger.finish_window(session, job_id=job, epoch=1, window=number, steps_run=10)
    if is_settled:
        with db.transaction() as session:
            ledger.settle(
                session,
                job_id=job,
                final_state="cancelled",
                artifact_digests={},
                certificate_digest=None,
            )
    return job


def test_settled_and_open_jobs_count_once(db: Database) -> None:
    world, other = w.open_world(db), w.open_world(db)
    run_job(db, other, windows=3, is_settled=False)
    for windows, is_settled in ((1, True), (2, True), (1, False)):
        run_job(db, world, windows=windows, is_settled=is_settled)
    with db.reading() as session:
        budget = ledger.epsilon_limits(session, world.population)
        replayed = views.budget_as_of(session, world.population, budget.idx or 0)
        charged = session.scalars(
            select(SpendTally).where(SpendTally.population_id == world.population)
        ).all()
        curves = session.scalars(
            select(SpendCurve).where(SpendCurve.population_id == world.population)
        ).all()
    (block,) = budget.blocks
    assert budget.blocks == replayed.blocks  # the entries alone say the same
    assert block.held_pico + block.spent_pico + block.free_pico == budget.limit_pico
    assert sorted(row.folded for row in charged) == [0, 1, 1]
    assert [curve.block for curve in curves] == ["train"]
    whole = [
        PoissonGaussian(q=row.q, noise_multiplier=row.noise_multiplier, steps=row.steps)
        for row in charged
    ]
    assert sum(event.steps for event in whole) == 40
    assert block.epsilon_so_far == epsilon_so_far(whole, budget.delta or "")


def test_settling_twice_folds_once(db: Database) -> None:
    world = w.open_world(db)
    job = run_job(db, world, windows=1, is_settled=True)
    with db.reading() as session:
        before = ledger.epsilon_limits(session, world.population).blocks
    with db.transaction() as session:
        ledger.settle(
            session,
            job_id=job,
            final_state="cancelled",
            artifact_digests={},
            certificate_digest=None,
        )
    with db.reading() as session:
        assert ledger.epsilon_limits(session, world.population).blocks == before


def test_ended_escrows_are_not_read_again(db: Database) -> None:
    """The statement that balances really ask is answered from the index of what is in use."""
    world = w.open_world(db)
    run_job(db, world, windows=1, is_settled=True)
    asked: list[tuple[str, Any]] = []

    def note(*seen: Any) -> None:
        _, _, statement, parameters, _, _ = seen
        asked.append((statement, parameters))

    with db.transaction() as session:  # for SET LOCAL
        if not db.is_sqlite:  # a table of ten rows is read whole, whatever the index
            session.execute(text("SET LOCAL enable_seqscan = off"))
        event.listen(db.engine, "before_cursor_execute", note)
        repository.balances(session, world.population)
        event.remove(db.engine, "before_cursor_execute", note)
        statement, parameters = asked[-1]  # a BEGIN may stand before it
        explain = "EXPLAIN QUERY PLAN " if db.is_sqlite else "EXPLAIN "
        steps = session.connection().exec_driver_sql(explain + statement, parameters).all()
    assert "ix_account_population_id_in_use" in str(steps)
