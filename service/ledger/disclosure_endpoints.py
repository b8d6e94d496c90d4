"""Routes of personal details: stewards of the tenant read and erase them (ledger.md 16.5, 18.2)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from service.dependencies import PublisherDep, ReadDep, SessionDep, VaultDep
from service.ledger import disclosures, receipts, repository
from service.ledger.errors import LedgerNotFound
from service.ledger.schemas import DisclosureQuery, LogQuery, RedactionCreate, Steward
from service.listing import envelope
from service.logged_reads import LoggedRoute

router = APIRouter(prefix="/v1", tags=["ledger"], route_class=LoggedRoute)


@router.get("/ledger/disclosures")
def list_disclosures(
    subject: Steward, session: ReadDep, vault: VaultDep, query: Annotated[DisclosureQuery, Query()]
) -> dict[str, Any]:
    """The personal values of a log, or of one entry, that are not erased."""
    head = repository.head_of(session, subject.tenant_id, query.log)
    if head is None:
        raise LedgerNotFound("log")
    found = disclosures.read(session, vault, head.log_id, idx=query.idx)
    return envelope([one.to_dict() for one in found], has_more=False)


@router.post("/ledger/entries/{idx}/redactions", status_code=201)
def create_redaction(
    idx: int,
    body: RedactionCreate,
    subject: Steward,
    session: SessionDep,
    publisher: PublisherDep,
    query: Annotated[LogQuery, Query()],
) -> dict[str, Any]:
    """Erases one personal value and its key; the entry and every proof over it stay."""
    head = repository.head_of(session, subject.tenant_id, query.log)
    if head is None or idx >= 2**53:
        raise LedgerNotFound("disclosure")
    receipt = disclosures.redact(
        session,
        tenant_id=subject.tenant_id,
        actor=subject.principal_id,
        log_id=head.log_id,
        idx=idx,
        path=body.path,
        ground=body.legal_ground,
    )
    return {
        "object": "ledger.redaction",
        "log": head.log_id,
        "idx": idx,
        "path": body.path,
        "legal_ground": body.legal_ground,
        "entry": receipt.to_dict(),
        "receipts": receipts.of_entries(
            session,
            publisher.keys,
            receipt.log,
            [disclosures.redaction_key(head.log_id, idx, body.path)],
        ),
    }
