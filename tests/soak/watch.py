"""What each part of the service holds while it works, and whether that grows without end.

Counted of a part are its own processes; trainers come and go with their jobs. Memory is private
memory, so that pages which processes share are not counted twice.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.integration.processes import descendants

PROC = Path("/proc")
ATTEMPT = "--job"  # in the command line of a trainer
MIB = 1024 * 1024
Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Figures by name at one moment, in seconds from the start."""

    at: float
    figures: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Growth that is still noise: so much, or this share of the level, whichever is more."""

    amount: float
    share: float


LIMITS: dict[str, Limit] = {
    "memory MiB": Limit(amount=8, share=0.05),
    "handles": Limit(amount=4, share=0.10),
    "threads": Limit(amount=2, share=0.10),
    "connections": Limit(amount=4, share=0.10),
    "files": Limit(amount=4, share=0.10),
}


@dataclass(frozen=True, kw_only=True)
class Growth:
    """One figure's medians of the second and the third part of the time."""

    name: str
    before: float
    after: float
    limit: float

    @property
    def leaks(self) -> bool:
        return self.after - self.before > self.limit

    def line(self) -> str:
        verdict = "LEAK" if self.leaks else "ok"
        return (
            f"{verdict:<5} {self.name:<28} {self.before:9.1f} -> {self.after:9.1f}"
            f"   (allowed +{self.limit:.1f})"
        )


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """Compares the last third of the time with the one before; the first is warm-up.

    A figure that a part did not have in both is left out: the part was started anew. A steady
    leak grows from third to third; what fills once, such as caches, does not.

    Raises:
        ValueError: fewer than three samples in a third; that would be no answer.
    """
    end = samples[-1].at
    second = [s.figures for s in samples if end / 3 <= s.at < end * 2 / 3]
    third = [s.figures for s in samples if s.at >= end * 2 / 3]
    if min(len(second), len(third)) < 3:
        raise ValueError("too few samples to tell a leak from noise")
    names = sorted(set.intersection(*(set(figures) for figures in (*second, *third))))
    return [_growth(name, second, third) for name in names]


def _growth(
    name: str, second: Sequence[Mapping[str, float]], third: Sequence[Mapping[str, float]]
) -> Growth:
    before = statistics.median(figures[name] for figures in second)
    after = statistics.median(figures[name] for figures in third)
    limit = next(limit for kind, limit in LIMITS.items() if name.endswith(kind))
    return Growth(
        name=name, before=before, after=after, limit=max(limit.amount, limit.share * before)
    )


def of_part(name: str, pid: int) -> Figures:
    """Memory, handles and threads of a part's own processes; empty if it has just ended."""
    tree = [(pid, ""), *descendants(pid)]
    attempts = {p for p, words in tree if ATTEMPT in words}
    for attempt in list(attempts):
        attempts |= {p for p, _ in descendants(attempt)}
    own = [p for p, _ in tree if p not in attempts]
    found = [figures for each in own if (figures := _of_process(each)) is not None]
    if not found:
        return {}
    return {
        f"{name} memory MiB": sum(f[0] for f in found) / MIB,
        f"{name} handles": sum(f[1] for f in found),
        f"{name} threads": sum(f[2] for f in found),
    }


def _of_process(pid: int) -> tuple[float, float, float] | None:
    try:
        rollup = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        handles = len(list((PROC / str(pid) / "fd").iterdir()))
        threads = len(list((PROC / str(pid) / "task").iterdir()))
    except OSError:
        return None  # ended while we looked
    private = sum(_bytes(line) for line in rollup if line.startswith(("Private_", "Swap:")))
    return private, handles, threads


def _bytes(line: str) -> float:
    return float(line.split()[1]) * 1024


def files_below(folder: Path) -> int:
    """How many files and folders lie below a folder; what goes while we look may count or not."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(folder))
