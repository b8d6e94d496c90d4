"""Makes, checks and revokes API keys (service.md 16.1).

A key is `rldp_<id>_<secret>` with 256 random bits of secret; the table holds its SHA-256
only. Since the secret is uniform, a fast digest is as safe as a slow one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from service import row_fence
from service.auth.models import ApiKey, ApiKeyScope
from service.auth.scopes import SCOPES
from service.database import Database, now_us
from service.ids import new_id
from service.tenants.models import Principal

DAY_US = 24 * 3600 * 1_000_000
LIFETIME_DAYS_MAX = 365
LIFETIME_DAYS_DEFAULT = 90
LAST_USE_PRECISION_US = 60 * 1_000_000
KEY_LENGTH_MAX = 200
_ID_PREFIX = "key_"
# Within the one query of a request; NULL for a key without scopes.
_SCOPES = (
    select(func.aggregate_strings(ApiKeyScope.scope, " "))
    .where(ApiKeyScope.key_id == ApiKey.id)
    .scalar_subquery()
)


@dataclass(frozen=True, kw_only=True)
class IssuedKey:
    """A fresh key. `text` exists here and nowhere else, and is left out of `repr`."""

    key_id: str
    principal_id: str
    expires_at: int
    text: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class KeyOwner:
    """Whose key was shown, or whose token: `key_id` then is that of the identity."""

    key_id: str
    principal_id: str
    tenant_id: str
    role: str
    scopes: frozenset[str] | None = None  # None: all that the role may


def issue_key(
    session: Session,
    principal_id: str,
    *,
    lifetime_days: int = LIFETIME_DAYS_DEFAULT,
    scopes: Iterable[str] | None = None,
) -> IssuedKey:
    """Adds a key to the caller's transaction and returns its text, once.

    Without `scopes` it may do all that its owner's role may.

    Raises:
        ValueError: `lifetime_days` is outside 1..365, or a scope is none.
    """
    wanted = None if scopes is None else frozenset(scopes)
    if wanted is not None and not (wanted and wanted <= SCOPES):
        raise ValueError("scopes must be at least one of the closed list")
    if not 1 <= lifetime_days <= LIFETIME_DAYS_MAX:
        raise ValueError(f"lifetime_days is outside 1..{LIFETIME_DAYS_MAX}")
    key_id = new_id(_ID_PREFIX)
    text = f"rldp_{key_id.removeprefix(_ID_PREFIX)}_{secrets.token_hex(32)}"
    created_at = now_us()
    row = ApiKey(
        id=key_id,
        principal_id=principal_id,
        sha256=_digest(text),
        prefix=text[:13],
        created_at=created_at,
        expires_at=created_at + lifetime_days * DAY_US,
        scope_rows=[ApiKeyScope(scope=scope) for scope in sorted(wanted or ())],
    )
    session.add(row)
    session.flush()
    return IssuedKey(key_id=key_id, principal_id=principal_id, expires_at=row.expires_at, text=text)


def authenticate(database: Database, text: str) -> KeyOwner | None:
    """The owner of a live key; None for one that opens nothing.

    That is one that is malformed, unknown, expired, revoked, or of somebody who is blocked.

    Notes the use, at most once a minute, in a short transaction of its own. Call it outside
    any transaction.
    """
    key_id = _key_id_of(text)
    if key_id is None:
        return None
    now = now_us()
    with row_fence.untold(), database.reading() as session:
        found = session.execute(
            select(
                ApiKey.sha256,
                ApiKey.revoked_at,
                ApiKey.expires_at,
                ApiKey.last_used_at,
                ApiKey.principal_id,
                Principal.tenant_id,
                Principal.role,
                Principal.blocked_at,
                _SCOPES.label("scopes"),
            )
            .join(Principal, Principal.id == ApiKey.principal_id)
            .where(ApiKey.id == key_id)
        ).one_or_none()
    if found is None:
        return None
    matches = hmac.compare_digest(found.sha256, _digest(text))
    if not matches or found.revoked_at is not None or found.expires_at <= now:
        return None
    if found.blocked_at is not None:
        return None
    if found.last_used_at is None or found.last_used_at <= now - LAST_USE_PRECISION_US:
        _note_use(database, key_id, now)
    return KeyOwner(
        key_id=key_id,
        principal_id=found.principal_id,
        tenant_id=found.tenant_id,
        role=found.role,
        scopes=None if found.scopes is None else frozenset(found.scopes.split(" ")),
    )


def _note_use(database: Database, key_id: str, now: int) -> None:
    with database.transaction() as session:
        session.execute(
            update(ApiKey)
            .where(ApiKey.id == key_id)
            .values(last_used_at=now - now % LAST_USE_PRECISION_US)
        )


def _key_id_of(text: str) -> str | None:
    if len(text) > KEY_LENGTH_MAX or not text.isascii():
        return None
    parts = text.split("_")
    if len(parts) != 3 or parts[0] != "rldp" or not parts[1] or not parts[2]:
        return None
    return _ID_PREFIX + parts[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
