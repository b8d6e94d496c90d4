"""First start: one hospital, its people, one API key each, and the stewards' signing keys.

There is no default password: every secret is drawn here and shown once by the caller. The
database gets the stewards' public keys; the private ones lie in files of mode 0600, which
belong on the stewards' own machines.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from service.auth.keys import LIFETIME_DAYS_MAX, issue_key
from service.database import Database, now_us
from service.ids import new_person_id
from service.settings import Settings
from service.tenants.models import Principal, Tenant

PEOPLE = (
    ("admin", "admin"),
    ("submitter", "submitter"),
    ("steward-1", "steward"),
    ("steward-2", "steward"),
    ("auditor", "auditor"),
)


class SigningKeyUnusable(Exception):
    """A file with a steward's key is there already and holds something else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"{path.name} holds no Ed25519 key. Move it away, then start again.")


@dataclass(frozen=True, kw_only=True)
class FirstPrincipal:
    """One person of the new hospital. `key` is shown once; `repr` leaves it out."""

    name: str
    role: str
    principal_id: str
    key: str = field(repr=False)
    signing_key_path: Path | None


@dataclass(frozen=True, kw_only=True)
class Bootstrapped:
    """Everything the first start made."""

    tenant_id: str
    principals: tuple[FirstPrincipal, ...]

    def key_of(self, name: str) -> str:
        """API key of `admin`, `submitter`, `steward-1`, `steward-2` or `auditor`."""
        return next(person.key for person in self.principals if person.name == name)


def bootstrap(database: Database, settings: Settings) -> Bootstrapped | None:
    """Fills an empty database; None when a hospital is there already.

    A signing key file that exists is used, not replaced: a start that broke before its
    commit can be repeated, and no key of another database is ever lost.

    Raises:
        SigningKeyUnusable: such a file holds something else.
    """
    with database.transaction() as session:
        if not database.is_sqlite:  # two first starts at once: the second waits, then sees
            session.execute(text("LOCK TABLE tenant IN SHARE ROW EXCLUSIVE MODE"))
        if session.scalar(select(Tenant.id).limit(1)) is not None:
            return None
        tenant = Tenant(id=new_person_id("tn_"), created_at=now_us())
        session.add(tenant)
        session.flush()
        people = tuple(
            _make_person(session, tenant.id, name, role, settings.keys_dir) for name, role in PEOPLE
        )
        return Bootstrapped(tenant_id=tenant.id, principals=people)


def _make_person(
    session: Session, tenant_id: str, name: str, role: str, keys_dir: Path
) -> FirstPrincipal:
    path = keys_dir / f"{name}.pem" if role == "steward" else None
    principal = Principal(
        id=new_person_id("usr_"),
        tenant_id=tenant_id,
        role=role,
        public_key=None if path is None else _public_hex(_signing_key(path)),
        created_at=now_us(),
    )
    session.add(principal)
    session.flush()
    issued = issue_key(session, principal.id, lifetime_days=LIFETIME_DAYS_MAX)
    return FirstPrincipal(
        name=name,
        role=role,
        principal_id=principal.id,
        key=issued.text,
        signing_key_path=path,
    )


def _signing_key(path: Path) -> Ed25519PrivateKey:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        return _loaded(path)
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(pem)
        stream.flush()
        os.fsync(stream.fileno())
    return key


def _loaded(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):
        raise SigningKeyUnusable(path) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyUnusable(path)
    return key


def _public_hex(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
