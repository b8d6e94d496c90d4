"""Makes, checks and revokes API keys (service.md 16.1).

A key is `rldp_<id>_<secret>` with 256 random bits of secret; the table holds its SHA-256
only. Since the secret is uniform, a fast digest is as safe as a slow one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.auth.models import ApiKey
from service.database import Database, now_us
from service.ids import new_id
from service.tenants.models import Principal

DAY_US = 24 * 3600 * 1_000_000
LIFETIME_DAYS_MAX = 365
LIFETIME_DAYS_DEFAULT = 90
LAST_USE_PRECISION_US = 60 * 1_000_000
KEY_LENGTH_MAX = 200
_ID_PREFIX = "key_"


@dataclass(frozen=True, kw_only=True)
class IssuedKey:
    """A fresh key. `text` exists here and nowhere else, and is left out of `repr`."""

    key_id: str
    principal_id: str
    expires_at: int
    text: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class KeyOwner:
    """Whose key was shown."""

    key_id: str
    principal_id: str
    tenant_id: str
    role: str


def issue_key(
    session: Session, principal_id: str, *, lifetime_days: int = LIFETIME_DAYS_DEFAULT
) -> IssuedKey:
    """Adds a key to the caller's transaction and returns its text, once.

    Raises:
        ValueError: `lifetime_days` is outside 1..365.
    """
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
    )
    session.add(row)
    session.flush()
    return IssuedKey(key_id=key_id, principal_id=principal_id, expires_at=row.expires_at, text=text)


def authenticate(database: Database, text: str) -> KeyOwner | None:
    """The owner of a live key; None for one that is malformed, unknown, expired or revoked.

    Notes the use, at most once a minute, in a short transaction of its own. Call it outside
    any transaction.
    """
    key_id = _key_id_of(text)
    if key_id is None:
        return None
    now = now_us()
    with database.reading() as session:
        found = session.execute(
            select(ApiKey, Principal.tenant_id, Principal.role)
            .join(Principal, Principal.id == ApiKey.principal_id)
            .where(ApiKey.id == key_id)
        ).one_or_none()
    if found is None:
        return None
    row, tenant_id, role = found
    matches = hmac.compare_digest(row.sha256, _digest(text))
    if not matches or row.revoked_at is not None or row.expires_at <= now:
        return None
    if row.last_used_at is None or row.last_used_at <= now - LAST_USE_PRECISION_US:
        _note_use(database, key_id, now)
    return KeyOwner(key_id=key_id, principal_id=row.principal_id, tenant_id=tenant_id, role=role)


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
