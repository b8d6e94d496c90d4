"""Routes by which stewards end a halt of the ledger (ledger.md 19.1)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, BackgroundTasks, Response

from service.dependencies import PublisherDep, ReadDep, SessionDep
from service.ledger import recovery
from service.ledger.schemas import ApprovalCreate, ProposalReader, RecoveryCreate, Steward
from service.logged_reads import LoggedRoute

router = APIRouter(prefix="/v1/ledger/recoveries", tags=["ledger"], route_class=LoggedRoute)


@router.post("", status_code=201)
def create_recovery(
    body: RecoveryCreate, subject: Steward, session: SessionDep, response: Response
) -> dict[str, Any]:
    """Proposes that all budget free or held is spent, because a backup may lack charges."""
    made = recovery.propose(session, tenant_id=subject.tenant_id, actor=subject.principal_id)
    response.headers["Location"] = f"/v1/ledger/recoveries/{made['id']}"
    return made


@router.get("/{recovery_id}")
def get_recovery(recovery_id: str, subject: ProposalReader, session: ReadDep) -> dict[str, Any]:
    entry = recovery.visible(session, subject.tenant_id, recovery_id)
    return recovery.to_dict(session, entry)


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
    return decided
