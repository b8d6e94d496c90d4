"""Tables of datasets, uploaded files, their row reports, and dataset versions."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.database import Base

ID = String(40)
DIGEST = String(64)


class Dataset(Base):
    """Data about one population, and how its rows name their patient.

    Without a `unit_field` every row counts as another patient; a steward states that.
    """

    __tablename__ = "dataset"
    __table_args__ = (
        CheckConstraint(
            "unit_field IS NOT NULL OR records_are_unique_patients", name="unit_is_known"
        ),
        Index("ix_dataset_tenant_id_created_at_id", "tenant_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    population_id: Mapped[str] = mapped_column(ForeignKey("population.id"), index=True)
    unit_field: Mapped[str | None] = mapped_column(String(64))
    records_are_unique_patients: Mapped[bool]
    created_by: Mapped[str] = mapped_column(ForeignKey("principal.id"))
    created_at: Mapped[int] = mapped_column(BigInteger)


class File(Base):
    """One upload. The rows themselves lie in `blob_path` until the file is deleted.

    `version_id` is set aside at upload for the version that this file becomes; the
    version's row exists once the file has a dataset. Sizes, digests and counts are exact
    facts about patients' data: for the data owner only.
    """

    __tablename__ = "file"
    __table_args__ = (
        CheckConstraint("status IN ('processed', 'error')", name="status"),
        CheckConstraint("(status = 'processed') = (errors_total = 0)", name="errors_total"),
        CheckConstraint("kind IN ('jsonl', 'csv', 'parquet')", name="kind"),
        CheckConstraint("(blob_path IS NULL) = (blob_sha256 IS NULL)", name="blob"),
        CheckConstraint("deleted_at IS NULL OR blob_path IS NULL", name="deleted_has_no_blob"),
        Index("ix_file_tenant_id_created_at_id", "tenant_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    uploaded_by: Mapped[str] = mapped_column(ForeignKey("principal.id"))
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("dataset.id"))
    version_id: Mapped[str] = mapped_column(ID, unique=True)
    filename: Mapped[str] = mapped_column(Text)  # the user's; never a path of ours
    kind: Mapped[str] = mapped_column(String(8))
    unit_field: Mapped[str | None] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(DIGEST)  # of the bytes as sent
    status: Mapped[str] = mapped_column(String(16))
    errors_total: Mapped[int]
    blob_path: Mapped[str | None] = mapped_column(Text)
    blob_sha256: Mapped[str | None] = mapped_column(DIGEST)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger, index=True)
    deleted_at: Mapped[int | None] = mapped_column(BigInteger)


class FileError(Base):
    """One fault of one row: where and of which kind, never what stood there."""

    __tablename__ = "file_error"

    file_id: Mapped[str] = mapped_column(ForeignKey("file.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    line: Mapped[int] = mapped_column(BigInteger)
    pointer: Mapped[str] = mapped_column(String(80))
    code: Mapped[str] = mapped_column(String(32))
    message: Mapped[str] = mapped_column(String(200))


class DatasetVersion(Base):
    """Immutable rows for training: JSON lines of `unit` and `text`, under their digest."""

    __tablename__ = "dataset_version"
    __table_args__ = (
        CheckConstraint("unit IN ('patient', 'record')", name="unit"),
        CheckConstraint("state IN ('ready', 'erased')", name="state"),
        Index("ix_dataset_version_dataset_id_created_at_id", "dataset_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id"))
    dataset_id: Mapped[str] = mapped_column(ForeignKey("dataset.id"))
    file_id: Mapped[str] = mapped_column(ForeignKey("file.id"), unique=True)
    path: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(DIGEST)
    unit: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[int] = mapped_column(BigInteger)
