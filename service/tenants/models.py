"""Tables of hospitals and people. No name in clear: ids are random (ledger.md 18.2)."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.database import Base

SYSTEM_TENANT = "system"  # owns the system log; no hospital, no people
ROLES = ("submitter", "steward", "auditor", "admin")


class Tenant(Base):
    """One hospital."""

    __tablename__ = "tenant"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    created_at: Mapped[int] = mapped_column(BigInteger)


class Principal(Base):
    """One person or machine account of a tenant, with exactly one role.

    `public_key` is the raw Ed25519 key in hex and present for stewards only; the server
    never holds a private key (ledger.md 16.3).
    """

    __tablename__ = "principal"
    __table_args__ = (
        CheckConstraint("role IN ('submitter', 'steward', 'auditor', 'admin')", name="role"),
        CheckConstraint("public_key IS NULL OR role = 'steward'", name="key_only_for_stewards"),
        Index("uq_principal_public_key", "public_key", unique=True),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), index=True)
    role: Mapped[str] = mapped_column(String(16))
    public_key: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[int] = mapped_column(BigInteger)
    blocked_at: Mapped[int | None] = mapped_column(BigInteger)  # from then on, no way in
    invitation: Mapped[Invitation | None] = relationship(
        foreign_keys="Invitation.principal_id", viewonly=True
    )


class Invitation(Base):
    """How a person gets their first key: a token, shown once to the admin who hands it on.

    Until they are `admitted_at`, the principal is blocked. A steward's key that the ledger has
    yet to take waits here with the proof that its owner holds it.
    """

    __tablename__ = "invitation"

    principal_id: Mapped[str] = mapped_column(ForeignKey("principal.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    invited_by: Mapped[str] = mapped_column(ForeignKey("principal.id"))
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)
    accepted_at: Mapped[int | None] = mapped_column(BigInteger)
    key_id: Mapped[str | None] = mapped_column(ForeignKey("api_key.id"))  # made when accepted
    possession: Mapped[str | None] = mapped_column(String(88))
    admitted_at: Mapped[int | None] = mapped_column(BigInteger)
    withdrawn_at: Mapped[int | None] = mapped_column(BigInteger)  # by an admin, before that
