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
ALLOWED_PREFIXES = ("PYTHON", "LC_", "NCCL_", "GLOO_")
PROC = Path("/proc")
LEAVE_NOTE = "RLDP_LEAVE_NOTE"  # names a file that stands there once the worker leaves


def plain_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a child needs to run at all; no setting, hence no secret of ours."""
    return {
        name: value
        for name, value in environment.items()
        if name in ALLOWED or name.startswith(ALLOWED_PREFIXES)
    }


def child_environment(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: an allow-list, and the settings as they stand here.

    Paths are absolute, so that a child reads the same files from any folder.
    """
    ours = {name: value for name, value in environment.items() if name.startswith("RLDP_")}
    child = plain_environment(environment) | ours
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Path):
            value = value.resolve()
        if value is not None:
            child[f"RLDP_{name.upper()}"] = str(value)
    child["RLDP_DATABASE_URL"] = settings.resolved_database_url
    return child


def leave_note_of(environment: Mapping[str, str]) -> Path | None:
    """The file by which an attempt learns that its worker leaves, in its own environment."""
    note = environment.get(LEAVE_NOTE)
    return None if note is None else Path(note)


def start_tied(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    quiet: bool,
    talks: bool = False,
) -> subprocess.Popen[bytes]:
    """Starts a command in its own session, tied to the life of the calling thread.

    `quiet` drops its output: a trainer's tracebacks may quote data. One that `talks` has pipes
    for input and output.
    """
    sink = subprocess.DEVNULL if quiet else None
    return subprocess.Popen(
        [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *command],
        env=dict(environment),
        stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
        stdout=subprocess.PIPE if talks else sink,
        stderr=sink,
        close_fds=True,
        start_new_session=True,
    )


def group_is_empty(group: int) -> bool:
    """Whether no process of the group, and none that descends from it, runs any more.

    torchrun gives each rank a session of its own; those are told by what `launch` noted in
    their environment. Zombies hold nothing and do not count.
    """
    if not PROC.is_dir():
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False
    return not _members(group)


def _members(group: int) -> list[int]:
    numbers = [entry for entry in PROC.iterdir() if entry.name.isdigit()]
    return [int(entry.name) for entry in numbers if _belongs_to(entry, group)]


def _belongs_to(entry: Path, group: int) -> bool:
    try:
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
        if fields[0] in "ZX":
            return False
        return int(fields[2]) == group or _is_tied(entry, group)
    except OSError:
        return False  # ended while we looked


def _is_tied(entry: Path, group: int) -> bool:
    try:
        environment = (entry / "environ").read_bytes()
    except PermissionError:
        return False  # somebody else's
    prefix = f"{launch.TIED}=".encode()
    found = [each for each in environment.split(b"\0") if each.startswith(prefix)]
    return any(str(group).encode() in each[len(prefix) :].split(b",") for each in found)


def kill_group(process: subprocess.Popen[bytes], *, wait_seconds: float = 10) -> bool:
    """Kills the process, its group and all its descendants; whether all are gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + wait_seconds
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=wait_seconds)
    while not group_is_empty(process.pid):
        if time.monotonic() > deadline:
            return False
        _kill_strays(process.pid)
        time.sleep(0.02)
    return True


def _kill_strays(group: int) -> None:
    """The kernel does it for those with a death signal; the others are killed by id."""
    for pid in _members(group) if PROC.is_dir() else ():
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def stop_group(process: subprocess.Popen[bytes], *, grace_seconds: float) -> bool:
    """SIGTERM, a grace, then SIGKILL to the whole group; whether all are gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=grace_seconds)
    return kill_group(process)
