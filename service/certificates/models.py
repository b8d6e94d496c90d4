"""Table of privacy certificates."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.database import Base


class Certificate(Base):
    """One per job that ended with an adapter. `body` is canonical JSON, `digest` its SHA-256."""

    __tablename__ = "certificate"
    __table_args__ = (
        CheckConstraint("verdict IN ('full', 'conditional', 'none')", name="verdict"),
    )

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), index=True)
    digest: Mapped[str] = mapped_column(String(64))
    body: Mapped[str] = mapped_column(Text)
    verdict: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[int] = mapped_column(BigInteger)
