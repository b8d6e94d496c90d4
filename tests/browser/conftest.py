"""A real browser on real pages: the system's chromium, a server on a free port."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, sync_playwright

from service.hub import hub_of
from tests.browser.visits import Visit, open_visit
from tests.service.dashboard.scene import Scene, open_scene

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
START_SECONDS = 20
ROOT = Path(__file__).resolve().parents[2]


def browser_options() -> dict[str, Any]:
    """How to start the system's browser. Skips the test where there is none."""
    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no chromium on this machine (Debian: apt install chromium)")
    return {"executable_path": path, "args": ["--no-sandbox"] if os.geteuid() == 0 else []}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    options = browser_options()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**options)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with open_scene(tmp_path_factory.mktemp("scene")) as made:
        yield made


@pytest.fixture(scope="session")
def address(scene: Scene) -> Iterator[str]:
    with served(scene) as found:
        yield found


@contextmanager
def served(scene: Scene) -> Iterator[str]:
    """The service over the scene, by HTTP."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = uvicorn.Config(
        scene.app, host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    hub_of(scene.app).close()
    server.should_exit = True
    thread.join(START_SECONDS)


@pytest.fixture
def visit(browser: Browser, address: str, scene: Scene) -> Iterator[Visit]:
    made = open_visit(browser, address)
    made.sign_in(scene.keys["steward"])
    yield made
    made.page.context.close()


@pytest.fixture
def pictures() -> Path:
    """Where screenshots stay after the run; git ignores it."""
    folder = Path(os.environ.get("RLDP_SCREENSHOTS", ROOT / "build" / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
