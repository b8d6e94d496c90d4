"""Checkpoints of a job on disk: written whole or not at all, trusted only once committed.

A checkpoint is a directory `attempt-{epoch}/step-{n}`, written under another name,
fsynced and renamed; it exists for a resume only when its row is committed under the
epoch (service.md 11).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from dp_core.errors import CheckpointMismatch
from service.database import Database
from service.jobs.runtime import latest_checkpoint, record_checkpoint

KEPT = 2  # of one attempt: the newest and the one before


class DirectoryCheckpoints:
    """`dp_core.ports.CheckpointStore` below a job's directory."""

    def __init__(self, db: Database, *, job_id: str, epoch: int, job_dir: Path) -> None:
        self._db, self._job_id, self._epoch = db, job_id, epoch
        self._root = job_dir / f"attempt-{epoch}"
        self._written: list[Path] = []

    def save(self, *, step: int, chunk: int, files: Mapping[str, bytes]) -> None:
        """Durable when it returns.

        Raises:
            FencedOut: the attempt lost the job; the row was not written.
        """
        target = self._root / f"step-{step}"
        partial = self._root / f".step-{step}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for name, content in files.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write_durably(path, content)
        partial.rename(target)
        _sync_directory(self._root)
        record_checkpoint(
            self._db,
            self._job_id,
            self._epoch,
            step=step,
            window=chunk,
            directory=str(target),
            sha256=digest_of(files),
        )
        self._written.append(target)
        for old in self._written[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        del self._written[:-KEPT]

    def load_latest(self) -> Mapping[str, bytes] | None:
        """The newest committed checkpoint of any attempt; None before the first.

        Raises:
            CheckpointMismatch: its files are missing or were changed.
        """
        row = latest_checkpoint(self._db, self._job_id)
        if row is None:
            return None
        directory = Path(row.directory)
        files = {
            str(path.relative_to(directory)): path.read_bytes()
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
        if digest_of(files) != row.sha256:
            raise CheckpointMismatch("The newest checkpoint's files do not match its row.")
        return files


def digest_of(files: Mapping[str, bytes]) -> str:
    """One SHA-256 over names and contents, independent of order."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(hashlib.sha256(name.encode()).digest())
        total.update(hashlib.sha256(files[name]).digest())
    return total.hexdigest()


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
