"""Table of acknowledged alerts. Alerts themselves are read from rows and never stored."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from service.database import Base

ID = String(40)
STANDS = text("ended_at IS NULL")


class AlertAcknowledgement(Base):
    """One person's word that an alert is known. Counts until `ended_at`; rows are kept.

    At most one of an alert counts in a hospital: of two people, the first one's.
    """

    __tablename__ = "alert_acknowledgement"
    __table_args__ = (
        Index(
            "uq_alert_acknowledgement_stands",
            "tenant_id",
            "alert_id",
            unique=True,
            sqlite_where=STANDS,
            postgresql_where=STANDS,
        ),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    alert_id: Mapped[str] = mapped_column(ID)
    code: Mapped[str] = mapped_column(String(40))
    subject: Mapped[str] = mapped_column(String(80))
    degree: Mapped[int] = mapped_column(Integer)  # a worse one is news again
    acknowledged_by: Mapped[str] = mapped_column(ForeignKey("principal.id"))
    note: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[int] = mapped_column(BigInteger)
    ended_at: Mapped[int | None] = mapped_column(BigInteger)  # the alert was over, or worse
