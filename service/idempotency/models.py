"""Table of the answers that were given under a key."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.database import Base

ID = String(40)
DIGEST = String(64)


class IdempotencyKey(Base):
    """The answer given under an `Idempotency-Key`; digests only, never the key."""

    __tablename__ = "idempotency_key"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    principal_id: Mapped[str] = mapped_column(ID, primary_key=True)
    route: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_digest: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    request_digest: Mapped[str] = mapped_column(DIGEST)
    answer: Mapped[str] = mapped_column(Text)
    created_at: Mapped[int] = mapped_column(BigInteger, index=True)
