"""What a run is, what it gave, and the file of finished runs. Torch-free."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from controller.benchmark.statistics import Losses, mean_loss
from controller.benchmark.suites import Workload

FORMAT = 1
RESULTS_NAME = "results.jsonl"
DIVERGED = 1e6  # nats; what a loss counts that is not a number

Split = Literal["tuning", "test"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One fine-tune and one evaluation; equal runs of one data folder give equal losses."""

    model: str
    workload: Workload
    arm: str
    epsilon: str
    learning_rate: str
    seed: int
    split: Split

    @property
    def key(self) -> str:
        """Names everything that decides the outcome; finished runs are found by it."""
        w = self.workload
        sizes = (
            f"{w.corpus}-n{w.patients}-l{w.tokens_per_row}-b{w.batch_size}-t{w.steps}"
            f"-w{w.steps_per_window}-r{w.rank}-a{w.averaging_decay}-m{w.beta1}-d{w.delta}-e{w.notes_tuning}.{w.notes_test}"
        )
        return "/".join(
            [
                self.model,
                sizes,
                self.arm,
                f"eps{self.epsilon}",
                f"lr{self.learning_rate}",
                f"seed{self.seed}",
                self.split,
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run. `notes` per note: loss and tokens of all tokens, then of slot tokens."""

    key: str
    run: dict[str, Any]
    notes: list[list[float]]  # (M, 4)
    facts: dict[str, Any]  # plan, policy, charges, seconds
    curve: list[list[float]]  # step and loss of a few test notes
    windows: list[dict[str, Any]]

    def losses(self, *, slots: bool = False) -> Losses:
        """(M, 2): summed loss and tokens of each note. Not-a-number counts as a large loss."""
        both = np.asarray(self.notes, dtype=np.float64)
        return both[:, 2:] if slots else both[:, :2]

    @property
    def loss(self) -> float:
        return mean_loss(self.losses()[None])


class ResultsFile:
    """Finished runs, one JSON line each, appended as they end; a torn last line is dropped."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RESULTS_NAME
        self._torn_from: int | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.by_key: dict[str, Result] = {r.key: r for r in self._read()}

    def _read(self) -> Iterable[Result]:
        if not self._path.is_file():
            return
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            # Cut off with the first line added: a reader must not cut what another is writing.
            self._torn_from = len(whole)
        for line in whole.splitlines():
            document = json.loads(line)
            if document.pop("format") == FORMAT:
                yield Result(**document)

    def add(self, result: Result) -> None:
        """Durable when it returns."""
        line = json.dumps({"format": FORMAT, **asdict(result)}, separators=(",", ":"))
        if self._torn_from is not None:
            os.truncate(self._path, self._torn_from)
            self._torn_from = None
        with self._path.open("a", encoding="utf-8") as target:
            target.write(line + "\n")
            target.flush()
            os.fsync(target.fileno())
        self.by_key[result.key] = result

    def find(self, run: Run) -> Result | None:
        return self.by_key.get(run.key)
