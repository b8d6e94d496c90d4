"""Where uploaded bytes lie: files with names of ours, readable by the service alone."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
SPOOL_PREFIX = "upload-"


def prepare(files_dir: Path) -> None:
    """Makes the folder, closed to other users of the host."""
    files_dir.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)


def spool_path(files_dir: Path, file_id: str) -> Path:
    """The bytes as sent; gone as soon as they are validated."""
    return files_dir.resolve() / f"{SPOOL_PREFIX}{file_id}.part"


def blob_path(files_dir: Path, version_id: str) -> Path:
    """The normalised rows of a version."""
    return files_dir.resolve() / f"{version_id}.jsonl"


def erase(path: Path) -> None:
    """Removes a file durably; one that is gone already is fine."""
    path.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class HashingWriter:
    """Writes a new file of mode 0600 and keeps its running SHA-256 and size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._hash = hashlib.sha256()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        self._stream: IO[bytes] = os.fdopen(descriptor, "wb")

    def write(self, data: bytes) -> None:
        self._stream.write(data)
        self._hash.update(data)
        self.size_bytes += len(data)

    def finish(self) -> None:
        """Durable when it returns."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def discard(self) -> None:
        """Closes and erases; harmless after `finish`."""
        self._stream.close()
        erase(self.path)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()
