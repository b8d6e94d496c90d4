"""The ledger under load: one limit and many clients, appends a second, and a long log.

    make bench-ledger            the bars of ledger.md 20 (T4), as lines and JSON
    python -m tests.benchmarks.ledger --help

Clients are threads of separate processes, each with a connection of its own, as API
processes and workers are. Every call is one durable transaction. PostgreSQL is the one of
RLDP_TEST_POSTGRES_URL; its figures hold for its disk.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import insert, select, update

from service.database import Database
from service.ids import new_id
from service.ledger import fsck, merkle
from service.ledger import service as ledger
from service.ledger.entries import Draft, body_of, leaf_of, log_of
from service.ledger.errors import BudgetExceeded
from service.ledger.models import Entry, LogHead, Reservation
from tests.service.ledger import world as w

UNITS = 1000  # jobs that fit the limit
APPENDS_BAR, P99_BAR_MS = 150.0, 500.0
ENTRIES_PER_JOB = 60
GROWTH_BAR = 1.5  # noise of a shared machine; a cost that grew with the log would be 1,000-fold


def world_of_units(db: Database) -> tuple[w.World, int, int]:
    """A hospital, the steps of one job, and how many such jobs fit: just over 1,000."""
    world = w.open_world(db)
    with db.reading() as session:
        view = ledger.epsilon_limits(session, world.population)
    price = ledger.price_of_step("0.01", "1.000", view.alpha_star or 0)
    steps = (view.limit_pico or 0) // (UNITS * price)
    return world, steps, (view.limit_pico or 0) // (steps * price)


def ask(url: str, world: dict[str, str], steps: int, clients: int, each: int) -> tuple[int, int]:
    """One process: (granted, refused) of its clients' reserves."""
    db = Database(url)
    place = w.World(db=db, stewards={}, jobs=[], **world)
    plan = w.plan(steps=steps, margin_steps=0)

    def client(_: int) -> tuple[int, int]:
        granted = refused = 0
        for _ in range(each):
            try:
                with db.transaction() as session:
                    w.reserve(session, place, job=new_id("ftjob-"), run_plan=plan)
                granted += 1
            except BudgetExceeded:
                refused += 1
        return granted, refused

    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(client, range(clients)))
    db.dispose()
    return sum(g for g, _ in answers), sum(r for _, r in answers)


def names_of(world: w.World) -> dict[str, str]:
    fields = ("tenant", "submitter", "auditor", "admin", "population")
    return {name: getattr(world, name) for name in fields}


def race(db: Database, *, processes: int, clients: int, each: int) -> dict[str, Any]:
    """Many clients on one limit: exactly what fits is granted."""
    world, steps, room = world_of_units(db)
    db.dispose()
    started = time.monotonic()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(ask, db.url, names_of(world), steps, clients, each)
            for _ in range(processes)
        ]
        answers = [job.result() for job in jobs]
    seconds = time.monotonic() - started
    granted, refused = (sum(column) for column in zip(*answers, strict=True))
    with db.reading() as session:
        broken = fsck.check_all(session)
        block = ledger.epsilon_limits(session, world.population).blocks[0]
    assert block.held_pico + block.spent_pico + block.free_pico == block.limit_pico
    return {
        "clients": processes * clients,
        "reserves": granted + refused,
        "fit": room,
        "granted": granted,
        "broken": len(broken),
        "seconds": round(seconds, 1),
        "met": granted == room and not broken,
    }


def charge_each(url: str, job: str, windows: int) -> list[float]:
    """Milliseconds of each append of one worker."""
    db = Database(url)
    plan, times = w.plan(steps=windows, margin_steps=0), []
    for number in range(windows):
        charge = w.window(number, steps=1, first_step=number, run_plan=plan)
        started = time.monotonic()
        with db.transaction() as session:
            ledger.charge_window(session, job_id=job, epoch=1, charge=charge)
        times.append(1000 * (time.monotonic() - started))
        with db.transaction() as session:
            started = time.monotonic()
            ledger.finish_window(session, job_id=job, epoch=1, window=number, steps_run=1)
        times.append(1000 * (time.monotonic() - started))
    db.dispose()
    return times


def charge_all(url: str, jobs: list[str], windows: int) -> list[float]:
    """One process: a thread for each of its workers."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        told = pool.map(charge_each, [url] * len(jobs), jobs, [windows] * len(jobs))
        return [one for answer in told for one in answer]


def appends(db: Database, *, processes: int, clients: int, windows: int) -> dict[str, Any]:
    """Workers that charge and finish windows of their own jobs in one log."""
    world, jobs = w.open_world(db), [new_id("ftjob-") for _ in range(clients)]
    plan = w.plan(steps=windows, margin_steps=0)
    for job in jobs:
        with db.transaction() as session:
            w.reserve(session, world, job=job, run_plan=plan)
            w.start(session, job)
    db.dispose()
    shares = [jobs[first::processes] for first in range(processes)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        # the interpreters start outside the time: a worker runs for hours, not for one charge
        list(pool.map(time.sleep, [0.5] * processes))
        started = time.monotonic()
        told = pool.map(charge_all, [db.url] * processes, shares, [windows] * processes)
        times = sorted(one for answer in told for one in answer)
        seconds = time.monotonic() - started
    rate, p99 = len(times) / seconds, times[math.ceil(0.99 * len(times)) - 1]
    return {
        "clients": clients,
        "appends": len(times),
        "per_second": round(rate, 1),
        "p99_ms": round(p99, 1),
        "met": rate >= APPENDS_BAR and p99 <= P99_BAR_MS,
    }


def lengthen(db: Database, world: w.World, size: int) -> None:
    """Fills the log up to `size` with refusals, chained and hashed as the service does."""
    with db.transaction() as session:
        log_id = log_of(session, world.tenant)
        head = session.get_one(LogHead, log_id, populate_existing=True)
        idx, prev, frontier = head.size, head.last_leaf, head.frontier.split()
        while idx < size:
            rows = []
            for _ in range(min(20_000, size - idx)):
                draft = Draft(
                    type="reserve.refused",
                    idem=f"filler-{idx}/refused",
                    actor=world.submitter,
                    data={"block": "train", "free": "0", "job": f"filler-{idx}", "needed": "1"},
                    population_id=world.population,
                )
                body = body_of(draft, log_id=log_id, idx=idx, prev=prev, ts=head.last_ts)
                prev = leaf_of(body)
                frontier = merkle.grow(frontier, idx, prev)
                rows.append(
                    {
                        "log_id": log_id,
                        "idx": idx,
                        "type": draft.type,
                        "ts": head.last_ts,
                        "actor": draft.actor,
                        "population_id": draft.population_id,
                        "job_id": None,
                        "idem": draft.idem,
                        "body": body.decode(),
                        "leaf": prev,
                    }
                )
                idx += 1
            session.execute(insert(Entry), rows)
        session.execute(
            update(LogHead)
            .where(LogHead.log_id == log_id)
            .values(size=idx, last_leaf=prev, frontier=" ".join(frontier))
        )


def add_ended_jobs(db: Database, like: str, count: int) -> None:
    """The rows that `count` settled jobs leave behind beside their entries."""
    with db.transaction() as session:
        tables = Reservation.metadata.tables
        held = session.execute(
            select(tables["reservation"]).where(Reservation.job_id == like)
        ).one()
        names = [new_id("ftjob-") for _ in range(count)]
        for first in range(0, count, 500):
            some = names[first : first + 500]
            row = {**held._mapping, "state": "settled", "settled_idx": 1}
            session.execute(insert(tables["reservation"]), [{**row, "job_id": n} for n in some])
            escrow = {"population_id": held.population_id, "block": "train", "kind": "escrow"}
            session.execute(
                insert(tables["account"]),
                [
                    {
                        **escrow,
                        "id": f"{held.population_id}/escrow:{n}",
                        "job_id": n,
                        "name": f"escrow:{n}",
                        "balance_pico": 0,
                        "version": 9,
                    }
                    for n in some
                ],
            )
            tally = {"population_id": held.population_id, "block": "train", "steps": 1, "folded": 1}
            session.execute(
                insert(tables["spend_tally"]),
                [
                    {**tally, "job_id": n, "q": "0.01", "noise_multiplier": f"1.{k:09}"}
                    for k, n in enumerate(some, start=first)
                ],
            )


def growth(db: Database, sizes: list[int], *, rounds: int = 60) -> dict[str, Any]:
    """Medians of reading a balance and of one append, at each length of the log.

    Each `ENTRIES_PER_JOB` entries stand for one ended job, with noise levels of its own.
    """
    world, plan = w.open_world(db), w.plan(steps=900, margin_steps=0)
    job, number, jobs_ended = new_id("ftjob-"), 0, 0
    found: list[dict[str, float]] = []
    with db.transaction() as session:
        w.reserve(session, world, job=job, run_plan=plan)
        w.start(session, job)
    for size in sizes:
        lengthen(db, world, size)
        ended = size // ENTRIES_PER_JOB
        add_ended_jobs(db, job, ended - jobs_ended)
        jobs_ended = ended
        reads, writes = [], []
        for _ in range(rounds):
            started = time.monotonic()
            with db.reading() as session:
                ledger.epsilon_limits(session, world.population)
            reads.append(1000 * (time.monotonic() - started))
            charge = w.window(number, steps=1, first_step=number, run_plan=plan)
            started = time.monotonic()
            with db.transaction() as session:
                ledger.charge_window(session, job_id=job, epoch=1, charge=charge)
            writes.append(1000 * (time.monotonic() - started))
            with db.transaction() as session:
                ledger.finish_window(session, job_id=job, epoch=1, window=number, steps_run=1)
            number += 1
        with db.reading() as session:
            own = select(LogHead.size).where(LogHead.tenant_id == world.tenant)
            real = session.scalars(own).one()
        found.append(
            {
                "entries": real,
                "balance_ms": round(statistics.median(reads), 2),
                "append_ms": round(statistics.median(writes), 2),
            }
        )
    ratios = [found[-1][name] / found[0][name] for name in ("balance_ms", "append_ms")]
    return {
        "at": found,
        "last_to_first": [round(r, 2) for r in ratios],
        "met": max(ratios) <= GROWTH_BAR,
    }


def main() -> int:
    """Runs all, prints a line each, writes JSON; exit code 1 if a bar was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--each", type=int, default=40, help="reserves of each of 64 clients")
    parser.add_argument("--windows", type=int, default=100, help="windows of each of 16 workers")
    parser.add_argument("--entries", type=int, nargs="+", default=[1_000, 1_000_000])
    parser.add_argument("--out", type=Path, help="folder for ledger.json")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        for name in ("race", "growth"):
            (folder / name).mkdir()

        def note(name: str, result: dict[str, Any]) -> None:
            results[name] = result
            print(f"{name}: {json.dumps(result)}", flush=True)

        with w.postgres_database() as db:
            note("race_postgresql", race(db, processes=4, clients=16, each=options.each))
        with w.sqlite_database(folder / "race") as db:
            note("race_sqlite", race(db, processes=8, clients=1, each=8 * options.each))
        with w.postgres_database() as db:
            note(
                "appends_postgresql", appends(db, processes=4, clients=16, windows=options.windows)
            )
        with w.postgres_database() as db:
            note("growth_postgresql", growth(db, options.entries))
        with w.sqlite_database(folder / "growth") as db:
            note("growth_sqlite", growth(db, options.entries))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "ledger.json").write_text(json.dumps(results, indent=2) + "\n")
    return 0 if all(result["met"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
