"""Starts `rldp up` as a child for the length of a demonstration, and stops it again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from service.demo.client import Access, DemoClient, DemoError, read_keys

READY_SECONDS = 90
STOP_SECONDS = 30
POLL_SECONDS = 0.25
KEYS_NAME = "keys.json"
LOG_LINES_SHOWN = 12


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class LocalServer:
    """The embedded service in a fresh directory, with its own process group and log file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keys_file = directory / KEYS_NAME
        self.log_file = directory / "server.log"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Access:
        """Starts it and returns once it is ready for requests.

        Raises:
            DemoError: it ended, or did not become ready in time.
        """
        self.directory.mkdir(parents=True, mode=0o700)
        command = [sys.executable, "-m", "service.cli", "up", "--port", str(self.port)]
        command += ["--data-dir", str(self.directory / "data"), "--keys-file", str(self.keys_file)]
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone; we then stop it in order
            )
        self._wait()
        return Access(
            url=self.url,
            keys=read_keys(self.keys_file),
            signing_dir=self.directory / "data" / "keys",
        )

    def _wait(self) -> None:
        probe = DemoClient(Access(url=self.url, keys={}, signing_dir=self.directory))
        deadline = time.monotonic() + READY_SECONDS
        try:
            while time.monotonic() < deadline:
                assert self._process is not None
                if self._process.poll() is not None:
                    raise DemoError(f"The service ended while starting.\n{self._log_tail()}")
                if self.keys_file.exists() and probe.is_ready():
                    return
                time.sleep(POLL_SECONDS)
        finally:
            probe.close()
        self.stop()
        raise DemoError(f"The service was not ready after {READY_SECONDS} s.\n{self._log_tail()}")

    def _log_tail(self) -> str:
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([f"End of {self.log_file}:", *lines[-LOG_LINES_SHOWN:]])

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Asks it to end, then insists. Safe to call twice."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
