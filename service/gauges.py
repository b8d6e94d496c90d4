"""The ledger's gauges in the text format of Prometheus, as a file for a textfile collector.

All are read from rows, so any process would write the same. Labels are from closed sets.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.database import now_us
from service.ledger import guard
from service.ledger.models import Cosignature, SignedCheckpoint

INVARIANTS = tuple(f"I{number}" for number in (*range(1, 12), 13, 14))
SECOND_US = 1_000_000


def ledger_gauges(session: Session) -> str:
    """Ages in whole seconds; an age is left out as long as there is nothing to be old."""
    broken = guard.broken_invariants(session)
    lines = ["# TYPE rldp_invariant_broken gauge"]
    lines += [
        f'rldp_invariant_broken{{invariant="{name}"}} {int(name in broken)}' for name in INVARIANTS
    ]
    is_halted = guard.state(session)["state"] == "halted"
    lines += _gauge("rldp_ledger_halted", int(is_halted))
    now = now_us() // SECOND_US
    signed_us = session.scalar(select(func.max(SignedCheckpoint.created_at)))
    if signed_us is not None:
        lines += _gauge("rldp_checkpoint_age_seconds", max(0, now - signed_us // SECOND_US))
    cosigned = session.scalar(select(func.max(Cosignature.signed_at)))
    if cosigned is not None:
        lines += _gauge("rldp_witness_age_seconds", max(0, now - cosigned))
    return "\n".join(lines) + "\n"


def write_gauges(session: Session, path: Path) -> None:
    """Replaces the file whole, so that a collector never reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    partial.write_text(ledger_gauges(session), encoding="utf-8")
    partial.replace(path)


def _gauge(name: str, value: int) -> list[str]:
    return [f"# TYPE {name} gauge", f"{name} {value}"]
