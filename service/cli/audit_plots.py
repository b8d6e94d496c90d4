"""Pictures of a finished audit: scores of canaries, ROC curve, bounds beside the ledger's claim.

Drawn from the report and its scores alone, which leave with a released adapter: functions of
noised sums, public canaries and coins (audit.md AU1). matplotlib is an extra (`rldp[bench]`).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dp_core.audit.saved import SavedAudit

IN_COLOUR, OUT_COLOUR, LEDGER_COLOUR = "#b3541e", "#2a6f97", "#222222"
BINS, CEILING_POINTS = 40, 400
NEAR_CHANCE = "near chance is what privacy predicts, and no evidence of a correct implementation"


def is_available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def write_plots(saved: SavedAudit, scores: bytes, folder: Path) -> list[Path]:
    """Writes `scores.png`, `roc.png` and `bounds.png` of an audit of a job's own steps.

    Raises: as `dp_core.audit.saved.attack_scores`, and OSError.
    """
    import matplotlib

    from dp_core.audit.saved import attack_scores

    matplotlib.use("Agg")
    values, is_member = attack_scores(saved, scores)
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _scores(saved, values, is_member, folder / "scores.png"),
        _roc(saved, values, is_member, folder / "roc.png"),
        _bounds(saved, folder / "bounds.png"),
    ]


def roc_points(values: np.ndarray, is_member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates of every threshold, from (0, 0) to (1, 1); ties move once."""
    order = np.argsort(-values, kind="stable")
    hits, last = is_member[order], np.append(np.diff(values[order]) != 0, True)
    true, false = np.cumsum(hits)[last], np.cumsum(~hits)[last]
    start = np.zeros(1)
    return (
        np.concatenate([start, false / max(1, false[-1])]),
        np.concatenate([start, true / max(1, true[-1])]),
    )


def _scores(saved: SavedAudit, values: np.ndarray, is_member: np.ndarray, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(8, 4.5))
    edges = np.histogram_bin_edges(values, bins=BINS)
    for told, colour, name in (
        (~is_member, OUT_COLOUR, "stayed out"),
        (is_member, IN_COLOUR, "took part"),
    ):
        label = f"{int(told.sum())} that {name}"
        panel.hist(values[told], edges, alpha=0.55, color=colour, label=label)
    panel.set(xlabel="membership score, over all steps", ylabel="canaries")
    panel.set_title(f"{saved.report.job_id}: scores of {len(values)} public canaries", fontsize=10)
    panel.legend(loc="upper right")
    return _save(figure, path)


def _roc(saved: SavedAudit, values: np.ndarray, is_member: np.ndarray, path: Path) -> Path:
    import matplotlib.pyplot as plt

    assert saved.claim is not None and saved.report.roc is not None
    ledger, roc = saved.report.ledger, saved.report.roc
    curve, (false, true) = saved.claim.curve(), roc_points(values, is_member)
    x = np.concatenate([np.geomspace(1e-3, 1e-2, CEILING_POINTS), np.linspace(1e-2, 1, 400)[1:]])
    ceiling = [curve.max_tpr(float(each)) for each in x]
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.8))
    for panel, scale in zip(panels, ("linear", "log"), strict=True):
        panel.plot(x, ceiling, color=LEDGER_COLOUR, linestyle="--", label="the ledger allows")
        panel.step(false, true, color=IN_COLOUR, where="post", label="this attack")
        panel.plot(x, x, color="#999999", linewidth=0.8, label="guessing")
        panel.set(xlabel="false-positive rate", ylabel="true-positive rate", xscale=scale)
        panel.set(yscale=scale, ylim=(1e-3 if scale == "log" else 0, 1))
        panel.set_xlim(1e-3 if scale == "log" else 0, 1)
    panels[0].legend(loc="lower right")
    figure.suptitle(
        f"AUC {roc.auc:.3f} (95 %: {roc.ci95[0]:.3f} to {roc.ci95[1]:.3f}), at most "
        f"{roc.ledger_max_auc:.3f} under epsilon {ledger.epsilon} at delta {ledger.delta} per "
        f"{ledger.unit};\n{NEAR_CHANCE}.\nOne canary that stayed out is "
        f"{1 / int((~is_member).sum()):.1%} of the lower axis: its far left is a matter of luck.",
        fontsize=10,
    )
    return _save(figure, path)


def _bounds(saved: SavedAudit, path: Path) -> Path:
    import matplotlib.pyplot as plt

    from dp_core.audit.report import rounded_down

    run, ledger = saved.report.one_run, saved.report.ledger
    assert run is not None
    figure, panel = plt.subplots(figsize=(9, 3.4))
    methods = (
        ("one-run f-DP,\nGaussian family", run.eps_lb95_fdp, run.largest_fdp),
        ("one-run Steinke,\nNasr, Jagielski", run.eps_lb95_steinke, run.largest_steinke),
    )
    for place, (_, value, largest) in enumerate(methods):
        panel.barh(place, value, height=0.45, color=IN_COLOUR)
        panel.plot([largest], [place], marker="|", markersize=22, color=OUT_COLOUR)
        panel.annotate(
            f"{rounded_down(value)} of at most {rounded_down(largest)}",
            (value, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip
    claimed, width = float(ledger.epsilon), 1.15 * max(float(ledger.epsilon), run.largest_fdp)
    panel.axvline(claimed, color=LEDGER_COLOUR, linestyle="--")
    side = -1 if claimed > width / 2 else 1  # where there is room for its name
    panel.annotate(
        f"the ledger's epsilon {ledger.epsilon}",
        (claimed, len(methods) - 0.45), xytext=(4 * side, 0),
        textcoords="offset points", ha="right" if side < 0 else "left", fontsize=9,
    )  # fmt: skip
    panel.set(yticks=range(len(methods)), yticklabels=[name for name, _, _ in methods])
    panel.set(xlim=(0, width), ylim=(-0.6, 2))
    panel.set_xlabel(f"lower bound on epsilon at delta {ledger.delta}, 95 % confidence")
    panel.set_title(
        f"{saved.report.job_id}, m = {saved.manifest.m}. A low bound is no evidence that epsilon "
        "is right.\nTick: the largest value this audit could have shown",
        fontsize=10,
    )
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
