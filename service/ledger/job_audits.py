"""What the log says of a job's audit: coins committed, coins revealed, and an incident.

Guarantee: the commitment is entered before the job's first charge, the seed after its last
window, both under the fence of the attempt that owns the job; nothing is charged between an
incident or a revealed seed and the job's end (audit.md 3, AU30). No entry moves an amount.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.ledger import repository
from service.ledger.entries import Draft, Receipt, append, find_receipt
from service.ledger.errors import ChargeRefused
from service.ledger.models import Entry

COMMITTED, REVEALED, INCIDENT = "audit.committed", "audit.revealed", "incident"


@dataclass(frozen=True, kw_only=True)
class Commitment:
    """Coins nobody has seen, bound to a manifest anybody may."""

    commitment: str
    manifest_sha256: str
    canaries: int
    reference: str = ""  # of its entry, once there is one
    is_revealed: bool = False


def commitment_of(session: Session, job_id: str) -> Commitment | None:
    """What the job's audit is bound to; None if it has no canaries in its steps."""
    entries = {entry["type"]: entry for entry in repository.entries_of_job(session, job_id)}
    if COMMITTED not in entries:
        return None
    held, data = repository.reservation_of(session, job_id), entries[COMMITTED]["data"]
    return Commitment(
        commitment=data["commitment"],
        manifest_sha256=data["manifest"],
        canaries=data["canaries"],
        reference=f"{held.log_id}#{entries[COMMITTED]['idx']}",
        is_revealed=REVEALED in entries,
    )


def has_incident(session: Session, job_id: str) -> bool:
    """Whether an audit of the job found a fault: its row of the ledger is disputed."""
    found = select(Entry.idx).where(Entry.job_id == job_id, Entry.type == INCIDENT).limit(1)
    return session.scalar(found) is not None


def commit_audit(session: Session, *, job_id: str, epoch: int, made: Commitment) -> Receipt:
    """Enters a commitment, once for a job. Asked again with the same content: its receipt.

    Raises:
        LedgerNotFound, ReservationClosed, StaleEpoch, IdempotencyConflict.
        ChargeRefused: something of the job was charged already.
    """
    held, attempt = repository.fenced_reservation(session, job_id, epoch)
    draft = Draft(
        type=COMMITTED,
        idem=f"{job_id}/audit/committed",
        actor=attempt.worker_key,
        population_id=held.population_id,
        job_id=job_id,
        data={
            "canaries": made.canaries,
            "commitment": made.commitment,
            "job": job_id,
            "manifest": made.manifest_sha256,
        },
    )
    repeated = find_receipt(session, held.log_id, draft)
    if repeated is not None:
        return repeated
    if held.windows_charged:
        raise ChargeRefused(job_id=job_id, reason="canaries are committed before the first charge")
    return append(session, held.log_id, draft)


def reveal_audit(
    session: Session, *, job_id: str, epoch: int, seed: str, report_sha256: str, verdict: str
) -> Receipt:
    """Enters the seed and the report it was used for. The job takes no charge afterwards.

    Raises:
        LedgerNotFound, ReservationClosed, StaleEpoch, IdempotencyConflict.
        ChargeRefused: the seed does not open the job's commitment.
    """
    held, attempt = repository.fenced_reservation(session, job_id, epoch)
    made = commitment_of(session, job_id)
    if made is None or made.commitment != _commitment(seed, made.manifest_sha256):
        raise ChargeRefused(job_id=job_id, reason="the seed does not open the commitment")
    return append(
        session,
        held.log_id,
        Draft(
            type=REVEALED,
            idem=f"{job_id}/audit/revealed",
            actor=attempt.worker_key,
            population_id=held.population_id,
            job_id=job_id,
            data={
                "job": job_id,
                "report": report_sha256,
                "seed": seed,
                "verdict": verdict.lower(),
            },
        ),
    )


def record_incident(session: Session, *, job_id: str, epoch: int, report_sha256: str) -> Receipt:
    """Disputes the job: its audit contradicts what the ledger claims. The spend is unchanged.

    Raises:
        LedgerNotFound, ReservationClosed, StaleEpoch, IdempotencyConflict.
    """
    held, attempt = repository.fenced_reservation(session, job_id, epoch)
    return append(
        session,
        held.log_id,
        Draft(
            type=INCIDENT,
            idem=f"{job_id}/incident/{epoch}",
            actor=attempt.worker_key,
            population_id=held.population_id,
            job_id=job_id,
            data={
                "epoch": epoch,
                "job": job_id,
                "reason": "audit_failed",
                "report": report_sha256,
            },
        ),
    )


def _commitment(seed: str, manifest_sha256: str) -> str:
    """SHA-256(seed || SHA-256(manifest)), again here: the audit's own module needs numpy."""
    return hashlib.sha256(bytes.fromhex(seed + manifest_sha256)).hexdigest()
