"""Takes uploads in, shows and erases files, and resolves the data of a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert
from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.database import Database, now_us
from service.datasets import repository, storage
from service.datasets.form import UploadForm
from service.datasets.models import Dataset, DatasetVersion, File, FileError
from service.datasets.rows import CONTENT_FIELDS, UNIT_FIELD_DEFAULT
from service.datasets.schemas import file_to_dict
from service.datasets.validation import Outcome, validate
from service.errors import (
    DatasetRequired,
    FieldInvalid,
    FileInvalid,
    NotFound,
    StateConflict,
    UnsupportedOption,
)
from service.idempotency import store as idempotency
from service.ids import new_id
from service.sealing import keyring
from service.sealing.files import SealedFile, StoredFile, erase
from service.sealing.keyring import Keyring
from service.settings import Settings

SECOND_US = 1_000_000
EXPIRY_SECONDS_MIN = 3600
EXPIRY_SECONDS_MAX = 2_592_000
UNIT_FIELD_LENGTH_MAX = 64


@dataclass(frozen=True, kw_only=True)
class TrainingVersion:
    """Everything a job needs to know of its data, and whose budget pays for it."""

    version_id: str
    dataset_id: str
    file_id: str
    population_id: str
    path: str
    sha256: str
    unit: str
    records_are_unique_patients: bool


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The answer to an upload; `is_replayed` if an equal one under its key came before."""

    answer: dict[str, Any]
    is_replayed: bool


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """The fields of an upload, checked."""

    dataset: Dataset | None
    unit_field: str | None
    expires_after_seconds: int | None


def store_upload(
    database: Database,
    settings: Settings,
    subject: Subject,
    *,
    file_id: str,
    spooled: SealedFile,
    form: UploadForm,
    key: str | None = None,
) -> Stored:
    """Validates the spooled bytes and registers the file, its report and its version.

    The slow part runs outside any transaction. Rows written for a transaction that then
    fails belong to no file and are swept up later (`retention.sweep`). Under a key the
    first answer is given again for a day, if fields and bytes are the same.

    Raises:
        IdempotencyKeyReused, RequestInProgress: of the key.
    """
    keyed = None if key is None else _keyed(subject, key, spooled, form)
    with database.reading() as session:
        if keyed and (kept := idempotency.kept_answer(session, keyed)):
            return Stored(answer=kept, is_replayed=True)
        wanted = _wanted(session, subject, form.fields)
    version_id = new_id("dsv_")
    rows_key = storage.rows_key(version_id, keyring.new_key())
    blob = storage.blob_path(settings.files_dir, version_id)
    outcome = validate(
        spooled.stored,
        SealedFile(blob, rows_key),
        unit_field=wanted.unit_field,
        unpacked_bytes_max=settings.upload_bytes_max,
    )
    file = _file_row(subject, file_id, spooled, form, wanted, outcome, rows_key.owner_id)
    file.blob_path = None if outcome.errors_total else str(blob)
    with database.transaction() as session:
        if keyed and (kept := idempotency.take(session, keyed)):  # an equal one was quicker
            erase(blob)
            return Stored(answer=kept, is_replayed=True)
        session.add(file)
        session.flush()
        if not outcome.errors_total:
            Keyring.of(settings).keep(session, subject.tenant_id, version_id, rows_key.secret)
        _store_faults(session, file_id, outcome)
        if wanted.dataset is not None and not outcome.errors_total:
            add_version(session, subject, wanted.dataset, file)
        answer = file_to_dict(file)
        if keyed:
            idempotency.keep(session, keyed, answer)
    return Stored(answer=answer, is_replayed=False)


def _file_row(
    subject: Subject,
    file_id: str,
    spooled: SealedFile,
    form: UploadForm,
    wanted: _Wanted,
    outcome: Outcome,
    version_id: str,
) -> File:
    created_at = now_us()
    expiry = wanted.expires_after_seconds
    return File(
        id=file_id,
        tenant_id=subject.tenant_id,
        uploaded_by=subject.principal_id,
        dataset_id=wanted.dataset.id if wanted.dataset else None,
        version_id=version_id,
        filename=form.filename,
        kind=outcome.kind,
        unit_field=wanted.unit_field,
        size_bytes=spooled.size_bytes,
        sha256=spooled.sha256,
        status="error" if outcome.errors_total else "processed",
        errors_total=outcome.errors_total,
        blob_sha256=outcome.blob_sha256,
        created_at=created_at,
        expires_at=None if expiry is None else created_at + expiry * SECOND_US,
    )


def _keyed(subject: Subject, key: str, spooled: SealedFile, form: UploadForm) -> idempotency.Keyed:
    asked = {"fields": dict(form.fields), "name": form.filename, "sha256": spooled.sha256}
    return idempotency.keyed(subject, "POST /v1/files", key, asked)


def add_version(session: Session, subject: Subject, dataset: Dataset, file: File) -> DatasetVersion:
    """Makes the file a version of the dataset; the file's rows never change again."""
    assert file.blob_path is not None and file.blob_sha256 is not None
    population = repository.one_population(session, subject, dataset.population_id)
    version = DatasetVersion(
        id=file.version_id,
        tenant_id=subject.tenant_id,
        dataset_id=dataset.id,
        file_id=file.id,
        path=file.blob_path,
        sha256=file.blob_sha256,
        unit=population.unit,
        state="ready",
        created_at=now_us(),
    )
    session.add(version)
    session.flush()
    return version


def erase_file(session: Session, subject: Subject, file_id: str) -> None:
    """Erases the rows from disk with their key, then the file from sight. Refunds nothing.

    Without the key no copy of the blob can be read either. The blob goes before the commit:
    an answer that says "deleted" is never wrong, and a commit that fails leaves a file that
    can be deleted again.
    """
    erase_row(session, repository.one_file(session, subject, file_id, for_update=True))


def erase_row(session: Session, file: File) -> None:
    """The part of erasing that expiry shares with DELETE."""
    if file.blob_path is not None:
        erase(Path(file.blob_path))
    keyring.destroy(session, file.version_id)
    file.blob_path = file.blob_sha256 = None
    file.filename = ""
    file.deleted_at = now_us()
    session.execute(delete(FileError).where(FileError.file_id == file.id))
    repository.mark_version_erased(session, file.id)
    session.flush()


def content(session: Session, keys: Keyring, subject: Subject, file_id: str) -> StoredFile:
    """The normalised rows, for a steward.

    Raises:
        SealError: of the key.
        StateConflict: the file did not pass its validation, hence nothing was kept.
    """
    file = repository.one_file(session, subject, file_id)
    if file.blob_path is None:
        raise StateConflict("Nothing is kept of a file that did not pass its validation.")
    return stored_rows(session, keys, file.version_id, Path(file.blob_path))


def stored_rows(session: Session, keys: Keyring, version_id: str, path: Path) -> StoredFile:
    """A version's rows with the key that opens them."""
    secret = keys.find(session, version_id)
    key = None if secret is None else storage.rows_key(version_id, secret)
    return StoredFile(path=path, key=key)


def training_version(session: Session, subject: Subject, file_id: str) -> TrainingVersion:
    """The version a job trains on, by the file the client names as `training_file`.

    Raises:
        NotFound: no such file for this caller.
        FileInvalid: the file did not pass its validation.
        DatasetRequired: the file belongs to no dataset, hence to no population.
    """
    file = repository.one_file(session, subject, file_id)
    if file.status != "processed":
        raise FileInvalid("training_file")
    version = repository.version_of_file(session, file.id)
    if version is None:
        raise DatasetRequired
    dataset = session.get_one(Dataset, version.dataset_id)
    return TrainingVersion(
        version_id=version.id,
        dataset_id=dataset.id,
        file_id=file.id,
        population_id=dataset.population_id,
        path=version.path,
        sha256=version.sha256,
        unit=version.unit,
        records_are_unique_patients=dataset.records_are_unique_patients,
    )


def _wanted(session: Session, subject: Subject, fields: Mapping[str, str]) -> _Wanted:
    if "purpose" not in fields:
        raise FieldInvalid("purpose", "The field is required.")
    if fields["purpose"] != "fine-tune":
        raise UnsupportedOption("purpose", "Only the purpose fine-tune is offered.")
    dataset = None
    if "dataset" in fields:
        try:
            dataset = repository.one_dataset(session, subject, fields["dataset"])
        except NotFound:
            raise FieldInvalid("dataset", "The field names no dataset of yours.") from None
    return _Wanted(
        dataset=dataset,
        unit_field=_unit_field(dataset, fields.get("privacy[unit_field]")),
        expires_after_seconds=_expiry(fields),
    )


def _unit_field(dataset: Dataset | None, named: str | None) -> str | None:
    """The steward's word counts: an upload cannot turn rows of one patient into several."""
    if dataset is not None:
        if named is not None and named != dataset.unit_field:
            raise FieldInvalid("privacy.unit_field", "The dataset has another unit field.")
        return dataset.unit_field
    unit_field = UNIT_FIELD_DEFAULT if named is None else named
    check_unit_field(unit_field, "privacy.unit_field")
    return unit_field


def check_unit_field(unit_field: str, param: str) -> None:
    """Raises FieldInvalid for a name that cannot be a unit field."""
    if not 1 <= len(unit_field) <= UNIT_FIELD_LENGTH_MAX or unit_field in CONTENT_FIELDS:
        raise FieldInvalid(param, "This cannot be the name of the unit field.")


def _expiry(fields: Mapping[str, str]) -> int | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise FieldInvalid("expires_after.anchor", "Only the anchor created_at is offered.")
    number = int(seconds) if seconds and seconds.isdecimal() and len(seconds) < 10 else 0
    if not EXPIRY_SECONDS_MIN <= number <= EXPIRY_SECONDS_MAX:
        raise FieldInvalid("expires_after.seconds", "The number must be from 3600 to 2592000.")
    return number


def _store_faults(session: Session, file_id: str, outcome: Outcome) -> None:
    rows = [
        {
            "file_id": file_id,
            "seq": seq,
            "line": found.line,
            "pointer": found.fault.pointer,
            "code": found.fault.code,
            "message": found.fault.message,
        }
        for seq, found in enumerate(outcome.faults, start=1)
    ]
    if rows:
        session.execute(insert(FileError), rows)
