"""The unmodified `openai` client creates, watches and cancels a job that really trains."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from service.demo.client import DemoClient
from service.demo.server import LocalServer
from tests.integration.processes import descendants
from tests.integration.small_job import WINDOW, open_ground, request_for

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
