"""The parent of `rldp up`: prepares, starts three children, keeps them alive, stops them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import typer

from service.cli.children import bind_of
from service.cli.first_start import first_start
from service.cli.options import prepare
from service.migrate import upgrade
from service.settings import Settings
from service.worker.processes import child_environment, kill_group, start_tied

CHILDREN = ("api", "dispatcher", "worker")
LOOK_SECONDS = 0.2
BACK_OFF_SECONDS_MAX = 30.0
STEADY_SECONDS = 60.0
STOP_SECONDS = 9.0  # on top of what a trainer has to end its window


@dataclass(kw_only=True)
class Child:
    """One process that is started again when it ends, later each time."""

    name: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_after: float = 0.0
    failures: int = field(default=0)

    def tend(self, now: float) -> None:
        """Starts the process if it is due, and notices its end."""
        if self.process is None:
            if now >= self.start_after:
                self._start(now)
            return
        if self.process.poll() is None:
            return
        code = self.process.returncode
        kill_group(self.process)  # whatever it left behind
        self.process = None
        self.failures = 1 if now - self.started_at > STEADY_SECONDS else self.failures + 1
        pause = min(0.5 * 2 ** (self.failures - 1), BACK_OFF_SECONDS_MAX)
        self.start_after = now + pause
        typer.echo(f"{self.name} ended (exit code {code}); again in {pause:g} s.", err=True)

    def _start(self, now: float) -> None:
        self.process = start_tied(
            [sys.executable, "-m", "service.cli", self.name],
            environment=self.environment,
            quiet=False,
        )
        self.started_at = now

    def ask_to_stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)


def run_up(settings: Settings, *, keys_file: Path | None) -> int:
    """Runs until SIGTERM or SIGINT; the exit code of the command."""
    host, port = bind_of(settings)
    prepare(settings)
    upgrade(settings.resolved_database_url)
    first_start(settings, keys_file=keys_file)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    environment = child_environment(settings, os.environ)
    children = [Child(name=name, environment=environment) for name in CHILDREN]
    typer.echo(f"Data: {settings.data_dir.resolve()}")
    typer.echo(f"Starting http://{host}:{port} (API at /v1). Ctrl-C stops everything.")
    try:
        while not stop.is_set():
            for child in children:
                child.tend(time.monotonic())
            stop.wait(LOOK_SECONDS)
    finally:
        _stop(children, STOP_SECONDS + settings.leave_seconds)
    typer.echo("Stopped. A job that was running goes on at the next start.")
    return 0


def _stop(children: list[Child], patience_seconds: float) -> None:
    for child in children:
        child.ask_to_stop()
    deadline = time.monotonic() + patience_seconds
    for child in children:
        if child.process is None:
            continue
        try:
            child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            typer.echo(f"{child.name} does not stop; killed.", err=True)
        kill_group(child.process)
