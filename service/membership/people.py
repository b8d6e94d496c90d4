"""Who belongs to a hospital, who may see that, and who is shut out."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, selectinload

from service.auth.subject import Subject
from service.database import now_us
from service.errors import NotFound, RoleForbidden, StateConflict
from service.ids import new_person_id
from service.ledger.stewards import steward_text
from service.membership.invitations import Invited, invite, state_of
from service.tenants.models import SYSTEM_TENANT, Invitation, Principal, Tenant
from service.times import utc_text


def visible_people(subject: Subject) -> Select[Principal]:
    """Everybody of the caller's hospital, with how they were invited."""
    everybody = select(Principal).options(selectinload(Principal.invitation))
    return everybody.where(Principal.tenant_id == subject.tenant_id)


def one_person(session: Session, subject: Subject, user_id: str) -> Principal:
    """Raises NotFound when there is none of the caller's hospital."""
    found = session.scalar(visible_people(subject).where(Principal.id == user_id))
    if found is None:
        raise NotFound
    return found


def block(session: Session, person: Principal) -> None:
    """Ends every key, session and token of a person at once. Their jobs go on.

    Of somebody who is not in yet it withdraws the invitation, for good.
    """
    invitation = session.get(Invitation, person.id)
    if person.blocked_at is None:
        person.blocked_at = now_us()
    elif invitation is not None and not (invitation.admitted_at or invitation.withdrawn_at):
        invitation.withdrawn_at = now_us()
    session.flush()


def unblock(session: Session, person: Principal) -> None:
    """Lets a blocked person in again, with the keys and links they had.

    Raises:
        StateConflict: they were never in; a steward would enter without another's signature.
    """
    invitation = session.get(Invitation, person.id)
    if invitation is not None and invitation.admitted_at is None:
        raise StateConflict("This person was never in. Invite them anew.")
    person.blocked_at = None
    session.flush()


def block_other(session: Session, subject: Subject, user_id: str) -> Principal:
    """Raises NotFound, or StateConflict if it is the caller: nobody could undo it."""
    person = one_person(session, subject, user_id)
    if person.id == subject.principal_id:
        raise StateConflict("You cannot block yourself. Ask another admin.")
    block(session, person)
    return person


def person_to_dict(person: Principal) -> dict[str, Any]:
    """Ids, role and state. While a steward waits, also what another steward signs."""
    invitation = person.invitation
    state = state_of(person, invitation)
    waits = state == "awaiting_approval" and person.public_key is not None
    text = steward_text(principal=person.id, key=person.public_key or "").decode()
    return {
        "id": person.id,
        "object": "user",
        "tenant": person.tenant_id,
        "role": person.role,
        "state": state,
        "public_key": person.public_key,
        "to_sign": text if waits else None,
        "invited_by": None if invitation is None else invitation.invited_by,
        "invitation_expires_at": None if invitation is None else utc_text(invitation.expires_at),
        "created_at": utc_text(person.created_at),
        "blocked_at": utc_text(person.blocked_at) if state == "blocked" else None,
    }


def visible_tenants(session: Session, subject: Subject) -> Select[Tenant]:
    """The own hospital; for an admin of the house, every one."""
    if runs_the_house(session, subject):
        return select(Tenant).where(Tenant.id != SYSTEM_TENANT)
    return select(Tenant).where(Tenant.id == subject.tenant_id)


def one_tenant(session: Session, subject: Subject, tenant_id: str) -> Tenant:
    """Raises NotFound when the caller may not see it."""
    found = session.scalar(visible_tenants(session, subject).where(Tenant.id == tenant_id))
    if found is None:
        raise NotFound
    return found


def found_tenant(session: Session, subject: Subject) -> Invited:
    """A further hospital with nobody in it but its first admin, who is invited.

    Raises:
        RoleForbidden: the caller's hospital does not run this house.
    """
    if not runs_the_house(session, subject):
        raise RoleForbidden
    tenant = Tenant(id=new_person_id("tn_"), created_at=now_us())
    session.add(tenant)
    session.flush()
    return invite(session, tenant_id=tenant.id, role="admin", invited_by=subject.principal_id)


def runs_the_house(session: Session, subject: Subject) -> bool:
    """Admins of the first hospital, that of `rldp bootstrap`, take others in."""
    first = (
        select(Tenant.id)
        .where(Tenant.id != SYSTEM_TENANT)
        .order_by(Tenant.created_at, Tenant.id)
        .limit(1)
    )
    return subject.role == "admin" and session.scalar(first) == subject.tenant_id


def tenant_to_dict(session: Session, tenant: Tenant) -> dict[str, Any]:
    """Its people are counted, not named."""
    active = session.scalar(
        select(func.count())
        .select_from(Principal)
        .where(Principal.tenant_id == tenant.id, Principal.blocked_at.is_(None))
    )
    return {
        "id": tenant.id,
        "object": "tenant",
        "active_users": active or 0,
        "created_at": utc_text(tenant.created_at),
    }
