"""The containers' health command says well of what works and of nothing else."""

from __future__ import annotations

import http.server
import importlib.util
import os
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.deploy.parts import DEPLOY


@pytest.fixture(scope="module")
def health() -> ModuleType:
    spec = importlib.util.spec_from_file_location("health", DEPLOY / "images" / "health.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_http(health: ModuleType) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert health.main(["http", f"{url}/healthz"]) == 0
        assert health.main(["http", f"{url}/readyz"]) == 1
        server.shutdown()
    assert health.main(["http", f"{url}/healthz"]) == 1


def test_fresh(health: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "rldp.prom"
    assert health.main(["fresh", str(path), "300"]) == 1
    path.touch()
    assert health.main(["fresh", str(path), "300"]) == 0
    os.utime(path, (time.time() - 301,) * 2)
    assert health.main(["fresh", str(path), "300"]) == 1


def process(proc: Path, pid: int, parent: int, *words: str) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "cmdline").write_bytes("\0".join(words).encode())
    (proc / str(pid) / "stat").write_text(f"{pid} (a (b) c) S {parent} 1 1")


def test_worker_needs_its_child(health: ModuleType, tmp_path: Path) -> None:
    process(tmp_path, 1, 0, "docker-init", "--", "rldp", "api")
    process(tmp_path, 7, 1, "/opt/rldp/bin/python", "/opt/rldp/bin/rldp", "worker")
    assert not health.has_worker(tmp_path)
    process(tmp_path, 9, 7, "/opt/rldp/bin/python", "/opt/rldp/bin/rldp", "worker")
    assert health.has_worker(tmp_path)


def test_wrong_use(health: ModuleType) -> None:
    assert health.main([]) == 2
