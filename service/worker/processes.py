"""Starts and ends groups of processes that cannot outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from service.settings import Settings
from service.worker import launch

ALLOWED = (
    "PATH",
    "HOME",
    "TMPDIR",
    "LANG",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "CUDA_VISIBLE_DEVICES",
)
ALLOWED_PREFIXES = ("RLDP_", "PYTHON", "LC_")


def child_environment(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: an allow-list, and the settings as they stand here.

    Paths are absolute, so that a child reads the same files from any folder.
    """
    child = {
        name: value
        for name, value in environment.items()
        if name in ALLOWED or name.startswith(ALLOWED_PREFIXES)
    }
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Path):
            value = value.resolve()
        if value is not None:
            child[f"RLDP_{name.upper()}"] = str(value)
    child["RLDP_DATABASE_URL"] = settings.resolved_database_url
    return child


def start_tied(
    command: Sequence[str], *, environment: Mapping[str, str], quiet: bool
) -> subprocess.Popen[bytes]:
    """Starts a command in its own session, tied to the life of the calling thread.

    `quiet` drops its output: a trainer's tracebacks may quote data.
    """
    sink = subprocess.DEVNULL if quiet else None
    return subprocess.Popen(
        [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *command],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=sink,
        stderr=sink,
        close_fds=True,
        start_new_session=True,
    )


def group_is_empty(group: int) -> bool:
    """Whether no process of the group runs any more. Zombies hold nothing and do not count."""
    proc = Path("/proc")
    if not proc.is_dir():
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False
    return not any(_belongs_to(entry, group) for entry in proc.iterdir() if entry.name.isdigit())


def _belongs_to(entry: Path, group: int) -> bool:
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False  # ended while we looked
    return int(fields[2]) == group and fields[0] not in "ZX"


def kill_group(process: subprocess.Popen[bytes], *, wait_seconds: float = 10) -> bool:
    """Kills the process and all its descendants in its group; whether all are gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + wait_seconds
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=wait_seconds)
    while not group_is_empty(process.pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def stop_group(process: subprocess.Popen[bytes], *, grace_seconds: float) -> bool:
    """SIGTERM, a grace, then SIGKILL to the whole group; whether all are gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=grace_seconds)
    return kill_group(process)
