"""Routes of people and hospitals: an admin invites and blocks, stewards vouch for stewards.

Nobody's name is kept: who `usr_…` is, the hospital knows.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field
from sqlalchemy.orm import Session

from service.auth.subject import Subject, require_role
from service.dependencies import ReadDep, SessionDep, StewardDep
from service.exact_json import ExactRoute
from service.idempotency.once import OnceDep
from service.ledger.schemas import StrictModel
from service.listing import ListQuery, page
from service.membership import invitations, people
from service.membership.invitations import Accepted, InvitationClosed, Role
from service.rate_limits import limits_of
from service.tenants.models import Principal, Tenant
from service.times import utc_text

router = APIRouter(prefix="/v1", tags=["access"], route_class=ExactRoute)
open_router = APIRouter(prefix="/v1", tags=["access"], route_class=ExactRoute)

Admin = Annotated[Subject, Depends(require_role("admin"))]
PeopleReader = Annotated[Subject, Depends(require_role("steward", "admin"))]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Signature = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{86}==$")]


class UserCreate(StrictModel):
    """The one role the new person will have, for good."""

    role: Role


class TenantCreate(StrictModel):
    """Nothing to say: a hospital has no name here."""


class InvitationAccept(StrictModel):
    """The token; from stewards also their public key and their signature of its text."""

    token: Annotated[str, Field(min_length=1, max_length=invitations.TOKEN_LENGTH_MAX)]
    public_key: Hex | None = None
    possession: Signature | None = None


class UserApproval(StrictModel):
    """Ed25519 over the text that the person's `to_sign` shows, in base64."""

    signature: Signature


@router.post("/users", status_code=201)
def invite_user(
    body: UserCreate, subject: Admin, session: SessionDep, response: Response, once: OnceDep
) -> dict[str, Any]:
    """Answers with a token, this once: hand it to the person, who accepts within three days."""

    def make() -> dict[str, Any]:
        made = invitations.invite(
            session,
            tenant_id=subject.tenant_id,
            role=body.role,
            invited_by=subject.principal_id,
        )
        response.headers["Location"] = f"/v1/users/{made.person.id}"
        return {**people.person_to_dict(made.person), "token": made.token}

    return once.answer(body, make, shown_once="token")


@router.get("/users")
def list_users(
    subject: PeopleReader, session: ReadDep, query: Annotated[ListQuery, Query()]
) -> dict[str, Any]:
    """Everybody of the hospital, newest first."""
    return page(
        session,
        Principal,
        people.visible_people(subject),
        after=query.after,
        limit=query.limit,
        show=people.person_to_dict,
    )


@router.get("/users/{user_id}")
def retrieve_user(user_id: str, subject: PeopleReader, session: ReadDep) -> dict[str, Any]:
    return people.person_to_dict(people.one_person(session, subject, user_id))


@router.post("/users/{user_id}/block")
def block_user(user_id: str, subject: Admin, session: SessionDep) -> dict[str, Any]:
    """Ends their keys, sessions and tokens at once; an open invitation is withdrawn."""
    return people.person_to_dict(people.block_other(session, subject, user_id))


@router.post("/users/{user_id}/unblock")
def unblock_user(user_id: str, subject: Admin, session: SessionDep) -> dict[str, Any]:
    """Lets them in again with the keys they had."""
    person = people.one_person(session, subject, user_id)
    people.unblock(session, person)
    return people.person_to_dict(person)


@router.post("/users/{user_id}/approval")
def approve_user(
    user_id: str, body: UserApproval, subject: StewardDep, session: SessionDep
) -> dict[str, Any]:
    """A steward vouches for a new one, whose key the ledger then takes."""
    invitations.approve(
        session,
        tenant_id=subject.tenant_id,
        user_id=user_id,
        by=subject.principal_id,
        signature=body.signature,
    )
    return people.person_to_dict(people.one_person(session, subject, user_id))


@router.post("/tenants", status_code=201)
def create_tenant(
    body: TenantCreate, subject: Admin, session: SessionDep, response: Response, once: OnceDep
) -> dict[str, Any]:
    """A further hospital and the token of its first admin. Admins of the first one only."""

    def make() -> dict[str, Any]:
        made = people.found_tenant(session, subject)
        tenant = session.get_one(Tenant, made.person.tenant_id)
        response.headers["Location"] = f"/v1/tenants/{tenant.id}"
        shown = people.tenant_to_dict(session, tenant)
        return {**shown, "admin": made.person.id, "token": made.token}

    return once.answer(body, make, shown_once="token")


@router.get("/tenants")
def list_tenants(
    subject: Admin, session: ReadDep, query: Annotated[ListQuery, Query()]
) -> dict[str, Any]:
    """The own hospital; for admins of the first one, all of them."""
    return page(
        session,
        Tenant,
        people.visible_tenants(session, subject),
        after=query.after,
        limit=query.limit,
        show=lambda tenant: people.tenant_to_dict(session, tenant),
    )


@router.get("/tenants/{tenant_id}")
def retrieve_tenant(tenant_id: str, subject: Admin, session: ReadDep) -> dict[str, Any]:
    return people.tenant_to_dict(session, people.one_tenant(session, subject, tenant_id))


@open_router.post("/invitations/accept")
def accept_invitation(
    body: InvitationAccept, request: Request, session: SessionDep
) -> dict[str, Any]:
    """Answers with the person's first key, this once. The token is the credential.

    Sent again before that key was used, it gives a new key and ends the lost one.
    """
    made = accept_counted(
        request, session, body.token, public_key=body.public_key, possession=body.possession
    )
    return {
        "id": made.person.id,
        "object": "accepted_invitation",
        "tenant": made.person.tenant_id,
        "role": made.person.role,
        "state": made.state,
        "public_key": made.person.public_key,
        "key": made.key.text,
        "expires_at": utc_text(made.key.expires_at),
    }


def accept_counted(
    request: Request,
    session: Session,
    token: str,
    *,
    public_key: str | None = None,
    possession: str | None = None,
) -> Accepted:
    """Accepts; a token that opens nothing counts like a wrong key, by where it came from.

    Raises:
        RateLimited: too many of them. Whatever `invitations.accept` raises.
    """
    try:
        return invitations.accept(session, token, public_key=public_key, possession=possession)
    except InvitationClosed:
        limits_of(request.app.state).failed(request.client.host if request.client else "")
        raise
