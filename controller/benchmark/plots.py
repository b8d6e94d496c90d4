"""Pictures of a study: learning curves, and what each arm did to each clip group.

matplotlib is an extra (`pip install rldp[bench]`): a service that trains needs no plotting
library, and a table is written without it.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from controller.benchmark.results import Result, ResultsFile
from controller.benchmark.study import Cell, Study
from controller.benchmark.table import watched_runs
from dp_core.accounting import pld_epsilon_coarse
from dp_core.events import PoissonGaussian

INTERVAL = 1e-3  # of the curve's epsilons; the certificate's own is finer
POINTS = 8
GROUP_PANELS = ("clip norm C", "noise std of the sum s", "share of the noise budget", "rate factor")


def is_available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def write_plots(study: Study, results: ResultsFile, folder: Path) -> list[Path]:
    """Writes the PNGs of every cell with at least one watched run; returns their paths."""
    import matplotlib

    matplotlib.use("Agg")
    written = []
    watched = watched_runs(study, results)
    for cell in study.cells:
        runs = [(arm.name, result) for c, arm, _, result in watched if c == cell]
        if not runs:
            continue
        stem = f"{cell.model}-{cell.workload.corpus}-eps{cell.epsilon}"
        written.append(_curves(runs, folder / f"loss-{stem}.png", cell))
        for name, result in runs:
            written.append(_groups(name, result, folder / f"groups-{stem}-{name}.png", cell))
    return written


def _curves(runs: Sequence[tuple[str, Result]], path: Path, cell: Cell) -> Path:
    """Test loss of the averaged weights against steps, and against epsilon spent."""
    import matplotlib.pyplot as plt

    figure, (by_steps, by_epsilon) = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True)
    styles = itertools.cycle(["-", "--", ":"])
    for index, (name, result) in enumerate(runs):
        steps = [point[0] for point in result.curve]
        losses = [point[1] for point in result.curve]
        style = {"color": f"C{index % 10}", "linestyle": next(styles) if index % 10 == 0 else "-"}
        if index >= 10:
            style["linestyle"] = "--"
        by_steps.plot(steps, losses, label=name, **style)
        few = result.curve[:: max(len(result.curve) // POINTS, 1)]
        spent = [epsilon_after(result, int(step)) for step, _ in few]
        by_epsilon.plot(spent, [loss for _, loss in few], label=name, **style)
    by_steps.set(xlabel="steps", ylabel="loss of a test token, nats (8 notes)")
    by_epsilon.set(xlabel=f"epsilon spent, at delta {cell.workload.delta}")
    by_epsilon.legend(fontsize=7, loc="upper right")
    figure.suptitle(f"{cell.workload.corpus}, epsilon {cell.epsilon}, seed 1, tuned rates")
    return _save(figure, path)


def epsilon_after(result: Result, step: int) -> float:
    """Epsilon of the windows up to a step: an upper bound by PLD, at the run's delta."""
    windows: dict[str, int] = {}
    left = step
    for level, steps in result.facts["levels"]:
        taken = min(steps, left)
        if taken > 0:
            windows[level] = windows.get(level, 0) + taken
        left -= taken
    spent = tuple(sorted(windows.items()))
    return _epsilon(result.facts["q"], spent, result.facts["delta"])


@cache
def _epsilon(q: str, spent: tuple[tuple[str, int], ...], delta: str) -> float:
    events = [PoissonGaussian(q=q, noise_multiplier=level, steps=n) for level, n in spent]
    return pld_epsilon_coarse(events, delta, INTERVAL)


def _groups(name: str, result: Result, path: Path, cell: Cell) -> Path:
    """Clip norm, noise, share and rate factor of every clip group, window by window."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(12, 7), sharex=True)
    steps = [window["step"] for window in result.windows]
    ids = list(result.windows[0]["groups"])
    for row, (panel, label) in enumerate(zip(panels.flat, GROUP_PANELS, strict=True)):
        for index, group in enumerate(ids):
            values = [window["groups"][group][row] for window in result.windows]
            shade = plt.get_cmap("viridis")(index / max(len(ids) - 1, 1))
            dashes = "--" if group.endswith(".B") else "-"
            panel.plot(steps, values, color=shade, linestyle=dashes, linewidth=0.9)
        panel.set(ylabel=label, yscale="log" if row < 3 else "linear")
    for panel in panels[1]:
        panel.set_xlabel("steps")
    figure.suptitle(
        f"{name}: {len(ids)} clip groups, {cell.workload.corpus}, epsilon {cell.epsilon} "
        "(solid A, dashed B; dark first layer, light last)"
    )
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
