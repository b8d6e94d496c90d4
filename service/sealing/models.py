"""Tables of keys: one for each hospital, one for each file or job under it, all wrapped."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.database import Base

ID = String(40)


class TenantKey(Base):
    """A hospital's key, wrapped by the deployment's data key named in `master_id`.

    Destroying it leaves the row without a key: no other is ever made for the hospital.
    """

    __tablename__ = "tenant_key"
    __table_args__ = (
        CheckConstraint("(wrapped IS NULL) = (destroyed_at IS NOT NULL)", name="destroyed"),
    )

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    master_id: Mapped[str] = mapped_column(String(16))
    wrapped: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[int] = mapped_column(BigInteger)
    destroyed_at: Mapped[int | None] = mapped_column(BigInteger)


class DataKey(Base):
    """The key of one version's file, or of the files of one job, wrapped by its tenant's."""

    __tablename__ = "data_key"
    __table_args__ = (Index("ix_data_key_tenant_id", "tenant_id"),)

    owner_id: Mapped[str] = mapped_column(ID, primary_key=True)  # dsv_… or ftjob-…
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant_key.tenant_id"))
    wrapped: Mapped[str] = mapped_column(Text)
    created_at: Mapped[int] = mapped_column(BigInteger)
