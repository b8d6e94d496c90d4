"""`kill -9` of the whole worker in mid-job, seen by a client of the real service.

The job resumes by itself from its last checkpoint; the oracle is the standalone verifier
on the exported bundle, with the client's own arithmetic beside it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.demo import stages
from service.demo.client import DemoClient
from service.demo.server import LocalServer
from tests.integration.processes import descendants
from tests.integration.small_job import STEPS, WINDOW, open_ground, quiet_screen, request_for

SOON = 240.0


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    monkeypatch.setenv("RLDP_LEASE_SECONDS", "6")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    opened = LocalServer(tmp_path / "run")
    yield opened
    opened.stop()


def wait_until(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SOON
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def test_the_job_resumes_by_itself_and_no_window_is_paid_twice_or_run_unpaid(
    server: LocalServer, tmp_path: Path
) -> None:
    client = DemoClient(server.start())
    ground = open_ground(client, tmp_path)
    job = client.call("submitter", "POST", "/fine_tuning/jobs", json=request_for(ground.file))
    path = f"/fine_tuning/jobs/{job['id']}"

    def step() -> int:
        return int(client.call("submitter", "GET", path)["progress"]["step"])

    wait_until(lambda: step() > WINDOW, "the job does not pass its first window")
    assert server._process is not None
    killed = [
        pid
        for pid, words in descendants(server._process.pid)
        if "service.worker.runner" in words or words.endswith("service.cli worker")
    ]
    assert len(killed) >= 2, "worker and trainer are running"
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    saved = client.call("submitter", "GET", f"{path}/checkpoints")["data"]
    assert saved, "a checkpoint was committed before the kill"

    def ended() -> bool:
        return client.call("submitter", "GET", path)["state"] in stages.ENDED

    wait_until(ended, "the job did not come back")
    job = client.call("submitter", "GET", path)
    assert job["state"] == "succeeded"
    assert job["attempt"] == 2
    statement = client.call("auditor", "GET", f"/ledger/jobs/{job['id']}/statement")
    windows = statement["windows"]
    assert [w["window"] for w in windows] == list(range(len(windows)))
    assert [w["outcome"] for w in windows].count("done") >= STEPS // WINDOW - 1
    resumed_at = max(s["step_number"] for s in saved)
    first = [w for w in windows if w["epoch"] == 1]
    second = [w for w in windows if w["epoch"] == 2]
    assert sum(w["steps"] for w in second) == STEPS - resumed_at, "from the last checkpoint on"
    assert sum(w["steps"] for w in first) <= resumed_at + WINDOW, "at most one window is lost"
    charged = sum(int(w["charge"]) for w in windows)
    train = next(b for b in statement["blocks"] if b["block"] == "train")
    assert int(train["spent_pico"]) == charged
    stages.release(client, quiet_screen(), job["id"])
    stages.download(client, job["id"], tmp_path)
    client.close()
    verdict = subprocess.run(
        [sys.executable, "-m", "service.cli", "verify", str(tmp_path / "ledger-bundle.zip")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr
