"""Grants: two stewards set or change the limit of a population (ledger.md 16.2).

A grant names the limit wanted after it, in epsilon. The first one fixes order and delta
for ever. It takes effect in the transaction of the last needed signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from dp_core.accounting import limit_pico
from dp_core.calibration import propose_alpha
from dp_core.errors import CalibrationImpossible, PlanInvalid
from dp_core.planner import default_delta
from service.database import now_us
from service.ids import new_id
from service.ledger import accounts, approvals, disclosures, repository
from service.ledger.accounts import Overdrawn, name_of
from service.ledger.approvals import Decision
from service.ledger.disclosures import Vault
from service.ledger.entries import Draft, Movement, Receipt, append, log_of
from service.ledger.errors import LedgerNotFound, ProposalClosed, ProposalInvalid
from service.ledger.models import BudgetGrant
from service.ledger.views import utc_text
from service.populations.models import Population
from service.webhooks import events

EPSILON_MAX = Decimal(100)


@dataclass(frozen=True, kw_only=True)
class GrantRequest:
    """The limit wanted for each block. None: the first grant's, or the default."""

    population_id: str
    epsilon: str
    delta: str | None
    alpha_star: int | None
    reason_code: str
    justification: str | None = None  # personal: kept beside the log, never in it


def visible_grants(tenant_id: str) -> Select[BudgetGrant]:
    return select(BudgetGrant).where(BudgetGrant.tenant_id == tenant_id)


def visible_grant(
    session: Session, tenant_id: str, grant_id: str, *, for_update: bool = False
) -> BudgetGrant:
    """The grant, if it belongs to the tenant.

    Raises:
        LedgerNotFound: absent or another tenant's.
    """
    statement = visible_grants(tenant_id).where(BudgetGrant.id == grant_id)
    if for_update:
        statement = statement.with_for_update().execution_options(populate_existing=True)
    found = session.scalar(statement)
    if found is None:
        raise LedgerNotFound("grant")
    return found


def propose(
    session: Session,
    *,
    tenant_id: str,
    actor: str,
    request: GrantRequest,
    vault: Vault | None = None,
) -> BudgetGrant:
    """Enters the proposal; nothing moves before two stewards have signed.

    A justification needs a `vault` to lie in; the entry commits to it.

    Raises:
        LedgerNotFound, ProposalInvalid.
    """
    population = repository.visible_population(session, tenant_id, request.population_id)
    delta = _delta(request, population)
    alpha, limit = _order_and_limit(request, population, delta)
    before = population.limit_pico or 0
    if limit == before:
        raise ProposalInvalid(
            field="epsilon", code="no_change", problem="is the present limit. Choose another."
        )
    grant_id = new_id("grant_")
    data = {
        "alpha_star": alpha,
        "amount": str(limit - before),
        "delta": delta,
        "epsilon": request.epsilon,
        "grant": grant_id,
        "limit": str(limit),
        "limit_before": str(before),
        "reason": request.reason_code,
    }
    given = disclosures.commit(justification=request.justification)
    draft = _draft(
        "grant.proposed",
        f"{grant_id}/proposed",
        actor,
        population.id,
        data | disclosures.committed(given),
    )
    receipt = append(
        session, log_of(session, tenant_id), replace(draft, v=disclosures.version(given))
    )
    disclosures.keep(session, vault, receipt, given)
    grant = BudgetGrant(
        id=grant_id,
        tenant_id=tenant_id,
        population_id=population.id,
        epsilon=request.epsilon,
        delta=delta,
        alpha_star=alpha,
        limit_pico=limit,
        limit_before_pico=before,
        reason_code=request.reason_code,
        state="proposed",
        proposed_by=actor,
        log_id=receipt.log,
        idx=receipt.idx,
        created_at=now_us(),
    )
    session.add(grant)
    session.flush()
    told = {"id": grant_id, "state": "proposed", "population": population.id}
    events.emit(session, tenant_id, "grant.proposed", told)
    return grant


def _delta(request: GrantRequest, population: Population) -> str:
    if population.delta is not None:
        if request.delta is not None and Decimal(request.delta) != Decimal(population.delta):
            raise ProposalInvalid(
                field="delta",
                code="fixed_by_first_grant",
                problem=f"is fixed at {population.delta} by the first grant.",
            )
        return population.delta
    delta = request.delta or default_delta(population.patients_public)
    if not 0 < Decimal(delta) < 1 / Decimal(population.patients_public):
        raise ProposalInvalid(
            field="delta",
            code="too_large",
            problem="must be above 0 and below 1/patients_public. Lower it.",
        )
    return delta


def _order_and_limit(request: GrantRequest, population: Population, delta: str) -> tuple[int, int]:
    if not 0 < Decimal(request.epsilon) <= EPSILON_MAX:
        raise ProposalInvalid(
            field="epsilon",
            code="out_of_range",
            problem=f"must be above 0 and at most {EPSILON_MAX}.",
        )
    fixed = population.alpha_star
    if fixed is not None and request.alpha_star not in (None, fixed):
        raise ProposalInvalid(
            field="alpha_star",
            code="fixed_by_first_grant",
            problem=f"is fixed at {fixed} by the first grant.",
        )
    try:
        alpha = fixed or request.alpha_star or propose_alpha(request.epsilon, delta)
        return alpha, limit_pico(request.epsilon, delta, alpha)
    except (CalibrationImpossible, PlanInvalid):
        raise ProposalInvalid(
            field="alpha_star",
            code="order_too_low",
            problem="gives no positive limit at this epsilon and delta. Choose a higher order.",
        ) from None


def decide(
    session: Session,
    *,
    tenant_id: str,
    grant_id: str,
    approver: str,
    decision: Decision,
    signature: str,
) -> BudgetGrant:
    """Enters one steward's signed decision; the last needed one moves the limit.

    The same decision again changes nothing.

    Raises:
        LedgerNotFound, NotAllowedToSign, SignatureInvalid, ProposalClosed.
    """
    grant = visible_grant(session, tenant_id, grant_id, for_update=True)
    proposal = approvals.proposal_of(session, grant.log_id, grant.idx)
    is_new = approvals.record(
        session,
        proposal_id=grant_id,
        proposal=proposal,
        approver=approver,
        decision=decision,
        signature=signature,
    )
    if not is_new:
        return grant
    if grant.state != "proposed":
        raise ProposalClosed(proposal_id=grant_id, reason=f"is {grant.state}")
    if approvals.has_expired(grant.created_at):
        raise ProposalClosed(proposal_id=grant_id, reason="has expired; propose it again")
    kind = "grant.approved" if decision == "approve" else "grant.rejected"
    data = {"grant": grant_id, "proposal": proposal.idx, "signature": signature}
    append(
        session,
        grant.log_id,
        _draft(kind, f"{grant_id}/{approver}", approver, grant.population_id, data),
    )
    if decision == "reject":
        grant.state = "rejected"
    elif approvals.enough(approvals.approvals_of(session, proposal), grant.proposed_by):
        _take_effect(session, grant, proposal)
    session.flush()
    return grant


def _take_effect(session: Session, grant: BudgetGrant, proposal: Receipt) -> None:
    population = repository.visible_population(
        session, grant.tenant_id, grant.population_id, for_update=True
    )
    if (population.limit_pico or 0) != grant.limit_before_pico:
        raise ProposalClosed(
            proposal_id=grant.id, reason="the limit has changed since; propose it again"
        )
    amount = grant.limit_pico - grant.limit_before_pico
    movements = []
    for block in population.blocks:
        movements += [
            Movement(account=name_of(block, "issuance"), amount_pico=-amount),
            Movement(account=name_of(block, "budget"), amount_pico=amount),
        ]
    signed = [a for a in approvals.approvals_of(session, proposal) if a["decision"] == "approve"]
    data = {
        "alpha_star": grant.alpha_star,
        "approvals": [{"approver": a["approver"], "signature": a["signature"]} for a in signed],
        "delta": grant.delta,
        "epsilon": grant.epsilon,
        "grant": grant.id,
        "limit": str(grant.limit_pico),
        "proposal": proposal.idx,
    }
    draft = _draft(
        "grant.effective", f"{grant.id}/effective", "system", population.id, data, movements
    )
    try:
        accounts.move(session, grant.log_id, population.id, movements)
    except Overdrawn:
        raise ProposalClosed(
            proposal_id=grant.id, reason="the new limit lies below what is held and spent"
        ) from None
    population.alpha_star, population.delta = grant.alpha_star, grant.delta
    population.epsilon_limit, population.limit_pico = grant.epsilon, grant.limit_pico
    grant.state = "effective"
    session.flush()
    append(session, grant.log_id, draft)


def _draft(
    kind: str,
    idem: str,
    actor: str,
    population_id: str,
    data: dict[str, Any],
    movements: Sequence[Movement] = (),
) -> Draft:
    return Draft(
        type=kind,
        idem=idem,
        actor=actor,
        population_id=population_id,
        data=data,
        movements=movements,
    )


def grant_to_dict(session: Session, grant: BudgetGrant) -> dict[str, Any]:
    """The grant as the API shows it, with what a steward needs to sign."""
    proposal = approvals.proposal_of(session, grant.log_id, grant.idx)
    return {
        "id": grant.id,
        "object": "grant",
        "population": grant.population_id,
        "state": grant.state,
        "epsilon": grant.epsilon,
        "delta": grant.delta,
        "alpha_star": grant.alpha_star,
        "limit_pico": str(grant.limit_pico),
        "limit_before_pico": str(grant.limit_before_pico),
        "reason_code": grant.reason_code,
        "proposed_by": grant.proposed_by,
        "entry": {**proposal.to_dict(), "origin": approvals.origin_of(session, grant.log_id)},
        "approvals": approvals.approvals_of(session, proposal),
        "created_at": utc_text(grant.created_at),
    }
