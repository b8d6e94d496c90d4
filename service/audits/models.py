"""Table of empirical audits."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.database import Base


class JobAudit(Base):
    """One per attempt that reached its pre-flight. `report` is the file's text as written."""

    __tablename__ = "job_audit"
    __table_args__ = (
        CheckConstraint("verdict IN ('PASS', 'FAIL', 'INCONCLUSIVE')", name="verdict"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), index=True)
    verdict: Mapped[str] = mapped_column(String(16))
    summary: Mapped[str] = mapped_column(Text)  # canonical JSON, as in the certificate
    report: Mapped[str] = mapped_column(Text)
    created_at: Mapped[int] = mapped_column(BigInteger)
