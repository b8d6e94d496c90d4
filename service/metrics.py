"""Every metric a job may write, declared once with its release class (service.md 14).

An undeclared name cannot be written: `require_declared` stands in front of the only
insert. There is no class for exact training values, because no such value leaves the
training step (privacy.md 12).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ReleaseClass(StrEnum):
    """Who may see a series. `private_noised` was charged before it was shown."""

    PUBLIC = "public"
    PRIVATE_NOISED = "private_noised"


class UndeclaredMetric(LookupError):
    """A metric was written that this module does not declare."""

    def __init__(self) -> None:
        super().__init__("A metric needs a declaration in service/metrics.py before it is written.")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """One series: its class, whether it exists per clip group, and what it shows."""

    name: str
    release_class: ReleaseClass
    is_per_group: bool
    meaning: str


_PUBLIC, _NOISED = ReleaseClass.PUBLIC, ReleaseClass.PRIVATE_NOISED

DECLARATIONS: dict[str, Declaration] = {
    declaration.name: declaration
    for declaration in (
        Declaration(
            name="loss_noised",
            release_class=_NOISED,
            is_per_group=False,
            meaning="clipped training loss of a window, noised inside the charged release",
        ),
        Declaration(
            name="clip_fraction_noised",
            release_class=_NOISED,
            is_per_group=True,
            meaning="share of patients at or below the clip norm, noised inside the release",
        ),
        Declaration(
            name="validation_loss_noised",
            release_class=_NOISED,
            is_per_group=False,
            meaning="hold-out loss, charged to the validation block as a query",
        ),
        Declaration(
            name="noise_multiplier",
            release_class=_PUBLIC,
            is_per_group=False,
            meaning="effective noise multiplier of the window's level",
        ),
        Declaration(
            name="learning_rate",
            release_class=_PUBLIC,
            is_per_group=False,
            meaning="base learning rate at the window's end",
        ),
        Declaration(
            name="clip_norm",
            release_class=_PUBLIC,
            is_per_group=True,
            meaning="clip norm of a group in the window, a function of released values",
        ),
        Declaration(
            name="noise_std",
            release_class=_PUBLIC,
            is_per_group=True,
            meaning="standard deviation of the group's noise, in gradient units",
        ),
        Declaration(
            name="noise_share",
            release_class=_PUBLIC,
            is_per_group=True,
            meaning="part of the privacy spent on the group, summing to 1 with the signals",
        ),
        Declaration(
            name="rate_factor",
            release_class=_PUBLIC,
            is_per_group=True,
            meaning="learning-rate factor of the group, chosen by the controller",
        ),
    )
}


def require_declared(name: str) -> Declaration:
    """The declaration of a metric.

    Raises:
        UndeclaredMetric: there is none.
    """
    declaration = DECLARATIONS.get(name)
    if declaration is None:
        raise UndeclaredMetric()
    return declaration
