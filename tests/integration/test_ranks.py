"""One job on two processes under torchrun, started by the worker as in production.

The oracles are the ledger's check of itself and the entries of the same job on one process.
"""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from service.demo.server import free_port
from service.jobs import runtime, steering
from service.jobs.lifecycle import State
from service.jobs.models import Job
from service.ledger import repository
from service.ledger import service as ledger
from service.settings import Settings
from service.worker.processes import child_environment, kill_group, start_tied
from service.worker.supervisor import Supervisor
from tests.integration.processes import descendants
from tests.integration.test_trainer import (
    LEASE_SECONDS,
    WORKER,
    claimed,
    opened_adapter,
    queue_real_job,
    statement_numbers,
    wait_for_checkpoint,
    world,  # noqa: F401  (a fixture)
)
from tests.service.jobs import world as jw
from tests.service.jobs.test_service import subject_of
from tests.service.ledger import world as lw

pytestmark = [pytest.mark.ci, pytest.mark.timeout(1200)]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Settings(data_dir=tmp_path, lease_seconds=LEASE_SECONDS, processes_per_job=2)


def supervise(world: lw.World, settings: Settings, job_id: str) -> State | None:  # noqa: F811
    claim = claimed(world, job_id)
    return Supervisor(db=world.db, settings=settings, worker_id=WORKER, claim=claim).run()


class Running:
    """An attempt under its supervisor, in a thread that outlives it."""

    def __init__(self, world: lw.World, settings: Settings, job_id: str) -> None:  # noqa: F811
        self._pool = ThreadPoolExecutor(1)
        self.done: Future[State | None] = self._pool.submit(supervise, world, settings, job_id)

    def ranks(self) -> dict[int, int]:
        """Process ids by rank, of those that run now."""
        found = {}
        for pid, words in descendants(os.getpid()):
            if "service.worker.runner" not in words:
                continue
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            told = [each for each in environment if each.startswith(b"RANK=")]
            if told:
                found[int(told[0].removeprefix(b"RANK="))] = pid
        return found

    def end(self) -> State | None:
        state = self.done.result(600)
        self._pool.shutdown()
        return state


def entries(world: lw.World, job_id: str) -> list[dict[str, Any]]:  # noqa: F811
    """The job's entries without what is another in each run: ids, times and digests."""
    with world.db.reading() as session:
        bodies = repository.entries_of_job(session, job_id)
    kept = ("charge", "window", "steps", "first_step", "steps_run", "level", "q", "outcome")
    return [
        {"type": body["type"]} | {k: v for k, v in body["data"].items() if k in kept}
        for body in bodies
    ]


def test_the_ledger_reads_as_for_one_process(
    world: lw.World,  # noqa: F811
    settings: Settings,
    tmp_path: Path,
) -> None:
    several = queue_real_job(world, tmp_path, controller="reference")
    assert supervise(world, settings, several) is State.SUCCEEDED
    statement_numbers(world, several, windows=3, steps=6)
    tensors = load(opened_adapter(world, settings, several)["adapter_model.safetensors"])
    assert len(tensors) == 4 * 4 * 2
    assert all(t.isfinite().all() and t.abs().sum() > 0 for t in tensors.values())
    (tmp_path / "one").mkdir()
    one = queue_real_job(world, tmp_path / "one", controller="reference")
    # several ranks run no audit beside the job, so neither does the one they are compared with
    alone = settings.model_copy(update={"processes_per_job": 1, "audit_in_job": False})
    assert supervise(world, alone, one) is State.SUCCEEDED
    found = entries(world, several)
    assert [e["type"] for e in found].count("window.charge") == 3
    assert found == entries(world, one)


def test_a_lost_rank_ends_the_attempt_and_the_next_one_pays_what_it_repeats(
    world: lw.World,  # noqa: F811
    settings: Settings,
    tmp_path: Path,
) -> None:
    job_id = queue_real_job(world, tmp_path, controller="reference")
    first = Running(world, settings, job_id)
    wait_for_checkpoint(world, job_id)
    ranks = first.ranks()
    assert set(ranks) == {0, 1}
    os.kill(ranks[1], signal.SIGKILL)
    assert first.end() is State.RECOVERING
    assert first.ranks() == {}, "no rank is left when the supervisor has returned"
    with world.db.reading() as session:
        job = session.get_one(Job, job_id)
        assert job.reason_code in ("trainer_killed", "rank_lost")
        before = ledger.position(session, job_id=job_id, epoch=1)
    saved = runtime.latest_checkpoint(world.db, job_id)
    assert saved is not None
    jw.skip_back_off(world.db, job_id)
    assert supervise(world, settings, job_id) is State.SUCCEEDED
    redone = -(-(6 - saved.step) // 2)
    statement_numbers(
        world,
        job_id,
        windows=before.next_chunk + redone,
        steps=before.steps_started + 6 - saved.step,
    )
    with world.db.reading() as session:
        told = ledger.job_statement(session, job_id)
        train = next(block for block in told["blocks"] if block["block"] == "train")
        assert int(train["spent_pico"]) == sum(int(w["charge"]) for w in told["windows"])


@pytest.mark.parametrize("wish", ["pause", "cancel"])
def test_a_wish_for_its_end_reaches_all_ranks(
    world: lw.World,  # noqa: F811
    settings: Settings,
    tmp_path: Path,
    wish: str,
) -> None:
    job_id = queue_real_job(world, tmp_path, controller="reference")
    running = Running(world, settings, job_id)
    wait_for_checkpoint(world, job_id)
    with world.db.transaction() as session:
        getattr(steering, f"{wish}_job")(session, subject_of(world), job_id)
    expected = {"pause": State.PAUSED, "cancel": State.CANCELLED}[wish]
    assert running.end() is expected
    assert running.ranks() == {}


def test_a_second_host_lends_its_process_to_one_job_after_another(
    world: lw.World,  # noqa: F811
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both "hosts" are this one; what lies between two machines is not tested."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    hosts = {"processes_per_job": 1, "hosts_per_job": 2}
    here = settings.model_copy(update=hosts | {"rendezvous": f"127.0.0.1:{free_port()}"})
    there = here.model_copy(update={"host_rank": 1, "data_dir": tmp_path / "there"})
    # the other host never asks the database: it could not even connect
    unreachable = there.model_copy(update={"database_url": "postgresql+psycopg://no.invalid/x"})
    helper = start_tied(
        [sys.executable, "-m", "service.cli", "worker"],
        environment=child_environment(unreachable, os.environ),
        quiet=True,
    )
    try:
        for folder in ("first", "second"):
            (tmp_path / folder).mkdir()
            job_id = queue_real_job(world, tmp_path / folder, controller="reference")
            assert supervise(world, here, job_id) is State.SUCCEEDED
            statement_numbers(world, job_id, windows=3, steps=6)
        assert helper.poll() is None, "it waits for the next job"
    finally:
        assert kill_group(helper)
