"""Noise that changes over a run by a schedule fixed before it: its segments and its shape.

A schedule is part of the plan and counts *started* steps (privacy.md section 8): a step redone
after a crash moves along it. What it costs follows from the plan alone, so that every
composition of fixed steps may certify it (A5, A6). Torch-free, no data.

The levels are a small set of decimal strings, so that the ledger's entry of a job can hold
the price of each at every order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from itertools import groupby, pairwise
from typing import Any, Literal, get_args

from dp_core.errors import PlanInvalid
from dp_core.events import PoissonGaussian, decimal_of

SEGMENTS_MAX = 32
LEVELS_MAX = 8
GRID = Decimal("0.001")  # of every noise multiplier that a planner sets
FACTOR_STEP = Decimal("0.0001")

Curve = Literal["geometric", "linear"]


@dataclass(frozen=True, kw_only=True)
class NoiseSegment:
    """`steps` started steps in a row at one noise multiplier, a decimal string."""

    noise_multiplier: str
    steps: int

    def __post_init__(self) -> None:
        if decimal_of(self.noise_multiplier, field="noise_schedule") <= 0:
            raise PlanInvalid("noise_schedule", "a noise multiplier that is not positive")
        if self.steps < 1:
            raise PlanInvalid("noise_schedule", "a segment without steps")


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The noise multiplier of every step that may ever be started, in its one written form.

    Raises:
        PlanInvalid: no segments or more than 32, more than 8 levels, two neighbours of equal
            level, or one number written in two ways.
    """

    segments: tuple[NoiseSegment, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.segments) <= SEGMENTS_MAX:
            raise PlanInvalid("noise_schedule", f"needs 1 to {SEGMENTS_MAX} segments")
        texts = [segment.noise_multiplier for segment in self.segments]
        values = {Decimal(text) for text in texts}
        if len(values) > LEVELS_MAX:
            raise PlanInvalid("noise_schedule", f"more than {LEVELS_MAX} levels", "Use fewer.")
        if len(values) != len(set(texts)):
            raise PlanInvalid("noise_schedule", "one level written in two ways")
        if any(a == b for a, b in pairwise(texts)):
            raise PlanInvalid("noise_schedule", "neighbours of equal level", "Join them.")

    @classmethod
    def constant(cls, noise_multiplier: str, steps: int) -> NoiseSchedule:
        return cls(segments=(NoiseSegment(noise_multiplier=noise_multiplier, steps=steps),))

    @property
    def steps(self) -> int:
        """All steps that may ever be started under it."""
        return sum(segment.steps for segment in self.segments)

    @property
    def levels(self) -> tuple[str, ...]:
        """Its noise multipliers, ascending, each once."""
        return tuple(sorted({s.noise_multiplier for s in self.segments}, key=Decimal))

    def at(self, step: int) -> tuple[str, int]:
        """Level of the started step `step`, from 0, and how many steps hold it from there on.

        Raises:
            PlanInvalid: the schedule has no such step.
        """
        if step >= 0:
            end = 0
            for segment in self.segments:
                end += segment.steps
                if step < end:
                    return segment.noise_multiplier, end - step
        raise PlanInvalid("noise_schedule", "a step outside the schedule")

    def prefix(self, steps: int) -> tuple[tuple[str, int], ...]:
        """(level, steps) of the first `steps` started steps, in order."""
        found, left = [], steps
        for segment in self.segments:
            if left <= 0:
                break
            found.append((segment.noise_multiplier, min(segment.steps, left)))
            left -= segment.steps
        return tuple(found)

    def events(self, q: str) -> tuple[PoissonGaussian, ...]:
        """What the whole schedule releases at rate `q`: one event per level, ascending.

        Prices add up and the composition of fixed steps does not depend on their order, so
        that equal levels are counted together.
        """
        return tuple(
            PoissonGaussian(
                q=q,
                noise_multiplier=level,
                steps=sum(s.steps for s in self.segments if s.noise_multiplier == level),
            )
            for level in self.levels
        )

    def to_list(self) -> list[dict[str, Any]]:
        """As plan, ledger and certificate write it (ledger.md 6, `reserve`)."""
        return [{"level": s.noise_multiplier, "steps": s.steps} for s in self.segments]

    @classmethod
    def from_list(cls, document: Sequence[Mapping[str, Any]]) -> NoiseSchedule:
        """Inverse of `to_list`. Unknown or missing fields are refused."""
        if any(set(part) != {"level", "steps"} for part in document):
            raise PlanInvalid("noise_schedule", "unknown or missing fields")
        return cls(
            segments=tuple(
                NoiseSegment(noise_multiplier=part["level"], steps=part["steps"])
                for part in document
            )
        )


@dataclass(frozen=True, kw_only=True)
class NoiseShape:
    """A course of the noise over the planned run, before its height is known. Public.

    `factors` are positive decimal strings; each holds for an equal part of the planned
    windows. The steps kept for redone windows take the largest: they are rarely started, and
    their price lies on every step that is. The planner finds the number that all are
    multiplied with.
    """

    factors: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.factors) <= SEGMENTS_MAX:
            raise PlanInvalid("noise_shape", f"needs 1 to {SEGMENTS_MAX} factors")
        if any(decimal_of(factor, field="noise_shape") <= 0 for factor in self.factors):
            raise PlanInvalid("noise_shape", "a factor that is not positive")

    @classmethod
    def decaying(
        cls, *, final_fraction: str, levels: int = 4, curve: Curve = "geometric"
    ) -> NoiseShape:
        """Noise that falls from 1 to `final_fraction` in `levels` stairs of equal length.

        Late steps change the released weights most, as the learning rate falls and averages
        forget; a decaying noise spends more of the privacy on them.

        Raises:
            PlanInvalid: the fraction is outside (0, 1], or the stairs outside 2..8.
        """
        final = decimal_of(final_fraction, field="noise_shape.final_fraction")
        if not 0 < final <= 1:
            raise PlanInvalid("noise_shape.final_fraction", "outside (0, 1]")
        if not 2 <= levels <= LEVELS_MAX:
            raise PlanInvalid("noise_shape.levels", f"outside 2..{LEVELS_MAX}")
        if curve not in get_args(Curve):
            raise PlanInvalid("noise_shape.curve", f"not one of {', '.join(get_args(Curve))}")
        parts = [Decimal(i) / (levels - 1) for i in range(levels)]
        values = [final**p if curve == "geometric" else 1 - p * (1 - final) for p in parts]
        return cls(factors=tuple(str(v.quantize(FACTOR_STEP)) for v in values))

    def over(
        self, *, steps_planned: int, steps_started_max: int, steps_per_chunk: int
    ) -> tuple[tuple[str, int], ...]:
        """(factor, steps) of every started step; borders are borders of whole windows."""
        windows = -(-steps_planned // steps_per_chunk)
        found: list[tuple[str, int]] = []
        for window in range(windows):
            factor = self.factors[window * len(self.factors) // windows]
            first = window * steps_per_chunk
            found.append((factor, min(steps_per_chunk, steps_started_max - first)))
        if steps_started_max > windows * steps_per_chunk:
            spare = steps_started_max - windows * steps_per_chunk
            found.append((max(self.factors, key=Decimal), spare))
        return tuple(
            (factor, sum(steps for _, steps in part))
            for factor, part in groupby(found, key=lambda pair: pair[0])
        )


def scaled(parts: Sequence[tuple[str, int]], scale: Decimal) -> NoiseSchedule:
    """The schedule whose multipliers are `scale` times each factor, rounded up to the grid."""
    joined: list[NoiseSegment] = []
    for factor, steps in parts:
        level = str((scale * Decimal(factor)).quantize(GRID, rounding=ROUND_CEILING))
        if joined and joined[-1].noise_multiplier == level:
            steps += joined.pop().steps
        joined.append(NoiseSegment(noise_multiplier=level, steps=steps))
    return NoiseSchedule(segments=tuple(joined))
