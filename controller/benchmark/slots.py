"""Which characters of a rendered note are values, not template.

The notes of Diabetes-130 are sentences of a fixed template; what a model learns about
patients is what it fills in. Loss on template words falls to nothing soon and says little.
A slot is any number, who the patient is, how they came, each named diagnosis, specialty,
drug, result, disposition and outcome. Sentences that say a value by their form alone ("No
HbA1c result.", "The patient died in hospital.") count as template. Free text has no slots.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Span = tuple[int, int]

_CUES = (
    "principal diagnosis was",
    "Principal diagnosis:",
    "main reason for admission was",
    "Secondary diagnoses included",
    "Other diagnoses:",
    "Also noted:",
    "specialty was",
    "Attending service:",
    "Diabetes treatment:",
    "Medication review:",
    "Disposition:",
    "Outcome:",
    "The patient was",
    "Hemoglobin A1c was",
    "HbA1c was",
    "Serum glucose",
)
_PATTERNS = (
    re.compile(r"(?<![A-Za-z])(\d+)"),
    re.compile(r"^(?:Patient:|This|An?) ([A-Za-z ]+?)(?:,| aged)"),
    re.compile(r"(?:[Aa]dmitted|came in) ([a-z ]+?)(?:\.| and stayed|;)"),
    re.compile(rf"(?:{'|'.join(map(re.escape, _CUES))}) ([^.]+)"),
)


def slot_spans(text: str) -> list[Span]:
    """Character spans of the values of a note, sorted, without overlaps."""
    found = sorted(m.span(1) for pattern in _PATTERNS for m in pattern.finditer(text))
    merged: list[Span] = []
    for start, end in found:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def slot_tokens(text: str, offsets: Sequence[Span]) -> list[bool]:
    """For each token, by its character offsets, whether it holds a character of a slot."""
    spans = slot_spans(text)
    return [any(a < end and start < b for a, b in spans) for start, end in offsets]
