"""Starts and ends the process that plants known faults (`worker/planting.py`). Loads no torch.

A worker that has just started has them planted while it waits for a job: once for each code, image
and kind of device, whatever the number of workers. No job waits for it. On a processor the process
goes on beside a job with time that nobody else wants; on a GPU, where it would take memory, it
gives way and begins again. A job that ends before is served by its trainer, which plants the
faults before its verdict, for at most `trainer_seconds`.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from service.settings import Settings
from service.worker.device import device_name
from service.worker.processes import child_environment, kill_group, start_tied

logger = logging.getLogger(__name__)

IDLE_SECONDS = 1800  # of a process that has only left-over time
TRAINER_SECONDS = 300  # what a job's end may wait, and the next job with it
LOOK_SECONDS = 0.2
TOGETHER_SECONDS = 5  # the process gives up by itself a little before it is killed


def are_wanted(settings: Settings) -> bool:
    """Whether a PASS is possible here at all: only steps that are attacked can earn one."""
    return settings.audit_controls and settings.audit_in_job and settings.ranks_per_job == 1


def trainer_seconds(settings: Settings) -> int:
    """How long a trainer waits at most: never so long that it is called stalled."""
    return min(TRAINER_SECONDS, settings.stall_seconds // 2)


def planting_command(seconds: int, *, nice: bool) -> list[str]:
    command = [sys.executable, "-m", "service.worker.planting", "--seconds", str(seconds)]
    return [*command, "--nice"] if nice else command


def run_planting(
    settings: Settings,
    *,
    seconds: int,
    must_end: Callable[[], bool],
    nice: bool = False,
    command: Sequence[str] | None = None,
) -> int | None:
    """Runs the process to its end; its exit code, None where it was ended by `must_end`.

    Its death is tied to the calling thread, which must live on. `command` replaces it in tests.
    """
    environment = child_environment(settings, os.environ) | {"OMP_NUM_THREADS": "1"}
    own_limit = max(1, seconds - TOGETHER_SECONDS)
    process = start_tied(
        command or planting_command(own_limit, nice=nice), environment=environment, quiet=True
    )
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            try:
                return process.wait(timeout=LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                if must_end():
                    return None
    finally:
        kill_group(process)
    return process.returncode


@dataclass(kw_only=True)
class IdleControls:
    """A worker's thread that has the faults planted while no job is there.

    `occupied` is set while the worker runs a job, `stop` when it leaves.
    """

    settings: Settings
    occupied: threading.Event
    stop: threading.Event
    command: Sequence[str] | None = None  # in tests, in place of the planting process
    gives_way: bool = field(default_factory=lambda: not device_name().startswith("CPU"))

    def run(self) -> None:
        """Until a record is there, the process has failed, or the worker leaves."""
        while not self.stop.is_set():
            if self._is_in_the_way():
                self.stop.wait(LOOK_SECONDS)
                continue
            code = run_planting(
                self.settings,
                seconds=IDLE_SECONDS,
                must_end=lambda: self.stop.is_set() or self._is_in_the_way(),
                nice=True,
                command=self.command,
            )
            if code is not None:
                if code != 0:
                    logger.warning("positive controls not planted", extra={"code": str(code)})
                return

    def _is_in_the_way(self) -> bool:
        return self.gives_way and self.occupied.is_set()
