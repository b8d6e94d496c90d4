"""Verdicts on documents made by hand: met, missed, or not judged."""

from __future__ import annotations

from typing import Any

import pytest

from controller.benchmark.goals import goal_lines


def pair(against: str, ratio: float, **changes: Any) -> dict[str, Any]:
    return {
        "corpus": "a",
        "arm": "rldp",
        "against": against,
        "is_published": against != "reference",
        "ratio": ratio,
        "low": ratio - 0.01,
        "high": ratio + 0.01,
        "seeds": 5,
        **changes,
    }


def document(*pairs: dict[str, Any], **row: Any) -> dict[str, Any]:
    base = {"arm": "rldp", "seeds": [1], "perplexity": 9.0, "untuned": None, "to_reference": None}
    rows = [
        base | {"controller_share": 0.004} | row,
        base | {"arm": "flat", "perplexity": 10.0, "controller_share": None},
    ]
    cell = {"corpus": "a", "epsilon": "8", "best_published": "flat", "rows": rows}
    return {"cells": [cell], "over_epsilons": list(pairs)}


def verdict(number: int, found: dict[str, Any]) -> str:
    return next(line for line in goal_lines(found) if line.startswith(f"{number}."))


class TestOverPublished:
    def test_met_on_two_corpora_with_five_seeds(self) -> None:
        pairs = [pair("flat", 0.94), pair("psac", 0.90), pair("flat", 0.93, corpus="b")]
        assert "met; closest is flat on a, ratio 0.940" in verdict(1, document(*pairs))

    @pytest.mark.parametrize("missing", [{"ratio": 0.95}, {"high": 1.0}])
    def test_one_baseline_missed_is_a_goal_missed(self, missing: dict[str, float]) -> None:
        pairs = [pair("flat", 0.94), pair("psac", 0.90) | missing]
        assert "MISSED" in verdict(1, document(*pairs))

    def test_one_corpus_or_few_seeds_do_not_suffice(self) -> None:
        assert "so far, on 1 corpora" in verdict(1, document(pair("flat", 0.9)))
        few = [pair("flat", 0.9, seeds=2), pair("flat", 0.9, corpus="b")]
        assert "so far" in verdict(1, document(*few))

    def test_silence_meets_nothing(self) -> None:
        assert "not judged" in verdict(1, document())
        assert "not judged" in verdict(2, document())
        assert "not judged" in verdict(3, document())


def test_over_reference_needs_one_percent_and_the_interval() -> None:
    assert "met" in verdict(2, document(pair("reference", 0.98)))
    assert "MISSED" in verdict(2, document(pair("reference", 0.995)))
    assert "MISSED" in verdict(2, document(pair("reference", 0.98, high=1.001)))


def test_untuned_is_held_against_the_best_tuned_baseline() -> None:
    near = document(untuned={"perplexity": 10.1})
    far = document(untuned={"perplexity": 10.3})
    assert "met; largest ratio 1.010" in verdict(3, near)
    assert "MISSED; largest ratio 1.030" in verdict(3, far)


def test_controller_time() -> None:
    assert "met; 0.40 %" in verdict(4, document())
    assert "MISSED; 2.00 %" in verdict(4, document(controller_share=0.02))


def test_the_safety_net_fails_where_the_whole_interval_is_above_one() -> None:
    worse = document(to_reference={"ratio": 1.05, "low": 1.01, "high": 1.09})
    unsure = document(to_reference={"ratio": 1.05, "low": 0.99, "high": 1.09})
    assert "FAILED" in goal_lines(worse)[-1]
    assert "no learned arm" in goal_lines(unsure)[-1]


def test_without_a_learned_arm_nothing_is_judged() -> None:
    assert "not judged" in goal_lines({"cells": [], "over_epsilons": []})[0]
