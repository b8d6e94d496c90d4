"""Attack figures of every arm beside what its epsilon allows, with intervals. Torch-free."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from controller.benchmark.privacy_suites import PrivacySuite
from controller.benchmark.results import Result
from dp_core.audit import bounds

DRAWS = 1_000
ATTACKS = {"loss_difference": "loss against base", "min_k": "Min-K%++"}
LOW_RATE = 0.01

Figure = Callable[[np.ndarray, np.ndarray], float]


def rows_of(
    suite: PrivacySuite, found: Mapping[str, Sequence[Result]], *, draws: int = DRAWS
) -> list[dict[str, Any]]:
    """One row for an arm with all its finished seeds; `draws` of the bootstrap."""
    return [_row(suite, arm, found[arm], draws) for arm in suite.arms if found.get(arm)]


def _row(suite: PrivacySuite, arm: str, results: Sequence[Result], draws: int) -> dict[str, Any]:
    members = suite.workload.patients
    row: dict[str, Any] = {
        "arm": arm,
        "seeds": len(results),
        "ceiling": results[0].facts["ceiling"],
        "attacks": {},
        "exposure": {},
    }
    for attack in ATTACKS:
        scores = np.array([r.facts["notes"][attack] for r in results])
        inside, outside = scores[:, :members], scores[:, members:]
        row["attacks"][attack] = {
            "auc": _interval(inside, outside, lambda a, b: bounds.auc(a, b).value, draws),
            "tpr_at_1fpr": _interval(
                inside, outside, lambda a, b: bounds.tpr_at(LOW_RATE, a, b).value, draws
            ),
        }
    repeats = np.array([canary.repeats for canary in suite.canaries()])
    scores = np.array([r.facts["canaries"]["loss_difference"] for r in results])
    for count in suite.repeats:
        bits = [bounds.exposure(line[repeats == count], line[repeats == 0]) for line in scores]
        row["exposure"][str(count)] = {
            "median": float(np.median(bits)),
            "max": float(np.max(bits)),
            "secrets": int((repeats == count).sum()),
        }
    return row


def _interval(
    inside: np.ndarray, outside: np.ndarray, figure: Figure, draws: int
) -> dict[str, float]:
    """Mean over seeds, and a 95 % bootstrap over notes, the same notes drawn for every seed."""
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(draws):
        a = generator.integers(inside.shape[1], size=inside.shape[1])
        b = generator.integers(outside.shape[1], size=outside.shape[1])
        drawn.append(_mean(inside[:, a], outside[:, b], figure))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": _mean(inside, outside, figure), "low": float(low), "high": float(high)}


def _mean(inside: np.ndarray, outside: np.ndarray, figure: Figure) -> float:
    return float(np.mean([figure(a, b) for a, b in zip(inside, outside, strict=True)]))


def write_privacy_table(
    suite: PrivacySuite, found: Mapping[str, Sequence[Result]], out: Path
) -> None:
    """`privacy.json` and `privacy.md` of what is finished."""
    rows = rows_of(suite, found)
    document = {"suite": suite.name, "epsilon": suite.epsilon, "rows": rows}
    (out / "privacy.json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    (out / "privacy.md").write_text(markdown(suite, rows))


def markdown(suite: PrivacySuite, rows: Sequence[Mapping[str, Any]]) -> str:
    """The table with what it was measured on, and what it does not say."""
    w = suite.workload
    heads = [f"{name} {figure}" for name in ATTACKS.values() for figure in ("AUC", "TPR at 1 %")]
    heads += [f"exposure, {count}x" for count in suite.repeats]
    lines = [
        f"# Membership and extraction attacks, suite {suite.name}",
        "",
        f"{w.patients} members and {w.notes_test} outsiders of {w.corpus}, {w.steps} steps of "
        f"{w.batch_size}, epsilon {suite.epsilon} at delta {w.delta}, one learning rate "
        f"({suite.learning_rate}) for all, nothing tuned. Intervals: 95 %, bootstrap over notes. "
        f"Exposure: median (largest) bits of {suite.canaries_each} secrets a seed, of "
        f"{math.log2(suite.left_out):.0f} possible.",
        "",
        "| arm | seeds | " + " | ".join(heads) + " | ceiling AUC | ceiling TPR at 1 % |",
        "| --- " * (len(heads) + 4) + "|",
    ]
    lines += [_line(suite, row) for row in rows]
    lines += [
        "",
        "A figure near chance (AUC .500, TPR 1 %) is what differential privacy predicts and no "
        "evidence of a correct implementation. The ceiling holds for one patient; a secret that "
        "stands in k notes is a group of k. These attacks see the final adapter only and are "
        "weaker than the strongest known.",
        "",
    ]
    return "\n".join(lines)


def _line(suite: PrivacySuite, row: Mapping[str, Any]) -> str:
    cells = [row["arm"], str(row["seeds"])]
    for attack in ATTACKS:
        told = row["attacks"][attack]
        auc, tpr = told["auc"], told["tpr_at_1fpr"]
        cells.append(f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]")
        cells.append(
            f"{100 * tpr['value']:.1f} % [{100 * tpr['low']:.1f}, {100 * tpr['high']:.1f}]"
        )
    for count in suite.repeats:
        bits = row["exposure"][str(count)]
        cells.append(f"{bits['median']:.1f} ({bits['max']:.1f})")
    ceiling = row["ceiling"]
    if ceiling is None:
        cells += ["none", "none"]
    else:
        cells += [f"{ceiling['auc']:.3f}", f"{100 * ceiling['tpr']:.1f} %"]
    return "| " + " | ".join(cells) + " |"
