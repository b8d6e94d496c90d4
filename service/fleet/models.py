"""Table of workers. What one runs stands in the job's lease, never here."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, String
from sqlalchemy.orm import Mapped, mapped_column

from service.database import Base


class Worker(Base):
    """One worker process since its start; a process that starts again is another one."""

    __tablename__ = "worker"
    __table_args__ = (CheckConstraint("beat_seconds > 0", name="beat_seconds"),)

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    device: Mapped[str] = mapped_column(String(80))  # as its driver names it
    version: Mapped[str] = mapped_column(String(40))
    beat_seconds: Mapped[int]  # how often it means to be heard of
    started_at: Mapped[int] = mapped_column(BigInteger)
    heard_at: Mapped[int] = mapped_column(BigInteger, index=True)
    left_at: Mapped[int | None] = mapped_column(BigInteger)  # said goodbye
    draining: Mapped[bool] = mapped_column(default=False)
