"""Seeded faults on real worker processes: kill -9, stalls, doubled doorbells (service.md 21).

    make test-histories SEEDS=0:200 HISTORIES_ARGS='--kind faults'
    make test-histories SEEDS=0:200 HISTORIES_ARGS='--kind faults --database postgresql'

A seed is two jobs and two to five faults at moments of chance: any process of a worker's tree
killed or stopped for longer than its lease, the dispatcher killed, bells rung twice. Claim,
lease, fence, charge, settle, supervisor and broker are real; the trainer sleeps in place of
arithmetic and notes every window whose noise it draws (`tests.deploy.fake_worker`). After each
seed every job must have ended, once; what was drawn must have been charged before, and what was
charged must have been reserved. The same seed gives the same faults, not the same interleaving.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from service.artifacts.models import Artifact
from service.database import Database, now_us
from service.jobs.lifecycle import CLAIMABLE, TERMINAL, WITH_ADAPTER, State
from service.jobs.models import Job
from service.ledger import fsck, repository
from service.migrate import upgrade
from service.settings import Settings
from service.worker.celery_app import make_app, ring
from tests.integration.processes import descendants
from tests.service.jobs import world as jw
from tests.service.ledger import world as lw

WORKERS = ("worker-1", "worker-2", "worker-3")
JOBS, STEPS, MARGIN = 2, 60, 60
LEASE_SECONDS = 4
FAULT_SECONDS = 4.0  # within which the faults of a seed begin, after a window is drawn
END_SECONDS = 180.0  # it only has to come; on a busy machine that takes longer
REDIS_URL = os.environ.get("RLDP_TEST_REDIS_URL", "redis://127.0.0.1:6379/0")
BUSY = 3  # processes of a worker with a trainer
FAULTS = ("kill", "stop", "kill_dispatcher", "ring_twice")


@dataclass
class Site:
    """Database, dispatcher and three workers. Only processes that it started are killed."""

    db: Database
    world: lw.World
    root: Path
    environment: dict[str, str]
    settings: Settings
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        words = (
            ["service.cli", "dispatcher"] if name == "dispatcher" else ["tests.deploy.fake_worker"]
        )
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *words],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def mend(self) -> None:
        """Starts again whatever has died, as an operator's supervisor does."""
        for name, process in list(self.processes.items()):
            if process.poll() is not None:
                self.start(name)

    def tree(self, name: str) -> list[int]:
        process = self.processes[name]
        below = [pid for pid, _ in descendants(process.pid)]
        return below if process.poll() is not None else [process.pid, *below]

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


@contextmanager
def open_site(kind: str, root: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        url, broker = f"sqlite:///{root / 'rldp.db'}", "filesystem://"
        if kind == "postgresql":
            url, broker = stack.enter_context(lw.postgres_url()), REDIS_URL
        upgrade(url)
        db = Database(url)
        stack.callback(db.dispose)
        (root / "executed").mkdir()
        told = {
            "RLDP_DATABASE_URL": url,
            "RLDP_BROKER_URL": broker,
            "RLDP_DATA_DIR": str(root / "data"),
            "RLDP_LEASE_SECONDS": str(LEASE_SECONDS),
            "RLDP_POLL_SECONDS": "1",
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RLDP_")}
        site = Site(
            db=db,
            world=lw.open_world(db),
            root=root,
            environment=kept
            | told
            | {
                "OMP_NUM_THREADS": "1",
                "RLDP_TEST_WINDOW_SECONDS": "0.5",
                "RLDP_TEST_EXECUTED": str(root / "executed"),
            },
            settings=Settings(**{k.removeprefix("RLDP_").lower(): v for k, v in told.items()}),  # type: ignore[arg-type]
        )
        try:
            for name in ("dispatcher", *WORKERS):
                site.start(name)
            yield site
        finally:
            site.stop()


@dataclass(order=True)
class Deed:
    """Something to do at a moment after the seed's begin."""

    at: float
    what: Callable[[], Any] = field(compare=False)


def play(site: Site, seed: int) -> list[str]:
    """One seed on an open site, to the end of its jobs, and what must hold then; the jobs."""
    chance = random.Random(seed)
    version = jw.add_dataset(site.world, site.root)[1]
    jobs = [queue(site, version) for _ in range(JOBS)]
    deeds = sorted(deed for _ in range(chance.randint(2, 5)) for deed in fault(site, chance, jobs))
    wait_for_a_window(site, jobs)
    started = time.monotonic()
    for deed in deeds:
        while (left := started + deed.at - time.monotonic()) > 0:
            site.mend()
            time.sleep(min(left, 0.3))
        deed.what()
    wait_for_the_end(site, jobs)
    for job in jobs:
        check(site, job)
    return jobs


def queue(site: Site, version: str) -> str:
    plan = lw.plan(steps=STEPS, margin_steps=MARGIN)
    job = jw.queue_job(site.world, run_plan=plan, version=version, lease_seconds=LEASE_SECONDS)
    with site.db.transaction() as session:
        folder = str(site.root / "data" / "jobs" / job)
        session.execute(update(Job).where(Job.id == job).values(job_dir=folder))
    return job


def fault(site: Site, chance: random.Random, jobs: Sequence[str]) -> list[Deed]:
    """One fault: what happens, and for a stall also its end."""
    at, kind, place = chance.uniform(0.0, FAULT_SECONDS), chance.choice(FAULTS), chance.random()
    if kind == "kill":
        return [Deed(at, lambda: send(site, place, signal.SIGKILL))]
    if kind == "kill_dispatcher":
        return [Deed(at, lambda: site.processes["dispatcher"].kill())]
    if kind == "ring_twice":
        return [Deed(at, lambda: ring_twice(site, jobs))]
    stopped: list[int] = []
    return [
        Deed(at, lambda: stopped.extend(send(site, place, signal.SIGSTOP))),
        Deed(at + LEASE_SECONDS + 2 * chance.random() + 1, lambda: wake(stopped)),
    ]


def send(site: Site, place: float, number: signal.Signals) -> list[int]:
    """Signals one process of a worker that has a job: its trainer, Celery's child or parent."""
    trees = [site.tree(name) for name in WORKERS]
    busy = [tree for tree in trees if len(tree) >= BUSY] or [tree for tree in trees if tree]
    if not busy:
        return []
    tree = busy[int(place * 1000) % len(busy)]
    pid = tree[-1 - int(place * len(tree))]
    with suppress(ProcessLookupError):
        os.kill(pid, number)
    return [pid]


def wake(stopped: Sequence[int]) -> None:
    for pid in stopped:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def ring_twice(site: Site, jobs: Sequence[str]) -> None:
    """A broker that delivers again what was delivered: bells of jobs that run, or are over."""
    app = make_app(site.settings)
    for job in (*jobs, *jobs):
        ring(app, job)


def wait_for_a_window(site: Site, jobs: Sequence[str]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while not any(executed(site, job) for job in jobs):
        site.mend()
        assert time.monotonic() < deadline, "no job begins"
        time.sleep(0.1)


def wait_for_the_end(site: Site, jobs: Sequence[str]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while True:
        site.mend()
        with site.db.reading() as session:
            found = session.scalars(select(Job).where(Job.id.in_(jobs))).all()
        if all(State(job.state) in TERMINAL for job in found):
            return
        told = {job.id: (job.state, job.attempt, job.reason_code) for job in found}
        assert time.monotonic() < deadline, f"jobs have not ended: {told}"
        for job in found:
            if State(job.state) in CLAIMABLE and job.not_before > now_us():
                jw.skip_back_off(site.db, job.id)  # the waiting of minutes is not what is tested
        time.sleep(0.3)


def check(site: Site, job_id: str) -> None:
    """executed <= charged <= reserved, one end, and files of the attempt that ended it alone."""
    with site.db.reading() as session:
        job = session.get_one(Job, job_id)
        entries = list(repository.entries_of_job(session, job_id))
        blocks = repository.blocks_of(session, job_id)
        paths = session.scalars(select(Artifact.path).where(Artifact.job_id == job_id)).all()
    types = Counter(entry["type"] for entry in entries)
    assert types["settle"] == types["reserve"] == 1, types
    assert entries[-1]["type"] == "settle", "something was entered after the end"
    charged = {
        (entry["data"]["epoch"], entry["data"]["window"], entry["data"]["steps"])
        for entry in entries
        if entry["type"] == "window.charge"
    }
    drawn = executed(site, job_id)
    assert len(drawn) == len(set(drawn)), f"drawn twice: {drawn}"
    assert set(drawn) <= charged, f"drawn and not charged: {sorted(set(drawn) - charged)}"
    steps = sum(steps for _, _, steps in charged)
    (block,) = blocks
    assert steps == block.steps_started <= STEPS + MARGIN
    assert block.spent_pico <= block.reserved_pico
    ended = [entry["data"]["epoch"] for entry in entries if entry["type"] == "attempt.started"]
    if State(job.state) in WITH_ADAPTER:
        assert [Path(path).parent.name for path in paths] == [f"adapter-{ended[-1]}"]
        assert sum(steps for _, _, steps in drawn) >= STEPS or job.state == State.BUDGET_STOPPED
    else:
        assert paths == [], "files of a job that failed"
        assert job.reason_code is not None


def executed(site: Site, job_id: str) -> list[tuple[int, int, int]]:
    """(epoch, window, steps) of everything that any trainer of the job has drawn."""
    path = site.root / "executed" / job_id
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(a), int(b), int(c)) for a, b, c in (line.split() for line in lines)]


def play_seeds(kind: str, seeds: Sequence[int], folder: Path) -> int:
    """Plays seeds on one site, then judges its whole ledger; the number of attempts begun."""
    with open_site(kind, folder) as site:
        for seed in seeds:
            try:
                play(site, seed)
            except BaseException as failure:
                failure.add_note(f"seed {seed} of {kind}")
                raise
        with site.db.reading() as session:
            assert fsck.check_all(session) == []
            return sum(session.scalars(select(Job.attempt)).all())
