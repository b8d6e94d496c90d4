"""Tables of API keys and of identities: digests only, never a key's text or a person's name."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.database import Base


class ApiKey(Base):
    """One key of one principal. The text is shown once, when it is made."""

    __tablename__ = "api_key"
    __table_args__ = (CheckConstraint("expires_at > created_at", name="expires_at"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    principal_id: Mapped[str] = mapped_column(ForeignKey("principal.id"), index=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    prefix: Mapped[str] = mapped_column(String(16))  # first characters, to recognise it by
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)
    last_used_at: Mapped[int | None] = mapped_column(BigInteger)  # to the minute
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)
    scope_rows: Mapped[list[ApiKeyScope]] = relationship(
        lazy="selectin", order_by="ApiKeyScope.scope"
    )


class ApiKeyScope(Base):
    """One scope of one key. A key without any may do all that its role may."""

    __tablename__ = "api_key_scope"

    key_id: Mapped[str] = mapped_column(ForeignKey("api_key.id"), primary_key=True)
    scope: Mapped[str] = mapped_column(String(24), primary_key=True)


class Identity(Base):
    """A person as an identity provider knows them, linked by an admin to a principal here.

    `id` is the digest of issuer and user (`identities.identity_id`): a provider's user name
    often is a name.
    """

    __tablename__ = "identity"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    principal_id: Mapped[str] = mapped_column(ForeignKey("principal.id"), index=True)
    created_at: Mapped[int] = mapped_column(BigInteger)
