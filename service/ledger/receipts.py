"""Signed receipts: what the service owes to whom it told that an entry stands (ledger.md 10.4).

A receipt names origin, index, leaf and the minute by which a signed checkpoint must cover
the entry. It is a pure function of the entry and the receipt key, so none is stored: the
same entry always has the same receipt. A leaf that is missing from a checkpoint after that
minute is a proof of omission. With a checkpoint it travels as a tlog-proof whose `extra`
line carries the receipt.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from service.ledger import checkpoints, merkle, notes, tiles
from service.ledger.keys import LedgerKeys
from service.ledger.models import Entry, SignedCheckpoint

# The entry's minute is cut, not rounded: one minute for that, one for the publisher.
PUBLISH_MINUTES = 2
MINUTE = "%Y-%m-%dT%H:%MZ"
RECEIPTED = ("reserve", "window.charge", "query.charge", "settle")


def publish_by(ts: str) -> str:
    """The minute by which an entry of minute `ts` must be under a checkpoint."""
    written = datetime.strptime(ts, MINUTE).replace(tzinfo=UTC)
    return (written + timedelta(minutes=PUBLISH_MINUTES)).strftime(MINUTE)


def receipt_of(keys: LedgerKeys, *, origin: str, idx: int, leaf: str, ts: str) -> notes.Note:
    return keys.sign_receipt(origin=origin, idx=idx, leaf=leaf, publish_by=publish_by(ts))


def receipted(log_id: str, job_id: str) -> Select[int, str, str]:
    """(idx, leaf, ts) of the entries of a job that its owner gets receipts for."""
    return (
        select(Entry.idx, Entry.leaf, Entry.ts)
        .where(Entry.log_id == log_id, Entry.job_id == job_id, Entry.type.in_(RECEIPTED))
        .order_by(Entry.idx)
    )


def receipt_to_dict(session: Session, keys: LedgerKeys, entry: Entry) -> dict[str, Any]:
    """The receipt as the API shows it; `proof` is None until a checkpoint covers the entry."""
    origin = checkpoints.head_of(session, entry.log_id).origin
    note = receipt_of(keys, origin=origin, idx=entry.idx, leaf=entry.leaf, ts=entry.ts)
    covering = checkpoints.covering(session, entry.log_id, entry.idx)
    return {
        "object": "ledger.receipt",
        "log": entry.log_id,
        "idx": entry.idx,
        "leaf": entry.leaf,
        "publish_by": publish_by(entry.ts),
        "receipt": note.full,
        "proof": None if covering is None else proof_of(session, covering, entry.idx, note.full),
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
