"""The standalone verifier on a long log: seconds of one core, entries and windows a second.

    make bench-verifier                            a million entries (some minutes, 2 GB)
    python -m tests.benchmarks.verifier --entries 100000

A few jobs are written by the ledger itself, each with a noise level of its own; the log is
then filled with copies of their entries under new job ids, numbered, chained and hashed as the
service does, signed by the real publisher and exported by the real bundle writer. The verifier
checks it under a policy: every second entry has a receipt.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import event, insert, select, update

import deploy.verifier
from dp_core.accounting import pld_epsilon
from dp_core.events import Component, PoissonGaussian, canonical_json
from dp_core.plan import RunPlan
from service.cli.policy import write_policy
from service.database import Database
from service.ids import new_id
from service.ledger import bundle, merkle
from service.ledger import service as ledger
from service.ledger.entries import leaf_of, log_of
from service.ledger.models import Entry, LogHead
from service.ledger.publisher import make_publisher
from service.settings import Settings
from tests.service.ledger import world as w

BAR_SECONDS = 600.0  # for a million entries, on one core
DAY_SECONDS = 86_400
WINDOWS, STEPS = 28, 10  # of each job: 60 entries with reserve, attempt and the end
LEVELS = ("24.000", "25.000", "26.500", "31.000")  # little noise would spend the limit too soon
VERIFIER = Path(deploy.verifier.__path__[0]) / "verify_ledger.py"


@contextmanager
def quick_database(folder: Path) -> Iterator[Database]:
    """SQLite that does not wait for the disk: filling is not what is measured."""
    with w.sqlite_database(folder) as db:
        event.listen(db.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))
        db.engine.dispose()
        yield db


def plan_at(level: str) -> RunPlan:
    steps = WINDOWS * STEPS
    whole = PoissonGaussian(q="0.01", noise_multiplier=level, steps=steps)
    return replace(
        w.plan(steps=steps, margin_steps=0),
        noise_levels=(level,),
        epsilon_certified=pld_epsilon([whole], "1e-6"),
    )


def run_job(world: w.World, level: str) -> str:
    """One job through the ledger's own code, from its reservation to its settlement."""
    job, plan = new_id("ftjob-"), plan_at(level)
    noise = (Component(id="0.q_proj.A", sensitivity="1", std=level),)
    with world.db.transaction() as session:
        w.reserve(session, world, job=job, run_plan=plan)
        w.start(session, job)
    for number in range(WINDOWS):
        charge = w.window(
            number, steps=STEPS, first_step=STEPS * number, run_plan=plan, components=noise
        )
        with world.db.transaction() as session:
            ledger.charge_window(session, job_id=job, epoch=1, charge=charge)
        with world.db.transaction() as session:
            ledger.finish_window(session, job_id=job, epoch=1, window=number, steps_run=STEPS)
    with world.db.transaction() as session:
        ledger.settle(
            session,
            job_id=job,
            final_state="cancelled",
            artifact_digests={},
            certificate_digest=None,
        )
    return job


def copies(templates: list[tuple[str, list[str]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(job, body) without end, job after job."""
    while True:
        for original, bodies in templates:
            job = new_id("ftjob-")
            for text in bodies:
                yield job, json.loads(text.replace(original, job))


def fill(db: Database, world: w.World, jobs: list[str], size: int) -> int:
    """Lengthens the log to `size` entries, at the next end of a job; returns its length."""
    with db.transaction() as session:
        log_id = log_of(session, world.tenant)
        head = session.get_one(LogHead, log_id, populate_existing=True)
        idx, prev, frontier = head.size, head.last_leaf, head.frontier.split()
        templates = [
            (
                job,
                list(
                    session.scalars(
                        select(Entry.body).where(Entry.job_id == job).order_by(Entry.idx)
                    )
                ),
            )
            for job in jobs
        ]
        rows: list[dict[str, Any]] = []
        for job, body in copies(templates):
            if body["type"] == "reserve" and idx >= size:
                break
            body.update(idx=idx, prev=prev, ts=head.last_ts)
            raw = canonical_json(body)
            prev = leaf_of(raw)
            frontier = merkle.grow(frontier, idx, prev)
            kept = {name: body[name] for name in ("idx", "type", "ts", "actor", "idem")}
            rows.append(
                kept
                | {"log_id": log_id, "job_id": job, "population_id": body["pop"]}
                | {"body": raw.decode(), "leaf": prev}
            )
            idx += 1
            if len(rows) == 20_000:
                session.execute(insert(Entry), rows)
                rows = []
                print(f"  {idx} of {size} entries written", file=sys.stderr, flush=True)
        session.execute(insert(Entry), rows)
        moved = {"size": idx, "last_leaf": prev, "frontier": " ".join(frontier)}
        session.execute(update(LogHead).where(LogHead.log_id == log_id).values(**moved))
        return idx


def export(db: Database, world: w.World, folder: Path) -> Path:
    publisher = make_publisher(Settings(data_dir=folder), db)
    publisher.turn()
    path = folder / "bundle.zip"
    with (
        db.reading() as session,
        bundle.write_bundle(session, keys=publisher.keys, tenant_id=world.tenant) as archive,
        path.open("wb") as out,
    ):
        while part := archive.read(1 << 20):
            out.write(part)
    return path


def verify(path: Path, policy: Path) -> dict[str, Any]:
    """Runs the released file as an auditor does; CPU seconds and peak memory of its process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    told = subprocess.run(
        [sys.executable, str(VERIFIER), str(path), f"--policy={policy}"],
        capture_output=True,
        text=True,
    )
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {
        "exit": told.returncode,
        "told": (told.stdout + told.stderr).strip(),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mib": round(after.ru_maxrss / 1024),
    }


def main() -> int:
    """Exit code 1 if the log did not verify, or took longer than the bar allows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="folder for verifier.json")
    options = parser.parse_args()
    with TemporaryDirectory() as made:
        folder = Path(made)
        with quick_database(folder) as db:
            world = w.open_world(db)
            jobs = [run_job(world, level) for level in LEVELS]
            size = fill(db, world, jobs, options.entries)
            path = export(db, world, folder)
        policy = folder / "policy.json"
        write_policy(Settings(data_dir=folder), out=policy, max_age_seconds=DAY_SECONDS)
        result = verify(path, policy)
    allowed = BAR_SECONDS * size / 1_000_000
    result |= {"entries": size, "met": result["exit"] == 0 and result["cpu_seconds"] <= allowed}
    print(json.dumps(result, indent=2))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "verifier.json").write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
