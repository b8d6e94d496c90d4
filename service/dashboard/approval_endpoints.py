"""The steward's page: what waits for a signature, the exact text to sign, and the decision.

Private keys stay with their owners: the page takes a signature made elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, BackgroundTasks, Form, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError
from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.certificates.facts import reasons_in_words
from service.certificates.label import LabelFact
from service.dashboard.endpoints import SignerDep
from service.dashboard.ledger_endpoints import answer_for
from service.dashboard.reader import ReaderDep
from service.dashboard.rendering import page
from service.dashboard.sessions import SESSION_COOKIE, SignedIn, cookie_name
from service.dependencies import PublisherDep, ReadDep, SessionDep
from service.ledger import grants, releases
from service.ledger.approvals import has_expired, signing_text
from service.ledger.errors import (
    NotAllowedToSign,
    ProposalClosed,
    ProposalInvalid,
    SelfApproval,
    SignatureInvalid,
)
from service.ledger.models import BudgetGrant, ReleaseRequest
from service.ledger.schemas import ApprovalCreate
from service.logged_reads import LoggedRoute
from service.populations.models import Population

router = APIRouter(include_in_schema=False, route_class=LoggedRoute)

STEWARDS = frozenset({"steward"})
SHOWN_MAX = 50
REFUSALS = (NotAllowedToSign, ProposalClosed, ProposalInvalid, SelfApproval, SignatureInvalid)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A grant or release that waits, and what a steward must know before they sign."""

    kind: Literal["grants", "releases"]
    shown: dict[str, Any]
    population: Population | None
    reasons: tuple[LabelFact, ...]
    texts: dict[str, str]
    commands: dict[str, str]
    is_decided: bool  # by the reader


@router.get("/approvals")
def show_approvals(person: ReaderDep, session: ReadDep) -> Response:
    return answer_for(person, lambda who: _page(session, who), STEWARDS)


@router.post("/approvals/{kind}/{proposal_id}")
def decide(
    kind: Literal["grants", "releases"],
    proposal_id: str,
    request: Request,
    person: ReaderDep,
    signer: SignerDep,
    session: SessionDep,
    publisher: PublisherDep,
    after: BackgroundTasks,
    decision: Annotated[str, Form(max_length=16)] = "",
    signature: Annotated[str, Form(max_length=128)] = "",
    form_token: Annotated[str, Form(max_length=128)] = "",
) -> Response:
    """Enters the decision as the API does; a refusal is told beside the form."""

    def build(who: SignedIn) -> Response:
        cookie = request.cookies.get(cookie_name(request, SESSION_COOKIE))
        if not signer.form_matches(cookie, form_token):
            return _page(session, who, problem="This form was too old. Send it again.", status=400)
        try:
            body = ApprovalCreate(
                decision=cast(Literal["approve", "reject"], decision), signature=signature.strip()
            )
        except ValidationError:
            problem = "Paste the signature as the command printed it: 88 characters of base64."
            return _page(session, who, problem=problem, status=422)
        try:
            with session.begin_nested():
                state = _decide(session, who.subject, kind, proposal_id, body)
        except REFUSALS as refusal:
            return _page(session, who, problem=str(refusal), status=409)
        if state == "published":  # signed and witnessed at once, not with the next turn
            after.add_task(publisher.turn_quietly)
        return RedirectResponse("/approvals", status_code=303)

    return answer_for(person, build, STEWARDS)


def _decide(
    session: Session, subject: Subject, kind: str, proposal_id: str, body: ApprovalCreate
) -> str:
    terms: dict[str, Any] = {
        "approver": subject.principal_id,
        "decision": body.decision,
        "signature": body.signature,
        "tenant_id": subject.tenant_id,
    }
    if kind == "grants":
        return grants.decide(session, grant_id=proposal_id, **terms).state
    return releases.decide(session, release_id=proposal_id, **terms).state


def _page(session: Session, who: SignedIn, *, problem: str = "", status: int = 200) -> Response:
    waiting = _waiting(session, who.subject)
    return page("approvals.html", status=status, person=who, waiting=waiting, problem=problem)


def _waiting(session: Session, subject: Subject) -> list[Proposal]:
    """Open proposals of the tenant, oldest first."""
    asked = grants.visible_grants(subject.tenant_id).where(BudgetGrant.state == "proposed")
    found = [
        _proposal(session, subject, "grants", grants.grant_to_dict(session, grant))
        for grant in session.scalars(asked.order_by(BudgetGrant.created_at).limit(SHOWN_MAX))
        if not has_expired(grant.created_at)
    ]
    wanted = releases.visible_releases(subject.tenant_id)
    wanted = wanted.where(ReleaseRequest.state == "requested").order_by(ReleaseRequest.created_at)
    return found + [
        _proposal(session, subject, "releases", releases.release_to_dict(session, release))
        for release in session.scalars(wanted.limit(SHOWN_MAX))
        if not has_expired(release.created_at)
    ]


def _proposal(
    session: Session, subject: Subject, kind: Literal["grants", "releases"], shown: dict[str, Any]
) -> Proposal:
    origin, leaf = shown["entry"]["origin"], shown["entry"]["leaf"]
    decisions = ("approve", "reject")
    return Proposal(
        kind=kind,
        shown=shown,
        population=session.get(Population, shown["population"]) if kind == "grants" else None,
        reasons=reasons_in_words(shown.get("reasons", [])),
        texts={d: signing_text(origin=origin, leaf=leaf, decision=d).decode() for d in decisions},
        commands={
            d: f"rldp ledger sign --key YOUR-KEY.pem --origin {origin} --leaf {leaf} --decision {d}"
            for d in decisions
        },
        is_decided=any(a["approver"] == subject.principal_id for a in shown["approvals"]),
    )
