"""Text canaries: notes of made-up patients with a secret each, in a clinical template. Torch-free.

A secret is six digits drawn uniformly; its prefix names the patient, so that no two canaries
share one. Secrets that are left out are the reference set for the exposure of those that
are in (1802.08232, section 4; audit.md 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controller.benchmark.corpora import Note

PREFIX = "Patient {name} was seen for review. The access code given by telephone is"
DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class TextCanary:
    """A public text whose last characters are the secret; `repeats` 0: left out."""

    prefix: str
    secret: str
    repeats: int

    @property
    def text(self) -> str:
        return f"{self.prefix}{self.secret}"

    def patients(self) -> list[Note]:
        """One patient for each repetition: a group, compared with group privacy (AU5)."""
        names = [f"canary {self.prefix[8:14]} {i}" for i in range(self.repeats)]
        return [Note(patient=name, text=self.text) for name in names]


def make_canaries(
    repeats: tuple[int, ...], *, each: int, left_out: int, seed: int
) -> list[TextCanary]:
    """`each` canaries of every number of repetitions, and the reference set behind them."""
    generator = np.random.default_rng(seed)
    counts = [*np.repeat(repeats, each).tolist(), *[0] * left_out]
    names = generator.choice(900_000, size=len(counts), replace=False) + 100_000
    return [
        TextCanary(
            prefix=PREFIX.format(name=name),
            secret=" " + "".join(map(str, generator.integers(0, 10, DIGITS))),
            repeats=count,
        )
        for name, count in zip(names.tolist(), counts, strict=True)
    ]
