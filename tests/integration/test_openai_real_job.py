"""The unmodified `openai` client steers jobs that really train: watch, cancel, pause, resume."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from service.demo.client import DemoClient
from service.demo.server import LocalServer
from tests.integration.processes import descendants
from tests.integration.small_job import STEPS, WINDOW, open_ground, request_for

SOON = 120.0
CANCEL_SECONDS = 30.0  # 15 s on a quiet host (service.md 12); this one may be busy


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    opened = LocalServer(tmp_path / "run")
    yield opened
    opened.stop()


def test_create_watch_and_cancel(server: LocalServer, tmp_path: Path) -> None:
    access = server.start()
    demo = DemoClient(access)
    ground = open_ground(demo, tmp_path)
    body = request_for(ground.file, steps=400)
    own = {name: body.pop(name) for name in ("privacy", "controller", "adapter")}
    with openai.OpenAI(api_key=access.keys["submitter"], base_url=f"{access.url}/v1") as client:
        job = client.fine_tuning.jobs.create(**body, extra_body=own)
        assert job.status == "queued"
        deadline = time.monotonic() + SOON
        while not any(
            "Window" in event.message
            for event in client.fine_tuning.jobs.list_events(job.id, limit=20).data
        ):
            assert time.monotonic() < deadline, "no window was reported"
            time.sleep(0.2)
        assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
        assert client.fine_tuning.jobs.checkpoints.list(job.id).data
        asked = time.monotonic()
        client.fine_tuning.jobs.cancel(job.id)
        while client.fine_tuning.jobs.retrieve(job.id).status != "cancelled":
            assert time.monotonic() - asked < CANCEL_SECONDS, "not cancelled in time"
            time.sleep(0.1)
        print(f"\ncancelled {time.monotonic() - asked:.1f} s after the request")
    assert server._process is not None
    running = [words for _, words in descendants(server._process.pid)]
    assert not any("service.worker.runner" in words for words in running)
    statement = demo.call("auditor", "GET", f"/ledger/jobs/{job.id}/statement")
    train = next(b for b in statement["blocks"] if b["block"] == "train")
    charged = sum(int(w["charge"]) for w in statement["windows"])
    assert 0 < int(train["spent_pico"]) == charged < int(train["reserved_pico"])
    assert train["held_pico"] == "0", "what was never started went back"
    assert all(w["steps"] == WINDOW for w in statement["windows"])
    demo.close()


@pytest.mark.ci
def test_a_pause_while_the_trainer_loads_costs_nothing(server: LocalServer, tmp_path: Path) -> None:
    access = server.start()
    demo = DemoClient(access)
    ground = open_ground(demo, tmp_path)
    body = request_for(ground.file)
    own = {name: body.pop(name) for name in ("privacy", "controller", "adapter")}
    with openai.OpenAI(api_key=access.keys["submitter"], base_url=f"{access.url}/v1") as client:
        jobs = client.fine_tuning.jobs
        job = jobs.create(**body, extra_body=own)

        def state() -> str:
            found = demo.call("submitter", "GET", f"/fine_tuning/jobs/{job.id}")
            return str(found["state"])

        _wait(lambda: state() == "starting", "no worker took it")
        assert jobs.pause(job.id).status == "pausing"
        _wait(lambda: state() == "paused", "not paused")
        statement = demo.call("auditor", "GET", f"/ledger/jobs/{job.id}/statement")
        assert statement["windows"] == []
        assert all(block["spent_pico"] == "0" for block in statement["blocks"])
        jobs.resume(job.id)
        _wait(lambda: jobs.retrieve(job.id).status == "succeeded", "it did not go on")
    demo.close()


@pytest.mark.ci
def test_pause_resume_and_end(server: LocalServer, tmp_path: Path) -> None:
    """What is charged at the end is exactly what ran: a pause redoes no window."""
    access = server.start()
    demo = DemoClient(access)
    ground = open_ground(demo, tmp_path)
    body = request_for(ground.file, steps=2 * STEPS)
    own = {name: body.pop(name) for name in ("privacy", "controller", "adapter")}
    with openai.OpenAI(api_key=access.keys["submitter"], base_url=f"{access.url}/v1") as client:
        jobs = client.fine_tuning.jobs
        job = jobs.create(**body, extra_body=own)
        _wait(lambda: bool(jobs.checkpoints.list(job.id).data), "no checkpoint")
        asked = time.monotonic()
        assert jobs.pause(job.id).status in ("pausing", "paused")
        _wait(lambda: jobs.retrieve(job.id).status == "paused", "not paused")
        print(f"\npaused {time.monotonic() - asked:.1f} s after the request")
        assert server._process is not None
        running = [words for _, words in descendants(server._process.pid)]
        assert not any("service.worker.runner" in words for words in running)
        half = _train_block(demo, job.id)
        assert int(half["spent_pico"]) > 0 and int(half["held_pico"]) > 0
        saved = jobs.checkpoints.list(job.id).data[0].step_number
        assert WINDOW <= saved < 2 * STEPS
        assert jobs.resume(job.id).status == "queued"
        _wait(lambda: jobs.retrieve(job.id).status == "succeeded", "did not end")
        events = [event.message for event in jobs.list_events(job.id, limit=100).data]
        states = [line.split(" ")[2].rstrip(".") for line in events if line.startswith("Job is ")]
    assert list(reversed(states)) == [
        *("queued", "starting", "running", "pausing", "paused"),
        *("queued", "starting", "running", "succeeded"),
    ]
    statement = demo.call("auditor", "GET", f"/ledger/jobs/{job.id}/statement")
    windows = statement["windows"]
    assert [w["outcome"] for w in windows] == ["done"] * (2 * STEPS // WINDOW)
    assert [w["window"] for w in windows] == list(range(2 * STEPS // WINDOW))
    assert {w["epoch"] for w in windows} == {1, 2}
    assert sum(w["steps"] for w in windows if w["epoch"] == 1) == saved
    assert sum(w["steps"] for w in windows) == 2 * STEPS
    train = _train_block(demo, job.id)
    assert int(train["spent_pico"]) == sum(int(w["charge"]) for w in windows)
    assert train["held_pico"] == "0"
    bundle = tmp_path / "bundle.zip"
    demo.download("auditor", "/ledger/bundle", bundle)
    demo.close()
    command = [sys.executable, "-m", "service.cli", "verify", str(bundle)]
    verdict = subprocess.run(command, capture_output=True, text=True, check=False)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


def _wait(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SOON
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def _train_block(demo: DemoClient, job_id: str) -> dict[str, str]:
    statement = demo.call("auditor", "GET", f"/ledger/jobs/{job_id}/statement")
    block: dict[str, str] = next(b for b in statement["blocks"] if b["block"] == "train")
    return block
