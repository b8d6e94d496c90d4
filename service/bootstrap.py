"""First start: one hospital, its people, one API key each, and the stewards' signing keys.

There is no default password: every secret is drawn here and shown once by the caller. The
database gets the stewards' public keys; the private ones lie in files of mode 0600, which
belong on the stewards' own machines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from service.auth.keys import LIFETIME_DAYS_MAX, issue_key
from service.database import Database, now_us
from service.ids import new_person_id
from service.keyfiles import SigningKeyUnusable, signing_key
from service.settings import Settings
from service.tenants.models import SYSTEM_TENANT, Principal, Tenant

__all__ = ["Bootstrapped", "FirstPrincipal", "SigningKeyUnusable", "bootstrap"]

PEOPLE = (
    ("admin", "admin"),
    ("submitter", "submitter"),
    ("steward-1", "steward"),
    ("steward-2", "steward"),
    ("auditor", "auditor"),
)


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
    hospitals = select(Tenant.id).where(Tenant.id != SYSTEM_TENANT)
    with database.transaction() as session:
        if not database.is_sqlite:  # two first starts at once: the second waits, then sees
            session.execute(text("LOCK TABLE tenant IN SHARE ROW EXCLUSIVE MODE"))
        if session.scalar(hospitals.limit(1)) is not None:
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
        public_key=None if path is None else _public_hex(signing_key(path)),
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


def _public_hex(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
