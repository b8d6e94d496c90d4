"""Who a provider's person is here: an admin's link decides, the provider can only narrow it.

A person that no admin linked has no role, hence no way in. The role is that of the principal;
a claim may take it away, never add to it. Stewards and admins need a second factor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.auth.keys import KeyOwner
from service.auth.models import Identity
from service.auth.tokens import TokenRefused
from service.database import now_us
from service.settings import Settings
from service.tenants.models import Principal

USER_LENGTH_MAX = 255
CAREFUL_ROLES = frozenset({"steward", "admin"})


def identity_id(issuer: str, user: str) -> str:
    """Stands for a user of a provider. A digest, since user names often are names."""
    return hashlib.sha256(f"{issuer}\n{user}".encode()).hexdigest()


def link(session: Session, principal_id: str, identity: str) -> Identity:
    """Lets a provider's person in as this principal; a link they had elsewhere moves here."""
    found = session.get(Identity, identity)
    if found is None:
        found = Identity(id=identity, principal_id=principal_id, created_at=now_us())
        session.add(found)
    found.principal_id = principal_id
    session.flush()
    return found


def is_identity_id(text: str) -> bool:
    """Whether it has the form of one."""
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def unlink(session: Session, identity: str) -> bool:
    """Takes a link away; whether there was one. Keys of the principal are not touched."""
    found = session.get(Identity, identity)
    if found is not None:
        session.delete(found)
    return found is not None


def people_with_links(session: Session) -> list[tuple[Principal, int]]:
    """Everybody, with the number of their identities, hospital by hospital."""
    statement = (
        select(Principal, func.count(Identity.id))
        .join(Identity, Identity.principal_id == Principal.id, isouter=True)
        .group_by(Principal.id)
        .order_by(Principal.tenant_id, Principal.role, Principal.id)
    )
    return [(person, links) for person, links in session.execute(statement)]


@dataclass(frozen=True, kw_only=True)
class ClaimRules:
    """Which claims say who somebody is. An empty name asks for no such claim."""

    user: str = "sub"
    tenant: str = ""
    roles: str = ""
    second_factors: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: Settings) -> ClaimRules:
        factors = (part.strip() for part in settings.oidc_second_factor.split(","))
        return cls(
            user=settings.oidc_user_claim,
            tenant=settings.oidc_tenant_claim,
            roles=settings.oidc_roles_claim,
            second_factors=frozenset(filter(None, factors)),
        )

    def user_of(self, claims: Mapping[str, Any]) -> str:
        """Raises TokenRefused if the claim is absent or no plain name."""
        user = claim(claims, self.user)
        if not isinstance(user, str) or not 0 < len(user) <= USER_LENGTH_MAX:
            raise TokenRefused("claim_missing")
        return user

    def require(self, claims: Mapping[str, Any], *, tenant_id: str, role: str) -> None:
        """Raises TokenRefused if the provider says less about them than was granted here."""
        if self.tenant and claim(claims, self.tenant) != tenant_id:
            raise TokenRefused("tenant")
        if self.roles and role not in _words(claim(claims, self.roles)):
            raise TokenRefused("role")
        methods = _words(claims.get("amr"))
        if self.second_factors and role in CAREFUL_ROLES and not self.second_factors & methods:
            raise TokenRefused("second_factor")


def claim(claims: Mapping[str, Any], name: str) -> Any:
    """The claim of this name; else a dot leads into an object, as in `realm_access.roles`."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found


def _words(value: Any) -> frozenset[str]:
    """A list of words, or one text with spaces between, as providers write them."""
    listed = value.split() if isinstance(value, str) else value
    if not isinstance(listed, list):
        return frozenset()
    return frozenset(word for word in listed if isinstance(word, str))


def owner_of_claims(
    session: Session, claims: Mapping[str, Any], *, issuer: str, rules: ClaimRules
) -> KeyOwner:
    """The principal that checked claims stand for.

    Raises:
        TokenRefused: `unlinked` or `blocked` here, or the provider says less than was granted.
    """
    identity = identity_id(issuer, rules.user_of(claims))
    person = linked_person(session, identity)
    if person is None:
        raise TokenRefused("unlinked")
    if person.blocked_at is not None:
        raise TokenRefused("blocked")
    rules.require(claims, tenant_id=person.tenant_id, role=person.role)
    return KeyOwner(
        key_id=identity, principal_id=person.id, tenant_id=person.tenant_id, role=person.role
    )


def linked_person(session: Session, identity: str) -> Principal | None:
    """Whoever an identity is linked to; blocked or not."""
    return session.scalar(
        select(Principal)
        .join(Identity, Identity.principal_id == Principal.id)
        .where(Identity.id == identity)
    )
