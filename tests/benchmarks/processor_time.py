"""Processor time of other processes of this host, and of the backends that serve them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from sqlalchemy import text

from service.database import Database

TICKS = os.sysconf("SC_CLK_TCK")
_USER, _SYSTEM = 11, 12  # fields of /proc/PID/stat after the command's closing bracket


def of_processes(pids: Iterable[int]) -> dict[int, float]:
    """Seconds that each has used so far, in user and kernel mode; without those that ended."""
    found = {}
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # ended, or a database on another host
            continue
        found[pid] = (int(fields[_USER]) + int(fields[_SYSTEM])) / TICKS
    return found


def since(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Seconds used between two looks; what ended in between is not counted."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


def backends(db: Database, application: str) -> list[int]:
    """Ids of the PostgreSQL processes that serve clients of this `application_name`."""
    asked = text("SELECT pid FROM pg_stat_activity WHERE application_name = :name")
    with db.reading() as session:
        return list(session.scalars(asked, {"name": application}))
