"""Fail closed: decides from one row whether new reservations and charges are taken (P14).

Guarantee: once a log was found shorter than, or different from, what was signed or
witnessed, nothing is reserved or charged any more; the state never lifts itself. Without a
witness quorum for an hour nothing new is reserved, while running jobs go on inside their
escrow (ledger.md 19). The row is written by publisher and watch, read in the same transaction
as the reservation or charge.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.orm import Session

from service.database import now_us
from service.ledger.entries import insert_if_absent
from service.ledger.errors import LedgerHalted
from service.ledger.models import LedgerGuard
from service.webhooks import events

ALERT_SECONDS = 300
STALE_SECONDS = 3600
SECOND_US = 1_000_000
BROKEN = "invariant:"  # and the names follow; halted_reason holds 40 characters


def configure(session: Session, *, quorum: int) -> None:
    """Notes how many witnesses must have signed. A new demand gets its hour from now on."""
    empty = dict.fromkeys(("quorum_size", "halted_reason", "halted_at", "seen_size"))
    row = {"id": 1, "quorum": quorum, "quorum_at": now_us()}
    if insert_if_absent(session, LedgerGuard, row | empty):
        return
    session.execute(
        update(LedgerGuard)
        .where(LedgerGuard.id == 1, LedgerGuard.quorum != quorum)
        .values(quorum=quorum, quorum_at=now_us(), quorum_size=None)
    )


def note_quorum(session: Session, *, size: int) -> None:
    """Enough witnesses have just signed the system log at this size."""
    session.execute(
        update(LedgerGuard).where(LedgerGuard.id == 1).values(quorum_at=now_us(), quorum_size=size)
    )


def halt(session: Session, *, reason: str, seen_size: int) -> None:
    """Stops reservations and charges. The first cause stands; only people lift it."""
    configure_if_missing(session)
    halted = session.execute(
        update(LedgerGuard)
        .where(LedgerGuard.id == 1, LedgerGuard.halted_reason.is_(None))
        .values(halted_reason=reason, halted_at=now_us(), seen_size=seen_size)
        .returning(LedgerGuard.id)
    )
    if halted.first() is not None:  # once, not with every look that finds it halted
        events.emit(session, None, "ledger.alert", {"state": "halted", "reason_code": reason})


def lift(session: Session) -> None:
    """Ends a halt. Only for `service.ledger.recovery`, after two people have signed."""
    values = dict.fromkeys(("halted_reason", "halted_at", "seen_size", "quorum_size"))
    session.execute(
        update(LedgerGuard).where(LedgerGuard.id == 1).values(**values, quorum_at=now_us())
    )


def configure_if_missing(session: Session) -> None:
    if session.get(LedgerGuard, 1) is None:
        configure(session, quorum=0)


def state(session: Session) -> dict[str, Any]:
    """What the guard says now, for anomalies and the dashboard."""
    row = _row(session)
    if row is None:
        return {"state": "open", "quorum": 0, "quorum_age_seconds": None, "reason": None}
    age = max(0, now_us() - row.quorum_at) // SECOND_US
    is_stale = row.quorum > 0 and age > STALE_SECONDS
    told = "halted" if row.halted_reason else "stale" if is_stale else "open"
    return {
        "state": told,
        "quorum": row.quorum,
        "quorum_age_seconds": age if row.quorum else None,
        "reason": row.halted_reason or ("witness_stale" if is_stale else None),
        "seen_size": row.seen_size,
    }


def require_reservations(session: Session) -> None:
    """Raises LedgerHalted unless new reservations are taken."""
    row = _row(session)
    _require_unbroken(row)
    if row is None or row.quorum == 0:
        return
    if now_us() - row.quorum_at > STALE_SECONDS * SECOND_US:
        raise LedgerHalted(
            "witness_stale",
            f"Fewer than {row.quorum} witnesses have signed the log for over an hour; "
            "no new reservation is taken until they do.",
        )


def require_charges(session: Session) -> None:
    """Raises LedgerHalted if the log is known to be broken. Stale witnesses stop no charge."""
    _require_unbroken(_row(session))


def broken_invariants(session: Session) -> set[str]:
    """Names of the invariants whose break halted the ledger; empty for any other state."""
    row = _row(session)
    reason = (row and row.halted_reason) or ""
    return set(reason.removeprefix(BROKEN).split(",")) if reason.startswith(BROKEN) else set()


def _require_unbroken(row: Row[Any] | None) -> None:
    if row is None or row.halted_reason is None:
        return
    if row.halted_reason.startswith(BROKEN):
        raise LedgerHalted(
            row.halted_reason,
            "The ledger's rows break an invariant; it takes no new reservation and no charge. "
            "See rldp ledger anomalies, and restore the newest backup.",
        )
    raise LedgerHalted(
        row.halted_reason,
        "The log does not extend what was signed or witnessed before; it takes no new "
        "reservation and no charge. Restore the newest backup, or let two stewards settle "
        "the loss: rldp ledger recover --help.",
    )


# made once: it is read in every reservation and charge
_GUARD = select(LedgerGuard.__table__).where(LedgerGuard.id == 1)


def _row(session: Session) -> Row[Any] | None:
    return session.connection().execute(_GUARD).first()
