"""The soak: mixed load on the production layout, then whether anything leaked or got lost.

    python -m tests.soak.run --minutes 120 --out build/bench     the long target (make soak)

Two API processes, dispatcher, three workers, witness, PostgreSQL and Redis of its own; the
trainer pays for windows and sleeps in them. One worker is told to leave every minute, as on a
spot node. Exits with 1 if a figure grew beyond its limit (watch.py), a person met something
unexpected, a job did not end, or the stand-alone verifier finds a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg
import redis

from service.database import Database
from service.demo.stages import ENDED
from service.ledger import fsck
from tests.deploy.layout import APIS, WORKERS, Layout, wait_until
from tests.deploy.parts import DEPLOY
from tests.soak.load import PEOPLE, Load, Person
from tests.soak.watch import Figures, Growth, Sample, files_below, growths, of_part

SPOT = WORKERS[-1]  # comes and goes; not measured
MEASURED = (*APIS, "dispatcher", *WORKERS[:-1], "witness")
SPOT_SECONDS = 60.0
SAMPLES = 240  # a run, however long
ENDING_SECONDS = 300.0
FAULTS_SHOWN = 20


def figures(layout: Layout, temporary: Path) -> Figures:
    """Of all measured parts, the two servers' connections, and temporary files."""
    found: Figures = {}
    for name in MEASURED:
        found |= of_part(name, layout.processes[name].pid)
    with psycopg.connect(layout.dsn("postgres")) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'rldp_app'"
        ).fetchone()
        assert row is not None
        found["postgres connections"] = row[0]
    server = redis.Redis(port=layout.ports["redis"])
    found["redis connections"] = server.info("clients")["connected_clients"]
    found["redis memory MiB"] = server.info("memory")["used_memory"] / 2**20
    server.close()
    found["temporary files"] = files_below(temporary)
    return found


def spot_node(layout: Layout, load: Load) -> None:
    """One worker's node is taken away with notice, and another comes."""
    while not load.stop.wait(SPOT_SECONDS):
        process = layout.processes[SPOT]
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            load.faults.append(f"{SPOT} did not leave within 60 s")
            return
        layout.start(SPOT)
        load.done["worker told to leave"] += 1


def soak(layout: Layout, *, seconds: float, temporary: Path) -> tuple[Load, list[Sample]]:
    """Runs the load for so long, with samples all the way."""
    load = Load(
        access=layout.first_hospital(),
        urls=[layout.url(api) for api in APIS],
        folder=layout.root,
    )
    for name in ("dispatcher", *APIS, *WORKERS):
        layout.start(name)
    people = [Person(load, name, act, pause) for name, act, pause in PEOPLE]
    for thread in (*people, threading.Thread(target=spot_node, args=(layout, load), daemon=True)):
        thread.start()
    samples, begun = [], time.monotonic()
    while (at := time.monotonic() - begun) < seconds:
        samples.append(Sample(at=at, figures=figures(layout, temporary)))
        if sys.stderr.isatty():
            left = (seconds - at) / 60
            print(f"\r{left:5.1f} min left, {sum(load.done.values())} things done, "
                  f"{len(load.faults)} unexpected ", end="", file=sys.stderr)  # fmt: skip
        time.sleep(seconds / SAMPLES)
    load.stop.set()
    for person in people:
        person.join(120)
    return load, samples


def nothing_is_lost(layout: Layout, load: Load) -> list[str]:
    """Every job ends, the verifier accepts the auditor's bundle, the books agree."""
    client = load.client(load.urls[0])

    def have_ended() -> bool:
        with psycopg.connect(layout.dsn("rldp_owner")) as connection:
            asked = "SELECT count(*) FROM job WHERE NOT state = ANY(%s)"
            row = connection.execute(asked, [list(ENDED)]).fetchone()
        return row is not None and row[0] == 0

    wait_until(have_ended, "all jobs end", ENDING_SECONDS)
    bundle = layout.root / "last.zip"
    client.download_when_ready("auditor", "/ledger/bundle", bundle)
    words = [sys.executable, str(DEPLOY / "verifier" / "verify_ledger.py"), str(bundle)]
    done = subprocess.run(words, capture_output=True, text=True)
    found = []
    if done.returncode not in (0, 3) or "FAIL" in done.stdout:
        found.append(f"verifier: {done.stdout[-2000:]}")
    database = Database(layout.dsn("rldp_app").replace("postgresql", "postgresql+psycopg", 1))
    with database.reading() as session:
        found += [f"fsck: {fault}" for fault in fsck.check_all(session)]
    database.dispose()
    client.close()
    return found


def run(*, minutes: float, out: Path | None) -> bool:
    """The whole soak with its report; whether all is well."""
    with tempfile.TemporaryDirectory(prefix="rldp-soak-") as folder:
        root = Path(folder) / "layout"
        temporary = Path(folder) / "tmp"
        for each in (root, temporary):
            each.mkdir()
        os.environ["TMPDIR"] = str(temporary)
        layout = Layout(root, quick={"RLDP_POLL_SECONDS": "2"})
        try:
            layout.make()
            for name in ("redis", "witness"):
                layout.start(name)
            load, samples = soak(layout, seconds=60 * minutes, temporary=temporary)
            lost = nothing_is_lost(layout, load)
        finally:
            layout.stop()
    found = growths(samples)
    _report(minutes, load, samples, found, lost, out)
    return not (load.faults or lost or any(growth.leaks for growth in found))


def _report(
    minutes: float,
    load: Load,
    samples: list[Sample],
    found: list[Growth],
    lost: list[str],
    out: Path | None,
) -> None:
    print(f"\n{minutes:g} minutes, {sum(load.done.values())} things done:")
    for name, count in sorted(load.done.items()):
        print(f"  {count:7d}  {name}")
    print("medians of the second and the last third of the time:")
    for growth in found:
        print(f"  {growth.line()}")
    for fault in (*load.faults[:FAULTS_SHOWN], *lost):
        print(f"  UNEXPECTED {fault}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        document: dict[str, Any] = {
            "minutes": minutes,
            "done": dict(load.done),
            "growth": [asdict(growth) | {"leaks": growth.leaks} for growth in found],
            "faults": load.faults,
            "lost": lost,
            "samples": [asdict(sample) for sample in samples],
        }
        (out / "soak.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak.run",
        description="Mixed load on the production layout: does anything leak or get lost?",
    )
    parser.add_argument("--minutes", type=float, default=120, help="how long (default 120)")
    parser.add_argument("--out", type=Path, help="a folder for soak.json")
    told = parser.parse_args()
    sys.exit(0 if run(minutes=told.minutes, out=told.out) else 1)


if __name__ == "__main__":
    main()
