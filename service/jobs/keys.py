"""What an attempt may open and seal: its version's rows, and the files of its job."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from service.database import Database
from service.datasets.files import stored_rows
from service.datasets.models import DatasetVersion
from service.jobs.leases import require_mine
from service.jobs.transitions import clock_us, locked_job
from service.sealing.files import FileKey, StoredFile, write_sealed
from service.sealing.keyring import Keyring


def checkpoint_label(epoch: int, step: int, name: str) -> str:
    """What a file is in the words of its seal: none passes for one of another checkpoint."""
    return f"checkpoint/{epoch}/{step}/{name}"


@dataclass(frozen=True, kw_only=True)
class JobFiles:
    """Seals the files that a job leaves, each under its name, and opens them."""

    job_id: str
    secret: bytes = field(repr=False)

    def write(self, path: Path, content: bytes, *, label: str) -> None:
        write_sealed(path, content, self._key(label))

    def read(self, path: Path, *, label: str) -> bytes:
        """The plaintext; also of a file that a release before stored in clear.

        Whoever reads must compare a digest. Raises SealError, OSError.
        """
        with StoredFile(path=path, key=self._key(label), may_be_clear=True).open() as stream:
            return stream.read()

    def _key(self, label: str) -> FileKey:
        return FileKey(owner_id=self.job_id, label=label, secret=self.secret)


@dataclass(frozen=True, kw_only=True)
class AttemptKeys:
    """The version's rows and the job's own files."""

    rows: StoredFile = field(repr=False)
    files: JobFiles


def load_keys(db: Database, keyring: Keyring, job_id: str, epoch: int) -> AttemptKeys:
    """The keys of a claimed job; its first attempt makes the key of its files.

    Raises:
        FencedOut: the attempt no longer owns the job.
        KeyUnavailable: this worker has not the deployment's data key.
        KeyDestroyed: the hospital's data were erased.
    """
    with db.transaction() as session:
        job = locked_job(session, job_id)
        require_mine(job, epoch, clock_us(session))
        version = session.get_one(DatasetVersion, job.dataset_version_id)
        rows = stored_rows(session, keyring, version.id, Path(version.path))
        secret = keyring.of_job(session, job.tenant_id, job_id)
    return AttemptKeys(rows=rows, files=JobFiles(job_id=job_id, secret=secret))
