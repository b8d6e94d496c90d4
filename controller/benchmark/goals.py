"""Whether the goals of controller.md section 5 are met, read off a table's document.

A goal that cannot be judged yet says so; none is met by silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

GAIN_OVER_PUBLISHED = 0.946  # at least 5.4 % lower perplexity
GAIN_OVER_REFERENCE = 0.99
UNTUNED_MAX = 1.02
CONTROLLER_SHARE_MAX = 0.01
CORPORA_MIN = 2
SEEDS_MIN = 5
LEARNED = ("rldp_pretrained", "rldp")  # the first that is in the table stands for the controller

Document = dict[str, Any]


def goal_lines(document: Document) -> list[str]:
    """One Markdown line a goal: met, missed by how much, or not judged and why."""
    name = next((n for n in LEARNED if _has_rows(document, n)), None)
    if name is None:
        return ["Goals: not judged, no learned controller has a finished run."]
    return [
        f"Goals of the controller, judged on `{name}`:",
        "",
        f"1. {_over_published(document, name)}",
        f"2. {_over_reference(document, name)}",
        f"3. {_untuned(document, name)}",
        f"4. {_time(document, name)}",
        "",
        f"Safety net: {_safety(document)}",
    ]


def _rows(document: Document, name: str) -> Iterable[tuple[Document, Document]]:
    for cell in document["cells"]:
        for row in cell["rows"]:
            if row["arm"] == name and row["seeds"]:
                yield cell, row


def _has_rows(document: Document, name: str) -> bool:
    return any(True for _ in _rows(document, name))


def _pairs(document: Document, name: str) -> list[Document]:
    return [pair for pair in document["over_epsilons"] if pair["arm"] == name]


def _over_published(document: Document, name: str) -> str:
    text = "at least 5.4 % lower perplexity than each published baseline on two corpora: "
    pairs = [p for p in _pairs(document, name) if p["is_published"]]
    if not pairs:
        return text + "not judged, no published arm shares a seed at every epsilon."
    worst = max(pairs, key=lambda p: p["ratio"])
    corpora = {p["corpus"] for p in pairs}
    missed = [p for p in pairs if p["ratio"] > GAIN_OVER_PUBLISHED or p["high"] >= 1]
    said = f"closest is {worst['against']} on {worst['corpus']}, {_interval(worst)}"
    if missed:
        return f"{text}MISSED; {said}."
    if len(corpora) < CORPORA_MIN or min(p["seeds"] for p in pairs) < SEEDS_MIN:
        return f"{text}so far, on {len(corpora)} corpora; {said}."
    return f"{text}met; {said}."


def _over_reference(document: Document, name: str) -> str:
    text = "at least 1 % lower perplexity than `reference`: "
    pairs = [p for p in _pairs(document, name) if p["against"] == "reference"]
    if not pairs:
        return text + "not judged, no seed shared at every epsilon."
    is_met = all(p["ratio"] <= GAIN_OVER_REFERENCE and p["high"] < 1 for p in pairs)
    verdict = "MISSED" if not is_met else "met" if _is_enough(pairs) else "so far"
    said = "; ".join(f"{p['corpus']} {_interval(p)}" for p in pairs)
    return f"{text}{verdict}; {said}."


def _is_enough(pairs: Sequence[Document]) -> bool:
    return all(p["seeds"] >= SEEDS_MIN for p in pairs)


def _untuned(document: Document, name: str) -> str:
    text = "untuned within 2 % of the best tuned published baseline: "
    found = []
    for cell, row in _rows(document, name):
        best = next((r for r in cell["rows"] if r["arm"] == cell["best_published"]), None)
        if best and best["perplexity"] and row["untuned"] and row["untuned"]["perplexity"]:
            where = f"{cell['corpus']} epsilon {cell['epsilon']}"
            found.append((row["untuned"]["perplexity"] / best["perplexity"], where))
    if not found:
        return text + "not judged, no untuned run finished."
    ratio, where = max(found)
    return (
        f"{text}{'met' if ratio <= UNTUNED_MAX else 'MISSED'}; largest ratio {ratio:.3f}, {where}."
    )


def _time(document: Document, name: str) -> str:
    text = "controller at most 1 % of training time: "
    shares = [row["controller_share"] or 0.0 for _, row in _rows(document, name)]
    largest = max(shares)
    verdict = "met" if largest <= CONTROLLER_SHARE_MAX else "MISSED"
    return f"{text}{verdict}; {100 * largest:.2f} % of runs of this size."


def _safety(document: Document) -> str:
    """A learned arm may not end worse than the reference by more than the interval."""
    worse = [
        f"{name} on {cell['corpus']} at epsilon {cell['epsilon']}, {_interval(row['to_reference'])}"
        for name in LEARNED
        for cell, row in _rows(document, name)
        if row["to_reference"] and row["to_reference"]["low"] > 1
    ]
    if worse:
        return "FAILED, worse than the reference beyond the interval: " + "; ".join(worse) + "."
    return "no learned arm is worse than the reference beyond its interval."


def _interval(pair: Document) -> str:
    return f"ratio {pair['ratio']:.3f} [{pair['low']:.3f}, {pair['high']:.3f}]"
