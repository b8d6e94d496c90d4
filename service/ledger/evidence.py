"""The proofs of a bundle: checkpoint, its place in the witnessed log, growth, releases (11.2)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.ledger import checkpoints, merkle, receipts, tiles
from service.ledger.errors import LedgerNotFound
from service.ledger.models import Entry, SignedCheckpoint
from service.ledger.standing import seen_size


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """How far the bundle reaches, and its proof files by name."""

    size: int
    files: dict[str, str]


def evidence_of(
    session: Session,
    log_id: str,
    *,
    size: int | None,
    since: int | None,
    system_since: int | None = None,
) -> Evidence:
    """The proofs for the log at its newest checkpoint, or at that of `size` entries.

    Raises:
        LedgerNotFound: the log has no such checkpoint.
    """
    signed = exact(session, log_id, size) if size else checkpoints.newest(session, log_id)
    if signed is None or signed.system_idx is None:
        raise LedgerNotFound("checkpoint")
    above = witnessed(session, signed)
    files = {
        "checkpoint": checkpoints.full_note(session, signed),
        "system-entry.json": session.get_one(Entry, (above.log_id, signed.system_idx)).body + "\n",
        "system.tlog-proof": receipts.proof_of(session, above, signed.system_idx),
    }
    if since is not None:
        proof = consistency(session, signed, above, since, system_since)
        files["consistency.json"] = json.dumps(proof, sort_keys=True) + "\n"
    published = select(Entry).where(
        Entry.log_id == log_id, Entry.type == "release.published", Entry.idx < signed.size
    )
    for entry in session.scalars(published.order_by(Entry.idx)):
        release = json.loads(entry.body)["data"]["release"]
        proof_text = receipts.proof_of(session, signed, entry.idx, entry.body)
        files[f"releases/{release}.tlog-proof"] = proof_text
    return Evidence(size=signed.size, files=files)


def exact(session: Session, log_id: str, size: int) -> SignedCheckpoint:
    """The checkpoint of exactly this size.

    Raises:
        LedgerNotFound: there is none; sizes between two checkpoints were never signed.
    """
    found = session.get(SignedCheckpoint, (log_id, size))
    if found is None:
        raise LedgerNotFound("checkpoint")
    return found


def witnessed(session: Session, signed: SignedCheckpoint) -> SignedCheckpoint:
    """The newest checkpoint of the system log that names a log's; one with the quorum first.

    Raises:
        LedgerNotFound: none covers it yet.
    """
    assert signed.system_idx is not None, "only the system log's own checkpoints have none"
    system = checkpoints.system_log_over(session, signed)
    seen = seen_size(session, system)
    if seen is not None and seen > signed.system_idx:
        return exact(session, system, seen)
    found = checkpoints.newest(session, system)
    if found is None or found.size <= signed.system_idx:
        raise LedgerNotFound("checkpoint")
    return found


def consistency(
    session: Session,
    signed: SignedCheckpoint,
    above: SignedCheckpoint,
    since: int,
    system_since: int | None,
) -> dict[str, Any]:
    """That the log, and the system log over it, extend what was signed at size `since`.

    Of the system log the checkpoint of `system_since` entries is meant, or the first over
    the tenant's; the first of all if a recovery has begun another system log since.

    Raises:
        LedgerNotFound: a log has no checkpoint of that size.
    """
    before = exact(session, signed.log_id, since)
    assert before.system_idx is not None, "only the system log's own checkpoints have none"
    if system_since is not None:
        below: SignedCheckpoint | None = exact(session, above.log_id, system_since)
    else:
        same = checkpoints.system_log_over(session, before) == above.log_id
        below = checkpoints.covering(session, above.log_id, before.system_idx if same else 0)
    if below is None or before.size > signed.size or below.size > above.size:
        raise LedgerNotFound("checkpoint")
    return {
        **path_between(session, signed.log_id, before.size, signed.size),
        "system": path_between(session, above.log_id, below.size, above.size),
    }


def path_between(session: Session, log_id: str, old: int, size: int) -> dict[str, Any]:
    read = tiles.node_reader(session, log_id)
    return {"from": old, "path": merkle.consistency_path(old, size, read), "to": size}


def inclusion(session: Session, log_id: str, idx: int, size: int) -> list[str]:
    return merkle.inclusion_path(idx, size, tiles.node_reader(session, log_id))


def certificate_proof(session: Session, log_id: str, job_id: str) -> str:
    """The tlog-proof of the entry that names a job's certificate, with its body inside.

    The release's entry if one is published, else the job's `settle`.

    Raises:
        LedgerNotFound: no checkpoint covers either yet.
    """
    naming = (
        select(Entry)
        .where(Entry.log_id == log_id, Entry.job_id == job_id)
        .where(Entry.type.in_(("settle", "release.published")))
        .order_by(Entry.idx.desc())
    )
    for entry in session.scalars(naming):
        signed = checkpoints.covering(session, log_id, entry.idx)
        if signed is not None:
            return receipts.proof_of(session, signed, entry.idx, entry.body)
    raise LedgerNotFound("checkpoint")
