"""Looks up the processes below one, so that a test kills by id and never by name."""

from __future__ import annotations

from pathlib import Path


def descendants(root: int) -> list[tuple[int, str]]:
    """(process id, command line) of all children, grandchildren, ... of `root`."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue  # ended while we looked
        parents[int(entry.name)] = (parent, words)
    found: list[tuple[int, str]] = []
    level = {root}
    while level:
        level = {pid for pid, (parent, _) in parents.items() if parent in level}
        found += [(pid, parents[pid][1]) for pid in sorted(level)]
    return found
