"""Slots of rendered notes: values, never template."""

from __future__ import annotations

import pytest

from controller.benchmark.slots import slot_spans, slot_tokens


@pytest.mark.parametrize(
    ("sentence", "values"),
    [
        ("Patient: white man, 60 to 70 years old.", ["white man", "60", "70"]),
        (
            "A white woman, age 80 to 90 years, came in urgently through the emergency room; "
            "the hospital stay was 5 days.",
            ["white woman", "80", "90", "urgently through the emergency room", "5"],
        ),
        (
            "This Asian woman aged 60 to 70 years was admitted on physician referral and stayed "
            "3 days.",
            ["Asian woman", "60", "70", "on physician referral", "3"],
        ),
        ("Admitted.", []),
        ("Admitted electively.", ["electively"]),
        ("The principal diagnosis was heart failure.", ["heart failure"]),
        ("Also noted: anemia and neuropathy.", ["anemia and neuropathy"]),
        ("Hemoglobin A1c was not measured.", ["not measured"]),
        ("HbA1c was greater than 8%.", ["greater than 8%"]),
        ("No HbA1c result.", []),
        ("Diabetes treatment: insulin increased.", ["insulin increased"]),
        ("The patient was discharged home.", ["discharged home"]),
        ("Outcome: readmitted within 30 days.", ["readmitted within 30 days"]),
        ("There were no hospital visits in the preceding year.", []),
    ],
)
def test_values_of_each_sentence(sentence: str, values: list[str]) -> None:
    assert [sentence[a:b] for a, b in slot_spans(sentence)] == values


def test_a_token_counts_if_it_holds_a_character_of_a_slot() -> None:
    text = "Outcome: not readmitted."
    offsets = [(0, 7), (7, 8), (8, 12), (12, 23), (23, 24)]
    assert slot_tokens(text, offsets) == [False, False, True, True, False]
