"""Health of one container, as an exit code. Standard library only.

health.py http URL            the URL answers 200
health.py fresh FILE SECONDS  the file was written within so many seconds
health.py worker              a process `rldp worker` runs, and has a child to work with
"""

from __future__ import annotations

import sys
import time
import urllib.request
from pathlib import Path

TIMEOUT_SECONDS = 4.0


def answers(url: str) -> bool:
    """Whether a plain GET of our own port gives 200."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def is_fresh(path: Path, seconds: float) -> bool:
    """Whether a file that a loop rewrites is young enough for the loop to be alive."""
    try:
        return time.time() - path.stat().st_mtime <= seconds
    except OSError:
        return False


def has_worker(proc: Path = Path("/proc")) -> bool:
    """Whether a worker runs with its pool child: a parent alone answers no doorbell."""
    parents: set[str] = set()
    workers: set[str] = set()
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # ended while we looked
        if b"worker" in words and any(word.endswith((b"rldp", b"service.cli")) for word in words):
            workers.add(entry.name)
            parents.add(parent)
    return bool(workers & parents)


def main(arguments: list[str]) -> int:
    match arguments:
        case ["http", url]:
            is_well = answers(url)
        case ["fresh", path, seconds]:
            is_well = is_fresh(Path(path), float(seconds))
        case ["worker"]:
            is_well = has_worker()
        case _:
            print(__doc__)
            return 2
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
