"""Tables of jobs, of what they report, and of the messages that wait to be sent."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
)
from sqlalchemy.orm import Mapped, mapped_column

from service.database import Base, now_us
from service.jobs.lifecycle import STATES

ID = String(40)
DIGEST = String(64)
SEQUENCE = BigInteger().with_variant(Integer, "sqlite")
_STATE_LIST = ", ".join(f"'{state}'" for state in sorted(STATES))


class Job(Base):
    """One requested fine-tuning and the lease of the attempt that works on it.

    `epoch` fences attempts: it grows at each claim and at each forced end. While a worker
    holds the job, `lease_owner` and `lease_expires_at` are set; a write of an attempt is
    accepted only under its epoch and a live lease.
    """

    __tablename__ = "job"
    __table_args__ = (
        CheckConstraint(f"state IN ({_STATE_LIST})", name="state"),
        CheckConstraint("epoch >= 0 AND attempt >= 0 AND attempt <= epoch", name="epoch"),
        CheckConstraint("(lease_owner IS NULL) = (lease_expires_at IS NULL)", name="lease"),
        CheckConstraint(
            "(finished_at IS NOT NULL) = "
            "(state IN ('succeeded', 'budget_stopped', 'failed', 'cancelled'))",
            name="finished_at",
        ),
        Index("ix_job_tenant_id_created_at_id", "tenant_id", "created_at", "id"),
        Index("ix_job_state_not_before", "state", "not_before"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    created_by: Mapped[str] = mapped_column(ForeignKey("principal.id"))
    population_id: Mapped[str] = mapped_column(ForeignKey("population.id"))
    dataset_version_id: Mapped[str] = mapped_column(ID)
    training_file_id: Mapped[str] = mapped_column(ID)
    model: Mapped[str] = mapped_column(String(200))
    model_dir: Mapped[str] = mapped_column(Text)
    job_dir: Mapped[str] = mapped_column(Text)
    spec: Mapped[str] = mapped_column(Text)  # JSON: the request with its defaults filled
    labels: Mapped[dict[str, str]] = mapped_column(JSON)  # `metadata` of the request
    seed: Mapped[int] = mapped_column(BigInteger)
    plan: Mapped[str] = mapped_column(Text)  # canonical JSON of the RunPlan
    plan_digest: Mapped[str] = mapped_column(DIGEST)
    alpha_population: Mapped[int]
    priority: Mapped[int]  # -1 low, 0 normal, 1 high
    state: Mapped[str] = mapped_column(String(24))
    reason_code: Mapped[str | None] = mapped_column(String(40))
    last_failure_code: Mapped[str | None] = mapped_column(String(40))
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    epoch: Mapped[int]
    attempt: Mapped[int]
    lease_owner: Mapped[str | None] = mapped_column(String(80))
    lease_expires_at: Mapped[int | None] = mapped_column(BigInteger)
    lease_seconds: Mapped[int]
    not_before: Mapped[int] = mapped_column(BigInteger)  # back-off
    rung_at: Mapped[int] = mapped_column(BigInteger)  # last doorbell
    progress_at: Mapped[int] = mapped_column(BigInteger)  # claim or last finished step
    step: Mapped[int]
    window_no: Mapped[int]
    created_at: Mapped[int] = mapped_column(BigInteger)
    started_at: Mapped[int | None] = mapped_column(BigInteger)
    finished_at: Mapped[int | None] = mapped_column(BigInteger)
    pauses: Mapped[int] = mapped_column(default=0)  # attempts that a pause ended, none's fault
    state_at: Mapped[int] = mapped_column(BigInteger, default=now_us)  # in this state since


class JobEvent(Base):
    """One line of a job's history. Public and released values only."""

    __tablename__ = "job_event"
    __table_args__ = (
        CheckConstraint("level IN ('info', 'warn', 'error')", name="level"),
        Index("ix_job_event_job_id_seq", "job_id", "seq"),
    )

    seq: Mapped[int] = mapped_column(SEQUENCE, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(ID, unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"))
    created_at: Mapped[int] = mapped_column(BigInteger)
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(16))  # state, message or metrics
    message: Mapped[str] = mapped_column(String(400))
    data: Mapped[str] = mapped_column(Text)  # canonical JSON


class JobCheckpoint(Base):
    """A committed checkpoint: it exists once this row does (service.md 11)."""

    __tablename__ = "job_checkpoint"
    __table_args__ = (
        Index("uq_job_checkpoint_job_id_epoch_step", "job_id", "epoch", "step", unique=True),
    )

    seq: Mapped[int] = mapped_column(SEQUENCE, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(ID, unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"))
    epoch: Mapped[int]
    step: Mapped[int]
    window: Mapped[int]
    directory: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(DIGEST)
    epsilon_so_far: Mapped[str] = mapped_column(String(32))
    created_at: Mapped[int] = mapped_column(BigInteger)


class JobMetric(Base):
    """One point of a declared series. A redone window overwrites the lost one's points."""

    __tablename__ = "job_metric"

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    group_id: Mapped[str] = mapped_column(String(160), primary_key=True)  # "" = the whole job
    step: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    epoch: Mapped[int]
    value: Mapped[str] = mapped_column(String(40))  # a decimal, as text


class Outbox(Base):
    """A message that leaves after commit, at least once (service.md 8.2)."""

    __tablename__ = "outbox"
    __table_args__ = (
        CheckConstraint("topic IN ('doorbell', 'job_state')", name="topic"),
        Index("ix_outbox_sent_at_not_before", "sent_at", "not_before"),
    )

    seq: Mapped[int] = mapped_column(SEQUENCE, primary_key=True, autoincrement=True)
    topic: Mapped[str] = mapped_column(String(16))
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"))
    state: Mapped[str] = mapped_column(String(24))
    created_at: Mapped[int] = mapped_column(BigInteger)
    not_before: Mapped[int] = mapped_column(BigInteger)
    held_until: Mapped[int] = mapped_column(BigInteger)  # one dispatcher is sending it
    sent_at: Mapped[int | None] = mapped_column(BigInteger)


class NaturalKey(Base):
    """Digest of what a request asks for, so that a repeated POST finds its job."""

    __tablename__ = "natural_key"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    key: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    job_id: Mapped[str] = mapped_column(ID, index=True)
    created_at: Mapped[int] = mapped_column(BigInteger)
