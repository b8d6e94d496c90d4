"""Seals what releases before this one stored in clear, and erases a hospital for good.

Both run on the host of the data, from `rldp data`; no route does either.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.artifacts.models import Artifact
from service.artifacts.service import ADAPTER_PREFIX, label_of
from service.database import Database
from service.datasets import storage
from service.datasets.files import erase_row
from service.datasets.models import DatasetVersion, File
from service.jobs.errors import StateConflict
from service.jobs.keys import JobFiles, checkpoint_label
from service.jobs.lifecycle import LEASED, TERMINAL, State
from service.jobs.models import Job, JobCheckpoint
from service.jobs.transitions import locked_job
from service.sealing import keyring
from service.sealing.errors import SealBroken
from service.sealing.files import SealedFile, erase
from service.sealing.keyring import Keyring
from service.sealing.models import DataKey
from service.sealing.stream import MAGIC, is_sealed
from service.settings import Settings
from service.tenants.models import SYSTEM_TENANT, Tenant

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """How many files were sealed, and what was left: jobs that run, rows that are damaged."""

    uploads: int
    job_files: int
    running: tuple[str, ...]
    damaged: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Erased:
    """What an erasure took: keys destroyed, files out of sight, folders of jobs removed."""

    keys: int
    files: int
    job_folders: int


def seal_old_files(database: Database, settings: Settings) -> Sealed:
    """Seals every upload, checkpoint and adapter in clear. Safe to stop and to repeat.

    An upload whose digest does not fit is left as it is and reported. Jobs that run now are
    left for the next time.
    """
    keys, uploads, damaged = Keyring.of(settings), 0, []
    with database.reading() as session:
        sealed = select(DataKey.owner_id).where(DataKey.owner_id == File.version_id)
        clear = session.scalars(
            select(File.id).where(File.blob_path.is_not(None), ~sealed.exists()).order_by(File.id)
        ).all()
        jobs = session.execute(select(Job.id, Job.state).order_by(Job.id)).all()
    for file_id in clear:
        try:
            uploads += _seal_upload(database, settings, keys, file_id)
        except SealBroken:
            damaged.append(file_id)
    running = tuple(job.id for job in jobs if State(job.state) in LEASED)
    done = sum(_seal_job(database, keys, job.id) for job in jobs if job.id not in running)
    return Sealed(uploads=uploads, job_files=done, running=running, damaged=tuple(damaged))


def _seal_upload(database: Database, settings: Settings, keys: Keyring, file_id: str) -> bool:
    """A sealed copy first, then the rows that name it, at last the file in clear goes.

    Cut off anywhere, the rows name a whole file; the other one is an orphan.
    """
    with database.reading() as session:
        file = session.get_one(File, file_id)
    assert file.blob_path is not None
    before, after = Path(file.blob_path), storage.blob_path(settings.files_dir, file.version_id)
    rows_key = storage.rows_key(file.version_id, keyring.new_key())
    after.unlink(missing_ok=True)  # of a run that was cut off; its key is lost
    copy = SealedFile(after, rows_key)
    try:
        _copy(before, copy)
        if copy.sha256 != file.blob_sha256:
            raise SealBroken
        with database.transaction() as session:
            locked = session.get_one(File, file_id, with_for_update=True)
            if locked.blob_path != str(before):  # erased meanwhile
                copy.discard()
                return False
            keys.keep(session, file.tenant_id, file.version_id, rows_key.secret)
            locked.blob_path = str(after)
            version = session.get(DatasetVersion, file.version_id)
            if version is not None:
                version.path = str(after)
    except BaseException:
        copy.discard()
        raise
    erase(before)
    return True


def _copy(source: Path, target: SealedFile) -> None:
    with source.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            target.write(chunk)
    target.finish()


def _seal_job(database: Database, keys: Keyring, job_id: str) -> int:
    """Each file replaced at once by its sealed copy; the key is committed before."""
    with database.reading() as session:
        clear = [(path, label) for path, label in _files_of(session, job_id) if _is_clear(path)]
    if not clear:
        return 0
    with database.transaction() as session:
        job = locked_job(session, job_id)
        if job.state in LEASED:
            return 0
        secret = keys.of_job(session, job.tenant_id, job_id)
        for path, label in clear:
            beside = Path(job.job_dir).parent / f".{uuid.uuid4().hex}.sealing"
            JobFiles(job_id=job_id, secret=secret).write(beside, path.read_bytes(), label=label)
            beside.replace(path)
    return len(clear)


def _files_of(session: Session, job_id: str) -> Iterator[tuple[Path, str]]:
    """Every file of the job that belongs sealed, with its label."""
    for artifact in session.scalars(select(Artifact).where(Artifact.job_id == job_id)):
        if artifact.name.startswith(ADAPTER_PREFIX):
            yield Path(artifact.path), label_of(artifact.name)
    for row in session.scalars(select(JobCheckpoint).where(JobCheckpoint.job_id == job_id)):
        folder = Path(row.directory)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = str(path.relative_to(folder))
                yield path, checkpoint_label(row.epoch, row.step, name)


def _is_clear(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return not is_sealed(stream.read(len(MAGIC)))


def erase_tenant(database: Database, settings: Settings, tenant_id: str) -> Erased:
    """Destroys every key of a hospital, erases its uploads and the folders of its jobs.

    Copies of its files in backups cannot be read any more, and nothing can be stored for it
    again. The ledger, certificates and accounts stay: they hold no patient's data.

    Raises:
        StateConflict: jobs of the hospital have not ended; cancel them first.
        LookupError: there is no such hospital.
    """
    with database.transaction() as session:
        if tenant_id == SYSTEM_TENANT or session.get(Tenant, tenant_id) is None:
            raise LookupError(tenant_id)
        jobs = session.scalars(select(Job).where(Job.tenant_id == tenant_id)).all()
        open_jobs = [job for job in jobs if job.state not in TERMINAL]
        if open_jobs:
            raise StateConflict(state=open_jobs[0].state, wanted="erased")
        lost = keyring.destroy_tenant(session, tenant_id)
        files = session.scalars(
            select(File)
            .where(File.tenant_id == tenant_id, File.deleted_at.is_(None))
            .with_for_update()
        ).all()
        for file in files:
            erase_row(session, file)
    removed = sum(_remove(settings, Path(job.job_dir)) for job in jobs)
    return Erased(keys=lost, files=len(files), job_folders=removed)


def _remove(settings: Settings, folder: Path) -> bool:
    """Only below the folder of jobs: the path comes from a row."""
    inside = settings.jobs_dir.resolve() in folder.resolve().parents
    if not inside or not folder.is_dir():
        return False
    shutil.rmtree(folder)
    return True
