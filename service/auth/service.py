"""Rules of API keys: everybody handles their own; an admin sees and revokes the tenant's.

An admin makes no key for another person: who holds a steward's key can read training
data, which admins may not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from service.auth.keys import IssuedKey, issue_key
from service.auth.models import ApiKey
from service.auth.scopes import covers
from service.auth.subject import Subject
from service.database import now_us
from service.errors import (
    EtagMismatch,
    NotFound,
    PreconditionRequired,
    ScopeForbidden,
    ServiceError,
)
from service.tenants.models import Principal

LIVE_KEYS_MAX = 20


def visible_keys(subject: Subject) -> Select[ApiKey]:
    """Own keys; for an admin, those of the tenant."""
    statement = select(ApiKey).join(Principal, Principal.id == ApiKey.principal_id)
    if subject.role == "admin":
        return statement.where(Principal.tenant_id == subject.tenant_id)
    return statement.where(Principal.id == subject.principal_id)


def one_key(session: Session, subject: Subject, key_id: str) -> ApiKey:
    """Raises NotFound when the caller may not see it."""
    found = session.scalar(visible_keys(subject).where(ApiKey.id == key_id))
    if found is None:
        raise NotFound
    return found


def make_own_key(
    session: Session,
    subject: Subject,
    lifetime_days: int,
    scopes: Collection[str] | None = None,
) -> IssuedKey:
    """A further key of the caller, with the scopes of the one that asks unless fewer are named.

    Raises:
        ScopeForbidden: the key that asks has not all of these scopes.
        ServiceError: 429 `quota_exceeded`, 20 live keys are there already.
    """
    now = now_us()
    live = session.scalar(
        select(func.count())
        .select_from(ApiKey)
        .where(
            ApiKey.principal_id == subject.principal_id,
            ApiKey.revoked_at.is_(None),
            ApiKey.expires_at > now,
        )
    )
    if live is not None and live >= LIVE_KEYS_MAX:
        raise ServiceError(429, "quota_exceeded", "Revoke a key first: 20 are live already.")
    held = subject.scopes
    wanted = held if scopes is None else frozenset(scopes)
    if held is not None and not all(covers(held, scope) for scope in wanted or ()):
        raise ScopeForbidden
    return issue_key(session, subject.principal_id, lifetime_days=lifetime_days, scopes=wanted)


def revoke_key(session: Session, subject: Subject, key_id: str, if_match: str | None) -> ApiKey:
    """Ends a key at once. Revoking a revoked key changes nothing.

    Raises:
        NotFound, PreconditionRequired, EtagMismatch.
    """
    key = one_key(session, subject, key_id)
    if if_match is None:
        raise PreconditionRequired
    if if_match.strip() not in ("*", etag_of(key)):
        raise EtagMismatch
    if key.revoked_at is None:
        key.revoked_at = now_us()
        session.flush()
    return key


def etag_of(key: ApiKey) -> str:
    """Changes when the key does; its last use is no change."""
    text = f"{key.id} {key.expires_at} {key.revoked_at}"
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
