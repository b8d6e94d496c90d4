"""The API under load: job reads and creates a second, their p99, and lists among many jobs.

    make bench-service            the bars of service.md 21, as lines and JSON
    python -m tests.benchmarks.service --help

Real uvicorn processes on PostgreSQL (RLDP_TEST_POSTGRES_URL), without rate limits; the clients
share the cores with the service, from one process of their own. Beside the rates stands the
processor time of a request, in service, database backends and client: unlike a rate it can be
read on a machine that does other things too.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import text

from service.database import Database
from service.jobs.models import Job
from service.ledger.models import Reservation, ReservationBlock
from service.migrate import upgrade
from tests.benchmarks import processor_time
from tests.benchmarks.load_client import DIGITS, NUMBER
from tests.service.jobs import world as jw
from tests.service.jobs.test_endpoints import JOBS, keys_of
from tests.service.jobs.test_service import BODY
from tests.service.ledger import world as lw

READS_BAR, CREATES_BAR, P99_BAR_MS, GROWTH_BAR = 400.0, 200.0, 250.0, 1.5
TENANTS = 8
CHEAP = {
    "privacy": {"target_epsilon": "0.1", "steps_max": 2, "margin_windows": 0},
    "controller": {"type": "rldp", "interval_steps": 1},
}
START_SECONDS, WARM_SECONDS = 60, 2
APPLICATION = "rldp-bench"  # by which PostgreSQL tells the service's backends from others
MARK = NUMBER.decode()


@dataclass(frozen=True, kw_only=True)
class Site:
    """What is measured: the API processes, by port, and the backends that they talk to."""

    db: Database
    children: Mapping[int, int]

    def processor_seconds(self) -> dict[str, dict[int, float]]:
        backends = processor_time.backends(self.db, APPLICATION)
        return {
            "service": processor_time.of_processes(self.children.values()),
            "database": processor_time.of_processes(backends),
        }


@contextmanager
def served(url: str, directory: Path, processes: int) -> Iterator[dict[int, int]]:
    """API processes that answer: the id of each by its port."""
    ports, children = [_free_port() for _ in range(processes)], []
    base = {
        **os.environ,
        "RLDP_DATABASE_URL": url,
        "RLDP_DATA_DIR": str(directory / "data"),
        "RLDP_RATE_LIMIT_PER_MINUTE": "0",
        "RLDP_RATE_LIMIT_TENANT_PER_MINUTE": "0",
    }
    try:
        for port in ports:
            own = {
                "RLDP_BIND": f"127.0.0.1:{port}",
                "RLDP_METRICS_BIND": f"127.0.0.1:{_free_port()}",
            }
            command = [sys.executable, "-c", "from service.cli.children import run_api; run_api()"]
            children.append(
                subprocess.Popen(
                    command, env=base | own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            )
            _wait_for(port)
        yield {port: child.pid for port, child in zip(ports, children, strict=True)}
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"no API on port {port} after {START_SECONDS} s")


def message(key: str, method: str, path: str, body: Any = None) -> str:
    """A whole HTTP request on a connection that stays open."""
    sent = "" if body is None else json.dumps(body)
    head = [
        f"{method} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        f"Content-Length: {len(sent) - sent.count(MARK) * (len(MARK) - DIGITS)}",
    ]
    return "\r\n".join([*head, "", sent])


def made_job(port: int, request: str) -> str:
    """The id of the job that one such request makes."""
    head, _, body = request.replace(MARK, "0" * DIGITS).partition("\r\n\r\n")
    first, *headers = head.split("\r\n")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    method, path, _ = first.split(" ")
    connection.request(method, path, body, dict(line.split(": ", 1) for line in headers))
    answer = connection.getresponse()
    told = answer.read()
    assert answer.status == 200, (answer.status, told)
    return str(json.loads(told)["id"])


def load(site: Site, seconds: float, requests: list[tuple[int, str]]) -> dict[str, Any]:
    """What all these clients together get in so many seconds, and the processor time it takes."""
    before = site.processor_seconds()
    told = json.dumps({"seconds": seconds, "requests": requests})
    command = [sys.executable, "-m", "tests.benchmarks.load_client"]
    ran = subprocess.run(command, input=told, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found, after = json.loads(ran.stdout), site.processor_seconds()
    times = sorted(found["times_ms"])
    used = {name: processor_time.since(before[name], after[name]) for name in after}
    used["client"] = found["cpu_seconds"]
    return {
        "calls": len(times),
        "per_second": round(len(times) / found["seconds"], 1),
        "p50_ms": round(times[len(times) // 2], 1),
        "p99_ms": round(times[min(len(times) - 1, len(times) * 99 // 100)], 1),
        "cpu_ms": {name: round(value * 1000 / len(times), 2) for name, value in used.items()},
    }


def copy_jobs(db: Database, model: str, low: int, high: int) -> None:
    """Copies of one job and its reservation, numbered `low` up to `high`, older than it."""
    told = {"job": model, "low": low, "high": high - 1}
    with db.transaction() as session:
        for table, key in ((Job, "id"), (Reservation, "job_id"), (ReservationBlock, "job_id")):
            names = [column.name for column in table.__table__.columns]
            changed = {key: "'ftjob-' || lpad(n::text, 26, '0')"}
            if table is Job:
                changed["created_at"] = "source.created_at - n - 1"
            columns = ", ".join(changed.get(name, f"source.{name}") for name in names)
            rows = f"SELECT {columns} FROM {table.__tablename__} source, generate_series("
            session.execute(
                text(
                    f"INSERT INTO {table.__tablename__} ({', '.join(names)}) {rows}"
                    f"CAST(:low AS bigint), CAST(:high AS bigint)) n WHERE source.{key} = :job"
                ),
                told,
            )
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """All cases, smallest first; each list is measured on the jobs copied so far."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        url = stack.enter_context(lw.postgres_url())
        upgrade(url)
        db = Database(url)
        stack.callback(db.dispose)
        worlds = [lw.open_world(db) for _ in range(TENANTS)]
        files = [jw.add_dataset(world, directory)[0] for world in worlds]
        keys = [keys_of(world)["submitter"] for world in worlds]
        named = f"{url}&application_name={APPLICATION}"
        children = stack.enter_context(served(named, directory, chosen.processes))
        site = Site(db=db, children=children)
        ports = list(children)

        def clients(text_of: Callable[[int], str]) -> list[tuple[int, str]]:
            return [(ports[n % len(ports)], text_of(n % TENANTS)) for n in range(chosen.clients)]

        creates = [message(keys[n], "POST", JOBS, _body(files[n])) for n in range(TENANTS)]
        models = [made_job(ports[n % len(ports)], creates[n]) for n in range(TENANTS)]
        reads = [message(keys[n], "GET", f"{JOBS}/{models[n]}") for n in range(TENANTS)]
        page = message(keys[0], "GET", f"{JOBS}?limit=20")  # the tenant whose jobs are copied
        load(site, WARM_SECONDS, clients(reads.__getitem__))  # every process has its connections
        found = {"creates": load(site, chosen.seconds, clients(creates.__getitem__))}
        found["reads"] = load(site, chosen.seconds, clients(reads.__getitem__))
        have = 0
        for wanted in sorted(chosen.jobs):
            copy_jobs(db, models[0], have, wanted)
            have = wanted
            found[f"list of {wanted}"] = load(site, chosen.seconds, [(ports[0], page)])
    return found


def _body(file: str) -> dict[str, Any]:
    return {**BODY, **CHEAP, "training_file": file, "metadata": {"n": MARK}}


def bars(found: dict[str, Any]) -> dict[str, bool]:
    """Which bars of service.md 21 are met."""
    lists = [one["p50_ms"] for name, one in found.items() if name.startswith("list")]
    return {
        f"job creates >= {CREATES_BAR:.0f}/s": found["creates"]["per_second"] >= CREATES_BAR,
        f"job reads >= {READS_BAR:.0f}/s": found["reads"]["per_second"] >= READS_BAR,
        f"p99 <= {P99_BAR_MS:.0f} ms": max(found[n]["p99_ms"] for n in ("creates", "reads"))
        <= P99_BAR_MS,
        f"a list costs at most {GROWTH_BAR} times as much": lists[-1] <= GROWTH_BAR * lists[0],
    }


def main(arguments: list[str] | None = None) -> int:
    """0 if every bar is met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--processes", type=int, default=max(1, os.cpu_count() or 1))
    parser.add_argument("--seconds", type=float, default=20, help="of each case")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1_000, 1_000_000])
    parser.add_argument("--out", type=Path, help="folder for service.json")
    chosen = parser.parse_args(arguments)
    found = measure(chosen)
    for name, one in found.items():
        print(f"{name:20} {one['per_second']:8.1f}/s  p50 {one['p50_ms']:7.1f} ms  ", end="")
        print(f"p99 {one['p99_ms']:7.1f} ms  processor time ", end="")
        print(", ".join(f"{where} {ms:.2f} ms" for where, ms in one["cpu_ms"].items()))
    verdicts = bars(found)
    for name, is_met in verdicts.items():
        print(f"{'met   ' if is_met else 'MISSED'} {name}")
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        whole = {"cases": found, "bars": verdicts, "cores": os.cpu_count()}
        (chosen.out / "service.json").write_text(json.dumps(whole, indent=1))
    return 0 if all(verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
