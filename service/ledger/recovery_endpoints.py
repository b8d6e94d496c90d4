"""Routes by which stewards end a halt of the ledger (ledger.md 19.1)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, BackgroundTasks, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.dependencies import PublisherDep, ReadDep, SessionDep
from service.idempotency.once import OnceDep
from service.ledger import approvals, receipts, recovery
from service.ledger.publisher import Publisher
from service.ledger.schemas import ApprovalCreate, ProposalReader, RecoveryCreate, Steward
from service.logged_reads import LoggedRoute
from service.populations.models import Population

router = APIRouter(prefix="/v1/ledger/recoveries", tags=["ledger"], route_class=LoggedRoute)


@router.post("", status_code=201)
def create_recovery(
    body: RecoveryCreate,
    subject: Steward,
    session: SessionDep,
    publisher: PublisherDep,
    response: Response,
    once: OnceDep,
) -> dict[str, Any]:
    """Proposes that all budget free or held is spent, because a backup may lack charges."""

    def make() -> dict[str, Any]:
        made = recovery.propose(session, tenant_id=subject.tenant_id, actor=subject.principal_id)
        response.headers["Location"] = f"/v1/ledger/recoveries/{made['id']}"
        return _with_receipts(session, publisher, subject, made)

    return once.answer(body, make)


@router.get("/{recovery_id}")
def get_recovery(
    recovery_id: str, subject: ProposalReader, session: ReadDep, publisher: PublisherDep
) -> dict[str, Any]:
    entry = recovery.visible(session, subject.tenant_id, recovery_id)
    return _with_receipts(session, publisher, subject, recovery.to_dict(session, entry))


@router.post("/{recovery_id}/approvals", status_code=201)
def decide_recovery(
    recovery_id: str,
    body: ApprovalCreate,
    subject: Steward,
    session: SessionDep,
    publisher: PublisherDep,
    after: BackgroundTasks,
) -> dict[str, Any]:
    """One steward's signed decision. After the last one the halt ends with the next turn."""
    decided = recovery.decide(
        session,
        tenant_id=subject.tenant_id,
        restore_id=recovery_id,
        approver=subject.principal_id,
        decision=body.decision,
        signature=body.signature,
    )
    if decided["state"] == "effective":
        after.add_task(publisher.turn_quietly)
    return _with_receipts(session, publisher, subject, decided)


def _with_receipts(
    session: Session, publisher: Publisher, subject: Subject, shown: dict[str, Any]
) -> dict[str, Any]:
    """The recovery, with receipts of everything entered about it, corrections included."""
    entry = recovery.visible(session, subject.tenant_id, shown["id"])
    proposal = approvals.proposal_of(session, entry.log_id, entry.idx)
    corrected = session.scalars(
        select(Population.id).where(Population.tenant_id == subject.tenant_id)
    ).all()
    signed = receipts.of_proposal(session, publisher.keys, shown["id"], proposal, corrected)
    return {**shown, "receipts": signed}
