"""A spot node's notice: SIGTERM to a working worker, as a client of the real service sees it.

The window that is open ends and is saved; the job goes on from there, every step once.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.demo import stages
from service.demo.client import DemoClient
from service.demo.server import LocalServer
from tests.integration.processes import descendants
from tests.integration.small_job import STEPS, WINDOW, open_ground, request_for

SOON = 240.0


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    monkeypatch.setenv("RLDP_LEAVE_SECONDS", "60")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    opened = LocalServer(tmp_path / "run")
    yield opened
    opened.stop()


def wait_until(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SOON
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_a_notice_costs_no_step_no_charge_and_no_attempt(
    server: LocalServer, tmp_path: Path
) -> None:
    client = DemoClient(server.start())
    ground = open_ground(client, tmp_path)
    job = client.call("submitter", "POST", "/fine_tuning/jobs", json=request_for(ground.file))
    path = f"/fine_tuning/jobs/{job['id']}"

    def look() -> dict[str, object]:
        found: dict[str, object] = client.call("submitter", "GET", path)
        return found

    def windows() -> list[dict[str, object]]:
        statement = client.call("auditor", "GET", f"/ledger/jobs/{job['id']}/statement")
        return list(statement["windows"])

    wait_until(lambda: any(w["outcome"] == "open" for w in windows()), "no window opens")
    assert server._process is not None
    (worker,) = [
        pid
        for pid, words in descendants(server._process.pid)
        if words.endswith("service.cli worker")
        and any("service.worker.runner" in w for _, w in descendants(pid))
        and any(w.endswith("service.cli worker") for _, w in descendants(pid))
    ]
    os.kill(worker, signal.SIGTERM)
    wait_until(lambda: look()["state"] in stages.ENDED, "the job did not come back")
    ended = look()
    assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
    seen = windows()
    assert {w["epoch"] for w in seen} == {1, 2}, "it was stopped in the middle"
    assert [w["outcome"] for w in seen] == ["done"] * (STEPS // WINDOW)
    assert sum(int(str(w["steps"])) for w in seen) == STEPS, "no step is paid twice"
    texts = [e["message"] for e in client.call("submitter", "GET", f"{path}/events")["data"]]
    assert any("worker" in text.lower() and "stop" in text.lower() for text in texts), texts
    client.close()
