"""What label, page and certificate say of an audit, for each tier and verdict (audit.md 10)."""

from __future__ import annotations

from typing import Any

import pytest

from service.audits.service import headline, limits

SUMMARY: dict[str, Any] = {
    "canaries": 1000,
    "one_run_lower_bound": {
        "confidence": "95 %",
        "largest": "12.33",
        "method": "one-run f-DP, Gaussian family",
        "value": "0.41",
    },
    "self_test": "PASS",
    "self_test_alarm_level": "1e-6",
    "self_test_min_p": "0.2",
    "steps": 60,
    "tier": "T2",
    "verdict": "PASS",
}


def test_a_bound_stands_beside_the_largest_that_could_have_been_shown() -> None:
    """AU35: lower bound, confidence, method, and what the audit could have shown."""
    words = f"{headline(SUMMARY)}. {limits(SUMMARY)}"
    for part in ("of this job", "60 steps", "lower bound", "0.41", "12.33", "95 %", "f-DP"):
        assert part in words
    assert "no evidence that epsilon is right" in words
    assert "was not attacked" not in words
    assert not [w for w in ("verified", "measured", "certified", "proof") if w in words.lower()]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"verdict": "FAIL"}, "a fault was found"),
        ({"self_test": "FAIL"}, "a fault was found"),
        ({"self_test": "INCONCLUSIVE", "verdict": "INCONCLUSIVE"}, "of this job: no conclusion"),
        ({"tier": "T1"}, "on synthetic text: no fault found"),
    ],
)
def test_the_headline_says_no_more_than_was_seen(change: dict[str, Any], said: str) -> None:
    assert said in headline(SUMMARY | change)


def test_a_preflight_alone_says_that_the_run_was_not_attacked() -> None:
    alone = SUMMARY | {"tier": "T1", "one_run_lower_bound": None, "verdict": "INCONCLUSIVE"}
    assert "The run on patients' records was not attacked" in limits(alone)


def test_secrets_of_made_up_patients_are_told_with_what_they_could_have_said() -> None:
    text = {
        "canaries": 100,
        "exposure_median": "1.1",
        "exposure_possible": "5.7",
        "largest": "6.10",
        "value": "0.00",
    }
    words = limits(SUMMARY | {"text_canaries": text})
    for part in ("100 made-up patients", "1.1 bits", "chance gives 1.0", "0.00 of at most 6.10"):
        assert part in words
    assert "prove nothing" in words
    assert "made-up" not in limits(SUMMARY)
