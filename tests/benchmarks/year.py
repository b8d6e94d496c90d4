"""A share of a year of many hospitals, run by the real ledger code, and what it says of the whole.

    python -m tests.benchmarks.year                     two minutes: a share
    python -m tests.benchmarks.year --jobs 3650         one hospital's whole year
    python -m tests.benchmarks.year --capacity FILE     the sheet of deploy/capacity.md

The year is 1,000 hospitals with 10 jobs a day. A share of it is run: some hospitals, job after
job in each, on PostgreSQL (RLDP_TEST_POSTGRES_URL) with the migrated schema, signed checkpoints
included. Every operation is timed; its lower quartile in the first fifth of the jobs stands
beside that in the last fifth (what else runs on the machine only adds). What is printed under
"extrapolated" was not run: it is the measured size per job times the number of jobs, and says
nothing of speed at that size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import select, text

from service.certificates.service import build_certificate
from service.database import Database
from service.ids import new_id
from service.ledger import evidence, fsck
from service.ledger import service as ledger
from service.ledger.errors import BudgetExceeded
from service.ledger.models import Entry, LogHead
from service.ledger.publisher import Publisher, make_publisher
from service.migrate import upgrade
from service.settings import Settings
from tests.service.ledger import world as w

HOSPITALS, JOBS_A_DAY, DAYS = 1000, 10, 365
JOBS_A_YEAR = HOSPITALS * JOBS_A_DAY * DAYS
GROWTH_BAR = 1.2
STEPS_A_WINDOW = 10
DIGESTS = {"adapter_config.json": "c" * 64, "adapter_model.safetensors": "d" * 64}


@dataclass
class Clock:
    """Milliseconds of each operation, with the share of the run at which it was done."""

    total: int
    done: int = 0
    times: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        took = 1000 * (time.perf_counter() - started)
        self.times[name].append((self.done / self.total, took))

    def table(self) -> dict[str, dict[str, float]]:
        """Lower quartiles in the first and the last fifth of the jobs, and their ratio."""
        found = {}
        for name, times in sorted(self.times.items()):
            first = [took for share, took in times if share < 0.2]
            last = [took for share, took in times if share >= 0.8]
            start, end = (statistics.quantiles(each, n=4)[0] for each in (first, last))
            found[name] = {
                "start_ms": round(start, 2),
                "end_ms": round(end, 2),
                "ratio": round(end / start, 2),
                "count": len(times),
            }
        return found


def run_job(world: w.World, clock: Clock, *, windows: int) -> None:
    """One job from reserve to certificate; a new population once the old one is spent."""
    plan = w.plan(steps=windows * STEPS_A_WINDOW, margin_steps=0)
    job = new_id("ftjob-")
    try:
        with clock.time("reserve"), world.db.transaction() as session:
            w.reserve(session, world, job=job, run_plan=plan)
            w.start(session, job)
    except BudgetExceeded:
        world.population = w.add_population(world, code=f"cohort-{len(world.jobs)}")
        w.grant(world, world.population)
        run_job(world, clock, windows=windows)
        return
    for number in range(windows):
        charge = w.window(number, first_step=number * STEPS_A_WINDOW, run_plan=plan)
        with clock.time("charge"), world.db.transaction() as session:
            ledger.charge_window(session, job_id=job, epoch=1, charge=charge)
        with clock.time("finish"), world.db.transaction() as session:
            ledger.finish_window(
                session, job_id=job, epoch=1, window=number, steps_run=STEPS_A_WINDOW
            )
    with clock.time("settle"), world.db.transaction() as session:
        certificate = build_certificate(
            session,
            job_id=job,
            plan=plan.to_dict(),
            claim=w.claim_of(plan, windows * STEPS_A_WINDOW),
            artifact_digests=DIGESTS,
        )
        ledger.settle(
            session,
            job_id=job,
            final_state="succeeded",
            artifact_digests=DIGESTS,
            certificate_digest=certificate.digest,
        )
    world.jobs.append(job)


def look(world: w.World, clock: Clock) -> None:
    """What auditors and the dashboard read: a balance, a job's statement, a proof."""
    with clock.time("balance"), world.db.reading() as session:
        ledger.epsilon_limits(session, world.population)
    with clock.time("statement"), world.db.reading() as session:
        ledger.job_statement(session, world.jobs[0])
    with world.db.reading() as session:
        head = session.scalars(select(LogHead).where(LogHead.tenant_id == world.tenant)).one()
        log_id, size = head.log_id, head.size
    with clock.time("inclusion"), world.db.reading() as session:
        evidence.inclusion(session, log_id, 0, size)


def bytes_of(db: Database) -> tuple[int, int]:
    """(bytes of all tables and indexes, number of entries)."""
    with db.reading() as session:
        size = session.scalar(
            text(
                "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n "
                "ON n.oid = c.relnamespace WHERE n.nspname = current_schema() AND c.relkind = 'r'"
            )
        )
        entries = session.query(Entry).count()
    return int(size or 0), entries


def simulate(db: Database, folder: Path, *, hospitals: int, jobs: int, windows: int) -> Any:
    """Runs the share; `jobs` for each hospital, in turns."""
    settings = Settings(data_dir=folder, database_url=db.url)
    publisher: Publisher = make_publisher(settings, db)
    worlds = [w.open_world(db) for _ in range(hospitals)]
    clock = Clock(total=jobs * hospitals)
    empty, entries_before = bytes_of(db)
    started = time.perf_counter()
    for _ in range(jobs):
        for world in worlds:
            run_job(world, clock, windows=windows)
            clock.done += 1
        look(worlds[0], clock)
        with clock.time("checkpoint"):  # of each hospital's log: every few seconds in service
            publisher.turn()
    seconds = time.perf_counter() - started
    size, entries = bytes_of(db)
    with db.reading() as session:
        broken = fsck.check_all(session)
    done = jobs * hospitals
    table = clock.table()
    return {
        "measured": {
            "hospitals": hospitals,
            "jobs": done,
            "windows_a_job": windows,
            "seconds": round(seconds, 1),
            "jobs_a_second_one_client": round(done / seconds, 2),
            "entries_a_job": round((entries - entries_before) / done, 2),
            "bytes_an_entry": round((size - empty) / (entries - entries_before)),
            "bytes_a_job": round((size - empty) / done),
            "broken_invariants": len(broken),
            "operations": table,
        },
        "extrapolated": {
            "what": f"{HOSPITALS} hospitals x {JOBS_A_DAY} jobs a day x {DAYS} days, not run",
            "jobs": JOBS_A_YEAR,
            "share_run": done / JOBS_A_YEAR,
            "entries": round(JOBS_A_YEAR * (entries - entries_before) / done),
            "database_gib": round(JOBS_A_YEAR * (size - empty) / done / 2**30, 1),
            "busy_share_of_one_client": round(JOBS_A_YEAR * seconds / done / (DAYS * 86400), 3),
        },
        "met": not broken and all(row["ratio"] <= GROWTH_BAR for row in table.values()),
    }


def sheet(result: dict[str, Any], *, windows: int) -> str:
    """Markdown rows of the capacity sheet, for jobs of so many windows each."""
    m = result["measured"]
    fixed = m["entries_a_job"] - 2 * m["windows_a_job"]
    entries = fixed + 2 * windows
    lines = [
        "| jobs a day, all hospitals | entries a year | database a year (GiB) | writes a second |",
        "| --- | --- | --- | --- |",
    ]
    for jobs in (10, 100, 1_000, 10_000):
        a_year = jobs * DAYS * entries
        gib = a_year * m["bytes_an_entry"] / 2**30
        lines.append(f"| {jobs:,} | {a_year:,.0f} | {gib:,.1f} | {jobs * entries / 86400:.2f} |")
    return "\n".join(lines)


def main() -> int:
    """Runs the share or prints the sheet; exit code 1 if an operation grew by over a fifth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hospitals", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=100, help="of each hospital")
    parser.add_argument("--windows", type=int, default=4, help="charged windows of a job")
    parser.add_argument("--out", type=Path, help="folder for year.json")
    parser.add_argument("--capacity", type=Path, metavar="YEAR_JSON", help="print the sheet")
    options = parser.parse_args()
    if options.capacity is not None:
        print(sheet(json.loads(options.capacity.read_text()), windows=options.windows))
        return 0
    with w.postgres_url() as url, TemporaryDirectory() as folder:
        upgrade(url)
        db = Database(url)
        result = simulate(
            db,
            Path(folder),
            hospitals=options.hospitals,
            jobs=options.jobs,
            windows=options.windows,
        )
        db.dispose()
    print(json.dumps(result, indent=1))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "year.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
