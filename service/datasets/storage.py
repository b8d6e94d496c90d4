"""Where uploaded bytes lie: sealed files with names of ours, readable by the service alone."""

from __future__ import annotations

from pathlib import Path

from service.sealing.files import FileKey, SealedFile
from service.sealing.keyring import new_key

DIRECTORY_MODE = 0o700
SPOOL_PREFIX = "upload-"
SPOOL, ROWS = "spool", "rows"  # what a file is, in the words of its seal


def prepare(files_dir: Path) -> None:
    """Makes the folder, closed to other users of the host."""
    files_dir.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)


def new_spool(files_dir: Path, file_id: str) -> SealedFile:
    """For the bytes as sent; gone as soon as they are validated.

    Its key is kept in memory alone: what a crash leaves behind, nobody can read.
    """
    path = files_dir.resolve() / f"{SPOOL_PREFIX}{file_id}.part"
    return SealedFile(path, FileKey(owner_id=file_id, label=SPOOL, secret=new_key()))


def blob_path(files_dir: Path, version_id: str) -> Path:
    """The normalised rows of a version."""
    return files_dir.resolve() / f"{version_id}.sealed"


def rows_key(version_id: str, secret: bytes) -> FileKey:
    """What seals the normalised rows of a version."""
    return FileKey(owner_id=version_id, label=ROWS, secret=secret)
