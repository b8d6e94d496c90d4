"""`rldp up` as a user starts it: first start, restart of children, and its end."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.service.worker.test_supervisor import is_alive

SOON = 45.0
ROOT = Path(__file__).resolve().parents[3]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not fact():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def children_of(pid: int) -> dict[str, int]:
    """Children of the parent by command, from the process table."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except (OSError, NotADirectoryError):
            continue
        if int(fields[1]) == pid and b"service.cli" in command:
            found[command[-2].decode()] = int(entry.name)
    return found


class Up:
    """One `rldp up` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.log = folder / "up.log"
        self.keys_file = folder / "keys.json"

    @contextmanager
    def running(self, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "service.cli", "up", "--port", str(self.port)]
        command += ["--data-dir", str(self.folder / "data"), *options]
        with self.log.open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        try:
            wait_for(self.is_ready)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(SOON)
            finally:
                process.kill()

    def is_ready(self) -> bool:
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5)
        except httpx.TransportError:
            return False
        return answer.status_code == 200


@pytest.fixture
def site(tmp_path: Path) -> Up:
    return Up(tmp_path)


def test_first_start_makes_keys_once_and_sigterm_stops_every_process(site: Up) -> None:
    with site.running("--keys-file", str(site.keys_file)) as process:
        wait_for(lambda: len(children_of(process.pid)) == 3)
        pids = children_of(process.pid)
        assert set(pids) == {"api", "dispatcher", "worker"}
        keys = json.loads(site.keys_file.read_text())
        assert set(keys) == {"admin", "submitter", "steward_1", "steward_2", "auditor"}
        assert site.keys_file.stat().st_mode & 0o777 == 0o600
        answer = httpx.get(
            f"http://127.0.0.1:{site.port}/v1/fine_tuning/jobs",
            headers={"Authorization": f"Bearer {keys['submitter']}"},
        )
        assert answer.status_code == 200
    assert process.returncode == 0
    assert not any(is_alive(pid) for pid in pids.values())
    for key in keys.values():
        assert key not in site.log.read_text()
    before = site.keys_file.read_text()
    with site.running("--keys-file", str(site.keys_file)):
        assert site.keys_file.read_text() == before
    assert "First start" not in site.log.read_text().partition("Stopped.")[2]


def test_an_idle_connection_outlives_the_patience_of_clients(site: Up) -> None:
    """httpx, and so the openai client, drops one after 5 s; to use it then must not fail."""
    with site.running():
        wire = http.client.HTTPConnection("127.0.0.1", site.port, timeout=SOON)
        for pause in (0.0, 7.0):
            time.sleep(pause)
            if wire.sock is None:
                wire.connect()
            used = wire.sock
            wire.request("GET", "/healthz")
            answer = wire.getresponse()
            answer.read()
            assert answer.status == 200
            assert wire.sock is used, "the same connection"
        wire.close()


def test_a_dead_child_is_started_again(site: Up) -> None:
    with site.running() as process:
        wait_for(lambda: len(children_of(process.pid)) == 3)
        killed = children_of(process.pid)["api"]
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: children_of(process.pid).get("api", killed) != killed)
        wait_for(site.is_ready)
    log = site.log.read_text()
    assert "api ended" in log
    assert log.count("shown once") == 1, "without a keys file the keys are on the screen"


def test_killing_the_parent_leaves_nobody_behind(site: Up) -> None:
    with site.running() as process:
        wait_for(lambda: len(children_of(process.pid)) == 3)
        pids = children_of(process.pid)
        grandchildren = list(children_of(pids["worker"]).values())
        assert grandchildren, "the worker's pool child"
        process.kill()
        wait_for(lambda: not any(is_alive(pid) for pid in [*pids.values(), *grandchildren]))
