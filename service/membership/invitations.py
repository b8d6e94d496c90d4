"""How somebody becomes a member of a hospital, with exactly one role.

An admin invites; whoever accepts with the token gets the first key, shown once. A steward
signs for a key pair of their own, and once the hospital's ledger is founded enters only when
a registered steward has signed for them (ledger.md 16.4). So an admin can make no steward.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from typing import Literal, cast

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from service.auth.keys import DAY_US, IssuedKey, issue_key
from service.auth.models import ApiKey
from service.database import fence, now_us
from service.errors import FieldInvalid, NotFound, ServiceError, StateConflict
from service.ids import new_person_id
from service.ledger import stewards
from service.ledger.entries import log_of, newest_log
from service.row_fence import bind
from service.tenants.models import Invitation, Principal, Tenant

Role = Literal["submitter", "steward", "auditor", "admin"]
State = Literal["invited", "expired", "withdrawn", "awaiting_approval", "active", "blocked"]
VALID_DAYS = 3
OPEN_INVITATIONS_MAX = 100
FOUNDERS = 2
TOKEN_PREFIX = "enrol"
TOKEN_LENGTH_MAX = 200


class InvitationClosed(FieldInvalid):
    """The token opens nothing: unknown, expired, withdrawn or used up; nobody is told which."""

    def __init__(self) -> None:
        super().__init__(
            "token", "It is unknown, expired or used up. Ask your admin for a new invitation."
        )


@dataclass(frozen=True, kw_only=True)
class Invited:
    """A new member. `token` exists here and nowhere else, and is left out of `repr`."""

    person: Principal
    invitation: Invitation
    token: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """What accepting gave: the key opens nothing before `state` is active."""

    person: Principal
    key: IssuedKey
    state: State


def invite(session: Session, *, tenant_id: str, role: Role, invited_by: str) -> Invited:
    """A new person of the hospital, who can do nothing before they accept.

    Raises:
        ServiceError: 429 `quota_exceeded`, 100 invitations are open already.
    """
    now = now_us()
    waiting = session.scalar(
        select(func.count())
        .select_from(Invitation)
        .join(Principal, Principal.id == Invitation.principal_id)
        .where(Principal.tenant_id == tenant_id)
        .where(Invitation.accepted_at.is_(None), Invitation.expires_at > now)
    )
    if (waiting or 0) >= OPEN_INVITATIONS_MAX:
        raise ServiceError(429, "quota_exceeded", "100 invitations are open. Wait for some.")
    person = Principal(
        id=new_person_id("usr_"), tenant_id=tenant_id, role=role, created_at=now, blocked_at=now
    )
    session.add(person)
    session.flush()
    token = f"{TOKEN_PREFIX}_{person.id.removeprefix('usr_')}_{secrets.token_hex(32)}"
    invitation = Invitation(
        principal_id=person.id,
        sha256=_digest(token),
        invited_by=invited_by,
        created_at=now,
        expires_at=now + VALID_DAYS * DAY_US,
    )
    session.add(invitation)
    session.flush()
    return Invited(person=person, invitation=invitation, token=token)


def person_of_token(token: str) -> str | None:
    """The id in a token, so that its holder can sign for it; None if it is no token."""
    parts = token.split("_")
    if len(token) > TOKEN_LENGTH_MAX or not token.isascii() or len(parts) != 3:
        return None
    return f"usr_{parts[1]}" if parts[0] == TOKEN_PREFIX and parts[1] else None


def accept(
    session: Session, token: str, *, public_key: str | None, possession: str | None
) -> Accepted:
    """Gives the invited person their first key, and binds the request to their hospital.

    Done again before that key was used, it revokes it and gives another: an answer may get
    lost. `public_key` is 64 hex digits and `possession` the new steward's own signature of
    `stewards.steward_text`; both for stewards only.

    Raises:
        InvitationClosed: the token opens nothing.
        FieldInvalid: the public key is missing, superfluous, taken or not the registered one.
        StewardSignatureInvalid: the signature does not fit.
        StateConflict: nobody is there who could vouch for a further steward.
    """
    invitation = _open_invitation(session, token)
    if invitation is None:
        raise InvitationClosed
    person = session.get_one(Principal, invitation.principal_id)
    bind(person.tenant_id)
    fence(session)
    if person.role == "steward":
        _take_signing_key(session, person, invitation, public_key, possession)
    elif public_key is not None or possession is not None:
        raise FieldInvalid("public_key", "Only stewards sign; leave it out.")
    _revoke(session, invitation.key_id)
    key = issue_key(session, person.id)
    invitation.accepted_at, invitation.key_id = now_us(), key.key_id
    if invitation.admitted_at is None and (person.role != "steward" or _founds(session, person)):
        _admit(person, invitation)
    session.flush()
    return Accepted(person=person, key=key, state=state_of(person, invitation))


def _admit(person: Principal, invitation: Invitation) -> None:
    """From now on their key opens what their role may do."""
    person.blocked_at = None
    invitation.admitted_at = now_us()


def approve(session: Session, *, tenant_id: str, user_id: str, by: str, signature: str) -> None:
    """A registered steward vouches for a new one; the ledger takes the key. Once is enough.

    Raises:
        NotFound: nobody of this hospital.
        StateConflict: they wait for no approval.
        NotAllowedToSign, StewardSignatureInvalid: of the one who approves.
    """
    invitation = session.scalar(_locked(user_id))
    person = session.get(Principal, user_id)
    if person is None or person.tenant_id != tenant_id:
        raise NotFound
    state = state_of(person, invitation)
    if state == "active":
        return
    if invitation is None or state != "awaiting_approval":
        raise StateConflict("This person waits for no approval.")
    stewards.register(
        session,
        log_of(session, tenant_id),
        principal=person.id,
        key=cast(str, person.public_key),
        possession=cast(str, invitation.possession),
        approver=by,
        approval=signature,
    )
    _admit(person, invitation)
    # The proof of possession now stands in the ledger for all to read. With it, whoever still
    # has the token could otherwise take the steward's first key away and get another.
    invitation.expires_at = now_us()
    session.flush()


def state_of(person: Principal, invitation: Invitation | None) -> State:
    """Where somebody stands on their way in, or that they are in, or out."""
    if person.blocked_at is None:
        return "active"
    if invitation is None or invitation.admitted_at is not None:
        return "blocked"
    if invitation.withdrawn_at is not None:
        return "withdrawn"
    if invitation.accepted_at is not None:
        return "awaiting_approval"
    return "invited" if invitation.expires_at > now_us() else "expired"


def _take_signing_key(
    session: Session,
    person: Principal,
    invitation: Invitation,
    public_key: str | None,
    possession: str | None,
) -> None:
    if public_key is None or possession is None:
        raise FieldInvalid(
            "public_key", "A steward needs a signing key: `rldp people accept` makes one."
        )
    stewards.require_signed(possession, by=public_key, principal=person.id, key=public_key)
    if invitation.admitted_at is not None and person.public_key != public_key:
        raise FieldInvalid("public_key", "You are registered with another key; use that one.")
    holder = session.scalar(select(Principal.id).where(Principal.public_key == public_key))
    if holder not in (None, person.id):
        raise FieldInvalid("public_key", "This key is somebody's already. Make another.")
    person.public_key, invitation.possession = public_key, possession
    session.flush()


def _founds(session: Session, person: Principal) -> bool:
    """Whether they are one of the first two stewards, whom the log names when it is opened.

    Who was one counts for good: an admin who blocks a founder has no place to give away.

    Raises:
        StateConflict: the founders are blocked, so that nobody could vouch for this one.
    """
    tenant_id = person.tenant_id
    session.get_one(Tenant, tenant_id, with_for_update=True)  # one after the other
    if session.scalar(newest_log(tenant_id)) is not None:
        return False
    founders = session.scalars(
        select(Principal)
        .where(Principal.tenant_id == tenant_id, Principal.id != person.id)
        .where(Principal.role == "steward", Principal.public_key.is_not(None))
    ).all()
    if len(founders) < FOUNDERS:
        return True
    if all(founder.blocked_at is not None for founder in founders):
        raise StateConflict("Both first stewards are blocked. Let one of them in again first.")
    log_of(session, tenant_id)  # names them, so that one of them can vouch for this one
    return False


def _open_invitation(session: Session, token: str) -> Invitation | None:
    """Locked, so that two who hold one token come one after the other."""
    person_id = person_of_token(token)
    if person_id is None:
        return None
    found = session.scalar(_locked(person_id))
    if found is None or not hmac.compare_digest(found.sha256, _digest(token)):
        return None
    if found.expires_at <= now_us() or found.withdrawn_at is not None:
        return None
    if found.key_id is not None and _was_used(session, found.key_id):
        return None
    return found


def _locked(person_id: str) -> Select[Invitation]:
    return select(Invitation).where(Invitation.principal_id == person_id).with_for_update()


def _was_used(session: Session, key_id: str) -> bool:
    key = session.get_one(ApiKey, key_id)
    return key.last_used_at is not None or key.revoked_at is not None


def _revoke(session: Session, key_id: str | None) -> None:
    if key_id is not None:
        session.get_one(ApiKey, key_id).revoked_at = now_us()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
