"""Checkpoints of a job on disk: written whole or not at all, trusted only once committed.

A checkpoint is a directory `attempt-{epoch}/step-{n}`, written under another name,
fsynced and renamed; it exists for a resume only when its row is committed under the
epoch (service.md 11). Its files are sealed under the job's key; the digest in the row is of
what they hold.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from dp_core.errors import CheckpointMismatch
from service.database import Database
from service.jobs.keys import JobFiles, checkpoint_label
from service.jobs.runtime import latest_checkpoint, record_checkpoint
from service.sealing.errors import SealError

KEPT = 2  # of one attempt: the newest and the one before


class DirectoryCheckpoints:
    """`dp_core.ports.CheckpointStore` below a job's directory."""

    def __init__(
        self, db: Database, *, job_id: str, epoch: int, job_dir: Path, files: JobFiles
    ) -> None:
        self._db, self._job_id, self._epoch, self._files = db, job_id, epoch, files
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
            self._files.write(path, content, label=checkpoint_label(self._epoch, step, name))
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
        names = [
            (str(path.relative_to(directory)), path)
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        ]
        try:
            files = {
                name: self._files.read(path, label=checkpoint_label(row.epoch, row.step, name))
                for name, path in names
            }
        except SealError:
            raise CheckpointMismatch("The newest checkpoint's files cannot be opened.") from None
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


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
