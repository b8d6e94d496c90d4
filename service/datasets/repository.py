"""All SQL of files, datasets and versions; one method says what a caller may see of each."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, or_, select, update
from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.database import now_us
from service.datasets.models import Dataset, DatasetVersion, File, FileError
from service.errors import NotFound
from service.populations.models import Population


def visible_files(subject: Subject) -> Select[File]:
    """Stewards see the files of their tenant, everybody else their own uploads."""
    statement = select(File).where(
        File.tenant_id == subject.tenant_id,
        File.deleted_at.is_(None),
        or_(File.expires_at.is_(None), File.expires_at > now_us()),
    )
    if subject.role == "steward":
        return statement
    return statement.where(File.uploaded_by == subject.principal_id)


def visible_datasets(subject: Subject) -> Select[Dataset]:
    """Everybody of the tenant: a dataset row tells nothing of any patient."""
    return select(Dataset).where(Dataset.tenant_id == subject.tenant_id)


def visible_versions(subject: Subject) -> Select[DatasetVersion]:
    """Everybody of the tenant."""
    return select(DatasetVersion).where(DatasetVersion.tenant_id == subject.tenant_id)


def one_file(session: Session, subject: Subject, file_id: str, *, for_update: bool = False) -> File:
    """Raises NotFound when the caller may not see it."""
    statement = visible_files(subject).where(File.id == file_id)
    if for_update:
        statement = statement.with_for_update()
    found = session.scalar(statement)
    if found is None:
        raise NotFound
    return found


def one_dataset(session: Session, subject: Subject, dataset_id: str) -> Dataset:
    """Raises NotFound when the caller may not see it."""
    found = session.scalar(visible_datasets(subject).where(Dataset.id == dataset_id))
    if found is None:
        raise NotFound
    return found


def one_population(session: Session, subject: Subject, population_id: str) -> Population:
    """Raises NotFound when the caller may not see it."""
    found = session.scalar(
        select(Population).where(
            Population.id == population_id, Population.tenant_id == subject.tenant_id
        )
    )
    if found is None:
        raise NotFound
    return found


def version_of_file(session: Session, file_id: str) -> DatasetVersion | None:
    """The version made from a file that the caller has been shown to see."""
    return session.scalar(select(DatasetVersion).where(DatasetVersion.file_id == file_id))


def faults_of_file(
    session: Session, file_id: str, *, after_seq: int, limit: int
) -> Sequence[FileError]:
    """Stored faults in file order."""
    return session.scalars(
        select(FileError)
        .where(FileError.file_id == file_id, FileError.seq > after_seq)
        .order_by(FileError.seq)
        .limit(limit)
    ).all()


def mark_version_erased(session: Session, file_id: str) -> None:
    session.execute(
        update(DatasetVersion).where(DatasetVersion.file_id == file_id).values(state="erased")
    )
