"""Signed receipts: what the service owes to whom it told that an entry stands (ledger.md 10.4).

A receipt names origin, index, leaf and the minute by which a signed checkpoint must cover
the entry. It is a pure function of the entry and the receipt key, so none is stored: the
same entry always has the same receipt. A leaf that is missing from a checkpoint after that
minute is a proof of omission. With a checkpoint it travels as a tlog-proof whose `extra`
line carries the receipt.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.ledger import checkpoints, merkle, notes, tiles
from service.ledger.entries import Receipt
from service.ledger.keys import LedgerKeys
from service.ledger.models import Approval, Entry, LogHead, SignedCheckpoint

# The entry's minute is cut, not rounded: one minute for that, one for the publisher.
PUBLISH_MINUTES = 2
MINUTE = "%Y-%m-%dT%H:%MZ"
RECEIPTED = ("reserve", "window.charge", "query.charge", "settle")
BY_ITS_OWNER = ("reserve", "settle")  # what a call of the job's owner can write
PROPOSAL_STEPS = ("proposed", "requested", "effective", "published", "rejected")


def publish_by(ts: str) -> str:
    """The minute by which an entry of minute `ts` must be under a checkpoint."""
    written = datetime.strptime(ts, MINUTE).replace(tzinfo=UTC)
    return (written + timedelta(minutes=PUBLISH_MINUTES)).strftime(MINUTE)


def receipt_of(keys: LedgerKeys, *, origin: str, idx: int, leaf: str, ts: str) -> notes.Note:
    return keys.sign_receipt(origin=origin, idx=idx, leaf=leaf, publish_by=publish_by(ts))


def receipt_to_dict(session: Session, keys: LedgerKeys, entry: Entry) -> dict[str, Any]:
    """The receipt as the API shows it; `proof` is None until a checkpoint covers the entry."""
    shown = _signed(keys, _origin(session, entry.log_id), entry)
    covering = checkpoints.covering(session, entry.log_id, entry.idx)
    note = shown["receipt"]
    proof = None if covering is None else proof_of(session, covering, entry.idx, note)
    return {**shown, "proof": proof}


def of_entries(session: Session, keys: LedgerKeys, log_id: str, idems: Iterable[str]) -> list[Any]:
    """Receipts, oldest first, of the entries under these keys that stand by now.

    For answers to writes: asked again, a write is answered with the same receipts.
    """
    wanted = select(Entry).where(Entry.log_id == log_id, Entry.idem.in_(tuple(idems)))
    rows = session.scalars(wanted.order_by(Entry.idx))
    return [receipt_to_dict(session, keys, entry) for entry in rows]


def of_fresh(session: Session, keys: LedgerKeys, entered: Receipt) -> dict[str, Any]:
    """The receipt of an entry written a moment ago, which no checkpoint covers yet."""
    return {**_signed(keys, _origin(session, entered.log), entered), "proof": None}


def of_proposal(
    session: Session,
    keys: LedgerKeys,
    proposal_id: str,
    proposal: Receipt,
    also: Sequence[str] = (),
) -> list[Any]:
    """Receipts of a proposal: its entry, each decision, and what they brought about.

    `also` names entries of the same proposal beyond those.
    """
    approvers = session.scalars(
        select(Approval.approver).where(
            Approval.log_id == proposal.log, Approval.idx == proposal.idx
        )
    )
    steps = (*PROPOSAL_STEPS, *approvers, *also)
    return of_entries(session, keys, proposal.log, [f"{proposal_id}/{step}" for step in steps])


def of_call(session: Session, keys: LedgerKeys, log_id: str, job_id: str) -> list[Any]:
    """Receipts of what a call of its owner has written about a job: `reserve`, `settle`."""
    return of_entries(session, keys, log_id, [f"{job_id}/{kind}" for kind in BY_ITS_OWNER])


def of_job(session: Session, keys: LedgerKeys, log_id: str, job_id: str) -> list[Any]:
    """Receipts of all a job was charged for, without proofs: a job may have thousands."""
    origin = _origin(session, log_id)
    wanted = select(Entry).where(
        Entry.log_id == log_id, Entry.job_id == job_id, Entry.type.in_(RECEIPTED)
    )
    return [_signed(keys, origin, entry) for entry in session.scalars(wanted.order_by(Entry.idx))]


def _origin(session: Session, log_id: str) -> str:
    return session.execute(select(LogHead.origin).where(LogHead.log_id == log_id)).scalar_one()


def _signed(keys: LedgerKeys, origin: str, entry: Entry | Receipt) -> dict[str, Any]:
    log_id = entry.log if isinstance(entry, Receipt) else entry.log_id
    note = receipt_of(keys, origin=origin, idx=entry.idx, leaf=entry.leaf, ts=entry.ts)
    return {
        "object": "ledger.receipt",
        "log": log_id,
        "idx": entry.idx,
        "leaf": entry.leaf,
        "publish_by": publish_by(entry.ts),
        "receipt": note.full,
    }


def proof_of(
    session: Session, checkpoint: SignedCheckpoint, idx: int, extra: str | None = None
) -> str:
    """The tlog-proof of entry `idx` under a checkpoint; `extra` is what it is the proof of."""
    read = tiles.node_reader(session, checkpoint.log_id)
    return notes.tlog_proof(
        idx=idx,
        path=merkle.inclusion_path(idx, checkpoint.size, read),
        checkpoint=checkpoints.full_note(session, checkpoint),
        extra=None if extra is None else base64.b64encode(extra.encode()).decode(),
    )
