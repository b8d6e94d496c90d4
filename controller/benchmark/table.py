"""From finished runs to the table: JSON for machines, Markdown for people. Torch-free.

Rows are sorted by perplexity; nothing is left out, and what is not finished says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from controller.benchmark.goals import goal_lines
from controller.benchmark.results import Result, ResultsFile, Run
from controller.benchmark.statistics import Losses, Ratio, mean_loss, paired_ratio, perplexity
from controller.benchmark.study import ArmFacts, Cell, Study
from controller.benchmark.suites import CEILING, FLOOR, RATES

OURS = ("rldp_pretrained", "rldp", "reference_slow_a", "reference")
REFERENCE = "reference"


def losses_of(results: Sequence[Result], *, slots: bool = False) -> Losses:
    """(S, M, 2) of runs on the same notes."""
    return np.stack([r.losses(slots=slots) for r in results])


class Report:
    """What a study says about each cell and across epsilons."""

    def __init__(self, study: Study, results: ResultsFile) -> None:
        self.study, self._find = study, results.find

    def document(self) -> dict[str, Any]:
        """Everything the table says, JSON-ready."""
        return {
            "suite": self.study.suite.name,
            "cells": [self._cell(cell) for cell in self.study.cells],
            "over_epsilons": self._over_epsilons(),
            "short": [self._short(cell) for cell in self.study.short_cells()],
        }

    # One cell ---------------------------------------------------------------------

    def finished(self, cell: Cell, arm: str) -> dict[int, Result]:
        """Test runs at the tuned rate by seed."""
        if arm == FLOOR:
            rate: str | None = "0"
        else:
            rate = self.study.tuned_rate(cell, arm)
        if rate is None:
            return {}
        return self._by_seed(cell, arm, rate)

    def _by_seed(self, cell: Cell, arm: str, rate: str) -> dict[int, Result]:
        runs = {seed: cell.run(arm, rate=rate, seed=seed) for seed in self.study.seeds}
        return {s: found for s, run in runs.items() if (found := self._find(run)) is not None}

    def _cell(self, cell: Cell) -> dict[str, Any]:
        best = self.best_published(cell)
        rows = [self._row(cell, name, best) for name in self._rows_of(cell)]
        rows.sort(key=lambda row: (row["perplexity"] is None, row["perplexity"]))
        return {
            "model": cell.model,
            "corpus": cell.workload.corpus,
            "epsilon": cell.epsilon,
            "workload": cell.run(FLOOR, rate="0", seed=1).to_dict()["workload"],
            "best_published": best,
            "rows": rows,
        }

    def _rows_of(self, cell: Cell) -> list[str]:
        return [FLOOR, *[arm.name for arm in self.study.arms], CEILING]

    def best_published(self, cell: Cell) -> str | None:
        """The published arm of lowest mean loss at its tuned rate."""
        losses = {
            arm.name: mean_loss(losses_of(list(found.values())))
            for arm in self.study.arms
            if arm.published and (found := self.finished(cell, arm.name))
        }
        return min(losses, key=lambda name: losses[name]) if losses else None

    def _row(self, cell: Cell, name: str, best: str | None) -> dict[str, Any]:
        found = self.finished(cell, name)
        results = list(found.values())
        row: dict[str, Any] = {
            "arm": name,
            "seeds": sorted(found),
            "learning_rate": results[0].run["learning_rate"] if results else None,
            "is_rate_at_grid_end": bool(results)
            and results[0].run["learning_rate"] in (RATES[0], RATES[-1]),
            "perplexity": _finite(perplexity(losses_of(results))) if results else None,
            "perplexity_slots": None,
            "to_reference": self._ratio([(cell, name, REFERENCE)]),
            "to_best_published": self._ratio([(cell, name, best)]) if best else None,
            "untuned": self._untuned(cell, name),
            "controller_share": _controller_share(results),
        }
        if results and losses_of(results, slots=True)[..., 1].sum():
            row["perplexity_slots"] = _finite(perplexity(losses_of(results, slots=True)))
        return row

    def _untuned(self, cell: Cell, name: str) -> dict[str, Any] | None:
        arm = next((a for a in self.study.arms if a.name == name), None)
        if arm is None:
            return None
        found = list(self._by_seed(cell, name, arm.default_learning_rate).values())
        if not found:
            return None
        return {
            "learning_rate": arm.default_learning_rate,
            "perplexity": _finite(perplexity(losses_of(found))),
            "seeds": len(found),
        }

    def _ratio(self, pairs: Sequence[tuple[Cell, str, str]]) -> dict[str, Any] | None:
        """Over the seeds that both arms have finished; None where there is none."""
        losses = []
        for cell, name, other in pairs:
            a, b = self.finished(cell, name), self.finished(cell, other)
            seeds = sorted(set(a) & set(b))
            if name == other or not seeds:
                return None
            losses.append((losses_of([a[s] for s in seeds]), losses_of([b[s] for s in seeds])))
        return _ratio_document(paired_ratio(losses))

    # Across cells -----------------------------------------------------------------

    def _over_epsilons(self) -> list[dict[str, Any]]:
        """Ours against every other arm: mean over epsilon, for each model and corpus."""
        found = []
        names = [arm.name for arm in self.study.arms]
        for cells in self._by_workload():
            for ours in (name for name in OURS if name in names):
                for arm in self.study.arms:
                    ratio = self._ratio([(cell, ours, arm.name) for cell in cells])
                    if ratio is not None:
                        found.append(
                            {
                                "model": cells[0].model,
                                "corpus": cells[0].workload.corpus,
                                "epsilons": [cell.epsilon for cell in cells],
                                "arm": ours,
                                "against": arm.name,
                                "is_published": arm.published,
                                **ratio,
                            }
                        )
        return found

    def _by_workload(self) -> list[list[Cell]]:
        groups: dict[Any, list[Cell]] = {}
        for cell in self.study.cells:
            groups.setdefault((cell.model, cell.workload), []).append(cell)
        return list(groups.values())

    def _short(self, cell: Cell) -> dict[str, Any]:
        shorter = cell.shorter()
        rows = []
        for name in self.study.short_arms(cell):
            whole, half = self.finished(cell, name), self.finished(shorter, name)
            if half:
                rows.append(
                    {
                        "arm": name,
                        "seeds": len(half),
                        "learning_rate": next(iter(half.values())).run["learning_rate"],
                        "perplexity_short": _finite(perplexity(losses_of(list(half.values())))),
                        "perplexity": _finite(perplexity(losses_of(list(whole.values())))),
                    }
                )
        return {
            "model": cell.model,
            "corpus": cell.workload.corpus,
            "epsilon": cell.epsilon,
            "steps": cell.workload.steps,
            "steps_short": shorter.workload.steps,
            "rows": rows,
        }


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _ratio_document(ratio: Ratio) -> dict[str, Any]:
    return {
        "ratio": _finite(ratio.value),
        "low": _finite(ratio.low),
        "high": _finite(ratio.high),
        "seeds": ratio.seeds,
    }


def _controller_share(results: Sequence[Result]) -> float | None:
    spent = sum(r.facts.get("seconds_controller", 0.0) for r in results)
    whole = sum(r.facts.get("seconds_training", 0.0) for r in results)
    return round(spent / whole, 5) if whole and spent else None


# Markdown -------------------------------------------------------------------------


def markdown(document: dict[str, Any]) -> str:
    """The table as people read it."""
    lines = [f"# Utility benchmark, suite `{document['suite']}`", "", *_LEGEND, ""]
    lines += [*goal_lines(document), ""]
    for cell in document["cells"]:
        lines += [*_cell_lines(cell), ""]
    lines += _over_lines(document["over_epsilons"])
    for short in document["short"]:
        lines += _short_lines(short)
    return "\n".join(lines).rstrip() + "\n"


_LEGEND = (
    "Perplexity on test notes, lower is better: geometric mean over seeds. Ratios compare runs of "
    "the same seeds and notes, with 95 % paired bootstrap intervals; below 1 is better. Every arm "
    "has the same (epsilon, delta), patients, batch, steps and compute, its sensing charged. Each "
    "learning rate was chosen on separate notes, from one grid; `untuned` is the arm's published "
    "rate. `!` marks a rate at an end of the grid. `base` is the untrained model; `non_private` is "
    "the reference's optimiser without noise or clipping, and private in no way. The best "
    "published arm is picked on the test notes, which favours it.",
)


def _cell_lines(cell: dict[str, Any]) -> list[str]:
    w = cell["workload"]
    return [
        f"## {cell['corpus']}, epsilon {cell['epsilon']}",
        "",
        f"{cell['model']}, LoRA r {w['rank']}; up to {w['patients']} patients, delta "
        f"{w['delta']}, {w['tokens_per_row']} tokens a row, expected batch {w['batch_size']}, "
        f"{w['steps']} steps.",
        "",
        "| arm | perplexity | slot tokens | rate | to reference | to best published "
        f"({cell['best_published'] or 'none yet'}) | untuned | seeds | controller time |",
        "|---|---|---|---|---|---|---|---|---|",
        *[_row_line(row) for row in cell["rows"]],
    ]


def _row_line(row: dict[str, Any]) -> str:
    if not row["seeds"]:
        return f"| {row['arm']} | not finished |" + " |" * 7
    untuned = row["untuned"]
    rate = "" if row["arm"] == FLOOR else row["learning_rate"]
    cells = [
        row["arm"],
        _number(row["perplexity"]),
        _number(row["perplexity_slots"]) if row["perplexity_slots"] else "",
        f"{rate}{'!' if row['is_rate_at_grid_end'] else ''}",
        _ratio_text(row["to_reference"]),
        _ratio_text(row["to_best_published"]),
        f"{_number(untuned['perplexity'])} ({untuned['seeds']})" if untuned else "",
        str(len(row["seeds"])),
        "" if row["controller_share"] is None else f"{100 * row['controller_share']:.2f} %",
    ]
    return "| " + " | ".join(cells) + " |"


def _over_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "## Ours against each arm, mean over epsilon",
        "",
        "| corpus | ours | against | perplexity ratio | seeds |",
        "|---|---|---|---|---|",
    ]
    # All pairs are in the JSON; the best learned arm and the reference are what goals ask for.
    shown = {next(name for name in OURS if any(r["arm"] == name for r in rows)), REFERENCE}
    for row in (r for r in rows if r["arm"] in shown):
        against = f"{row['against']}{' (published)' if row['is_published'] else ''}"
        lines.append(
            f"| {row['corpus']} | {row['arm']} | {against} | {_ratio_text(row)} | {row['seeds']} |"
        )
    return [*lines, ""]


def _short_lines(short: dict[str, Any]) -> list[str]:
    if not short["rows"]:
        return []
    return [
        f"## {short['steps_short']} instead of {short['steps']} steps, "
        f"{short['corpus']}, epsilon {short['epsilon']}",
        "",
        "Noise is re-calibrated and the rate tuned anew for the shorter budget.",
        "",
        f"| arm | {short['steps_short']} steps | rate | {short['steps']} steps | seeds |",
        "|---|---|---|---|---|",
        *[
            f"| {r['arm']} | {_number(r['perplexity_short'])} | {r['learning_rate']} "
            f"| {_number(r['perplexity'])} | {r['seeds']} |"
            for r in short["rows"]
        ],
        "",
    ]


def _number(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.2f}" if value < 1e4 else f"{value:.2g}"


def _ratio_text(ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return ""
    return " ".join([_ratio_number(ratio["ratio"]), _interval(ratio["low"], ratio["high"])])


def _interval(low: float | None, high: float | None) -> str:
    return f"[{_ratio_number(low)}, {_ratio_number(high)}]"


def _ratio_number(value: float | None) -> str:
    return "inf" if value is None else f"{value:.3f}" if value < 100 else f"{value:.2g}"


def write_table(study: Study, results: ResultsFile, folder: Path) -> str:
    """Writes `table.json` and `table.md`; returns the latter."""
    document = Report(study, results).document()
    (folder / "table.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = markdown(document)
    (folder / "table.md").write_text(text, encoding="utf-8")
    return text


def watched_runs(study: Study, results: ResultsFile) -> list[tuple[Cell, ArmFacts, Run, Result]]:
    """The first seed of every arm at its tuned rate: what plots show."""
    found = []
    for cell in study.cells:
        for arm in study.arms:
            rate = study.tuned_rate(cell, arm.name)
            run = None if rate is None else cell.run(arm.name, rate=rate, seed=1)
            result = None if run is None else results.find(run)
            if run is not None and result is not None and result.windows:
                found.append((cell, arm, run, result))
    return found
