"""Every metric a job may write or Prometheus may read, declared once (service.md 14).

An undeclared name cannot be written: `require_declared` stands in front of the only
insert, `require_operation` in front of every series of a scrape. There is no class for
exact training values, because no such value leaves the training step (privacy.md 12).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


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


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One series for operators. All are public: functions of rows that hold no patients' data."""

    name: str  # without the `_total` that the format adds to a counter
    kind: Literal["gauge", "counter", "histogram"]
    labels: tuple[str, ...]  # values from closed sets, or opaque ids
    meaning: str
    release_class: ReleaseClass = ReleaseClass.PUBLIC


def _operation(
    name: str, meaning: str, *labels: str, kind: Literal["gauge", "counter", "histogram"] = "gauge"
) -> Operation:
    return Operation(name=name, kind=kind, labels=labels, meaning=meaning)


OPERATIONS: dict[str, Operation] = {
    declared.name: declared
    for declared in (
        _operation("rldp_database_up", "1 while the database answers"),
        _operation("rldp_invariant_broken", "1 if this invariant halted the ledger", "name"),
        _operation("rldp_ledger_halted", "1 while nothing is reserved or charged"),
        _operation("rldp_checkpoint_age_seconds", "since the newest checkpoint was signed"),
        _operation("rldp_witness_age_seconds", "since a witness last cosigned"),
        _operation("rldp_jobs", "jobs by state", "state"),
        _operation("rldp_queue_wait_seconds", "age of the oldest job that a worker may take"),
        _operation(
            "rldp_worker_heartbeat_age_seconds", "since the quietest working worker was heard of"
        ),
        _operation(
            "rldp_lease_lost", "attempts whose worker was not heard of in time", kind="counter"
        ),
        _operation("rldp_windows", "windows by what became of them", "outcome", kind="counter"),
        _operation(
            "rldp_budget_used_ratio", "held and spent over the limit", "population", "block"
        ),
        _operation(
            "rldp_http_seconds",
            "times of requests to this process",
            "route",
            "method",
            "status",
            kind="histogram",
        ),
    )
}


def require_operation(name: str) -> Operation:
    """The declaration of a series for operators.

    Raises:
        UndeclaredMetric: there is none.
    """
    declared = OPERATIONS.get(name)
    if declared is None:
        raise UndeclaredMetric()
    return declared
