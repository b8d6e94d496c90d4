"""Routes of an auditor: proofs, receipts, refusals, anomalies, forecast, access log (13)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import PlainTextResponse
from sqlalchemy import Select
from sqlalchemy.orm import Session

from service.certificates.service import visible_certificate
from service.csv_rows import csv_answer
from service.dependencies import PublisherDep, ReadDep
from service.ledger import access, anomalies, checkpoints, evidence, receipts, repository
from service.ledger.bundle import entry_to_dict
from service.ledger.errors import LedgerNotFound
from service.ledger.forecast import forecast
from service.ledger.models import Entry, LogHead, SignedCheckpoint
from service.ledger.schemas import (
    AccessReader,
    AnomalyQuery,
    ConsistencyQuery,
    ForecastCreate,
    InclusionQuery,
    LedgerReader,
    LogQuery,
    PageQuery,
    RefusalQuery,
    TlogQuery,
)
from service.ledger.standing import standing_of
from service.listing import envelope
from service.logged_reads import LoggedRoute

router = APIRouter(prefix="/v1", tags=["ledger"], route_class=LoggedRoute)

INDEX_MAX = 2**53


@router.get("/ledger/entries/{idx}")
def get_entry(
    idx: int, subject: LedgerReader, session: ReadDep, query: Annotated[LogQuery, Query()]
) -> dict[str, Any]:
    """One entry with its leaf and how firmly it stands."""
    entry = _entry(session, _head(session, subject.tenant_id, query.log), idx)
    return entry_to_dict(entry, standing_of(session, entry.log_id))


@router.get("/ledger/receipts/{idx}")
def get_receipt(
    idx: int,
    subject: LedgerReader,
    session: ReadDep,
    publisher: PublisherDep,
    query: Annotated[LogQuery, Query()],
) -> dict[str, Any]:
    """The signed receipt of an entry; with its proof once a checkpoint covers it."""
    entry = _entry(session, _head(session, subject.tenant_id, query.log), idx)
    return receipts.receipt_to_dict(session, publisher.keys, entry)


@router.get("/ledger/checkpoint")
def get_checkpoint(
    subject: LedgerReader, session: ReadDep, query: Annotated[LogQuery, Query()]
) -> dict[str, Any]:
    """The newest signed checkpoint of the log, and the witnessed one above it."""
    head = _head(session, subject.tenant_id, query.log)
    signed = checkpoints.newest(session, head.log_id)
    if signed is None or signed.system_idx is None:
        raise LedgerNotFound("checkpoint")
    above = evidence.witnessed(session, signed)
    standing = standing_of(session, head.log_id)
    return {
        "object": "ledger.checkpoint",
        "log": head.log_id,
        "origin": head.origin,
        "size": signed.size,
        "root": signed.root,
        "note": checkpoints.full_note(session, signed),
        "entries": head.size,
        "published_size": standing.published,
        "quorum": standing.quorum,
        "system": {
            "index": signed.system_idx,
            "size": above.size,
            "root": above.root,
            "note": checkpoints.full_note(session, above),
        },
    }


@router.get("/proofs/inclusion")
def prove_inclusion(
    subject: LedgerReader, session: ReadDep, query: Annotated[InclusionQuery, Query()]
) -> dict[str, Any]:
    """That an entry stands under a checkpoint: `size`, or the smallest that covers it."""
    head = _head(session, subject.tenant_id, query.log)
    entry = _entry(session, head, query.idx)
    signed = _covering(session, head, query.idx, query.size)
    return {
        "object": "ledger.inclusion_proof",
        "log": head.log_id,
        "leaf": entry.leaf,
        "idx": entry.idx,
        "size": signed.size,
        "root": signed.root,
        "path": evidence.inclusion(session, head.log_id, entry.idx, signed.size),
        "checkpoint": checkpoints.full_note(session, signed),
    }


@router.get("/proofs/consistency")
def prove_consistency(
    subject: LedgerReader, session: ReadDep, query: Annotated[ConsistencyQuery, Query()]
) -> dict[str, Any]:
    """That the checkpoint of `to` entries extends the one of `from` entries."""
    head = _head(session, subject.tenant_id, query.log)
    before = evidence.exact(session, head.log_id, query.from_size)
    after = evidence.exact(session, head.log_id, query.to_size)
    if before.size > after.size:
        raise LedgerNotFound("checkpoint")
    return {
        "object": "ledger.consistency_proof",
        "log": head.log_id,
        **evidence.path_between(session, head.log_id, before.size, after.size),
        "from_root": before.root,
        "to_root": after.root,
        "checkpoint": checkpoints.full_note(session, after),
    }


@router.get("/proofs/tlog", response_class=PlainTextResponse)
def prove_as_tlog(
    subject: LedgerReader, session: ReadDep, query: Annotated[TlogQuery, Query()]
) -> PlainTextResponse:
    """A self-contained proof of one entry as text (c2sp.org/tlog-proof)."""
    head = _head(session, subject.tenant_id, query.log)
    signed = _covering(session, head, query.entry, None)
    return PlainTextResponse(receipts.proof_of(session, signed, query.entry))


@router.get("/certificates/{job_id}/proof", response_class=PlainTextResponse)
def prove_certificate(job_id: str, subject: LedgerReader, session: ReadDep) -> PlainTextResponse:
    """That the log names this certificate: for readers who have it and no bundle."""
    visible_certificate(session, subject.tenant_id, job_id)
    held = repository.visible_reservation(session, subject.tenant_id, job_id)
    return PlainTextResponse(evidence.certificate_proof(session, held.log_id, job_id))


@router.get("/ledger/refusals")
def list_refusals(
    subject: LedgerReader, session: ReadDep, query: Annotated[RefusalQuery, Query()]
) -> Any:
    """What was refused, and by how much it did not fit."""
    visible = repository.visible_entries(subject.tenant_id).where(Entry.type == "reserve.refused")
    if query.population is not None:
        visible = visible.where(Entry.population_id == query.population)
    return _answer(session, visible, query, refusal_to_dict)


@router.get("/ledger/anomalies")
def list_anomalies(
    subject: LedgerReader, session: ReadDep, query: Annotated[AnomalyQuery, Query()]
) -> Any:
    """Oddities to look at first, computed now; all of them on one page."""
    found = anomalies.anomalies_of(session, subject.tenant_id)
    wanted = [one.to_dict() for one in found if query.kind in (None, one.kind)]
    listed = envelope(wanted, has_more=False)
    return csv_answer(listed) if query.format == "csv" else listed


@router.post("/ledger/forecast")
def make_forecast(body: ForecastCreate, subject: LedgerReader, session: ReadDep) -> dict[str, Any]:
    """How many more jobs like a given one fit; reserves and writes nothing."""
    return forecast(
        session,
        tenant_id=subject.tenant_id,
        population_id=body.population,
        like_job=body.job,
        reserve_pico=body.reserve_pico,
    )


@router.get("/audits/access")
def list_reads(
    subject: AccessReader, session: ReadDep, query: Annotated[PageQuery, Query()]
) -> Any:
    """Who read what, oldest first; the call itself is the newest entry of the next one."""
    return _answer(session, access.visible_reads(subject.tenant_id), query, access.read_to_dict)


def _answer(
    session: Session,
    visible: Select[Any],
    query: PageQuery,
    show: Callable[[Entry], dict[str, Any]],
) -> dict[str, Any] | Response:
    """One page of entries in the order of their logs; `after` is the last id seen."""
    if query.after is not None:
        visible = visible.where(_is_after(query.after))
    rows = list(session.scalars(visible.limit(query.limit + 1)))
    listed = envelope([show(row) for row in rows[: query.limit]], has_more=len(rows) > query.limit)
    return csv_answer(listed) if query.format == "csv" else listed


def _is_after(cursor: str) -> Any:
    log_id, _, idx = cursor.rpartition("#")
    return (Entry.log_id > log_id) | ((Entry.log_id == log_id) & (Entry.idx > int(idx)))


def refusal_to_dict(entry: Entry) -> dict[str, Any]:
    data = json.loads(entry.body)["data"]
    return {
        "id": f"{entry.log_id}#{entry.idx}",
        "object": "ledger.refusal",
        "idx": entry.idx,
        "time": entry.ts,
        "population": entry.population_id,
        "actor": entry.actor,
        "needed_pico": data["needed"],
        "free_pico": data["free"],
        "short_by_pico": str(int(data["needed"]) - int(data["free"])),
    }


def _head(session: Session, tenant_id: str, log_id: str | None) -> LogHead:
    head = repository.head_of(session, tenant_id, log_id)
    if head is None:
        raise LedgerNotFound("log")
    return head


def _entry(session: Session, head: LogHead, idx: int) -> Entry:
    found = session.get(Entry, (head.log_id, idx)) if 0 <= idx < INDEX_MAX else None
    if found is None:
        raise LedgerNotFound("entry")
    return found


def _covering(session: Session, head: LogHead, idx: int, size: int | None) -> SignedCheckpoint:
    signed = (
        checkpoints.covering(session, head.log_id, idx)
        if size is None
        else evidence.exact(session, head.log_id, size)
    )
    if signed is None or signed.size <= idx:
        raise LedgerNotFound("checkpoint")
    return signed
