"""Files on disk that only their key opens, written durably and read as plain streams."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from service.sealing.errors import DiskFull, FileMissing, KeyDestroyed, SealBroken
from service.sealing.stream import MAGIC, SealedReader, SealingWriter, is_sealed

FILE_MODE = 0o600


@dataclass(frozen=True, kw_only=True)
class FileKey:
    """A key, whose it is, and what the file is among those of its owner."""

    owner_id: str
    label: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file with the key that opens it; no key for one stored in clear by a release before.

    `may_be_clear` is for readers that check a digest of the plaintext afterwards: to all
    others a file in clear where a sealed one belongs was put there by somebody else.
    """

    path: Path
    key: FileKey | None
    may_be_clear: bool = False

    def open(self) -> IO[bytes]:
        """The plaintext, seekable; decrypted in memory, a segment at a time.

        Raises:
            FileMissing: no file stands there.
            SealBroken: not the file that was sealed for this place.
            KeyDestroyed: it is sealed, and its key is gone.
            OSError: it cannot be read.
        """
        try:
            stream = self.path.open("rb")
        except FileNotFoundError:
            raise FileMissing from None
        try:
            sealed = is_sealed(stream.read(len(MAGIC)))
            stream.seek(0)
            if sealed and self.key is None:
                raise KeyDestroyed
            if not sealed and self.key is not None and not self.may_be_clear:
                raise SealBroken
        except BaseException:
            stream.close()
            raise
        if not sealed or self.key is None:
            return stream
        key = self.key
        return io.BufferedReader(
            SealedReader(stream, key.secret, key_id=key.owner_id, label=key.label)
        )


@contextmanager
def disk_full_is_told() -> Iterator[None]:
    """Turns "no space" and "quota reached" of the block into DiskFull."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull from None
        raise


class SealedFile:
    """Writes a new sealed file of mode 0600; keeps SHA-256 and size of the plaintext.

    Raises:
        DiskFull: from the constructor, `write` and `finish`. `discard` it then.
    """

    def __init__(self, path: Path, key: FileKey) -> None:
        self.path, self.key = path, key
        self.size_bytes = 0
        self._hash = hashlib.sha256()
        with disk_full_is_told():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        self._stream: IO[bytes] = os.fdopen(descriptor, "wb")
        self._seal = SealingWriter(self._stream, key.secret, key_id=key.owner_id, label=key.label)

    def write(self, data: bytes) -> None:
        with disk_full_is_told():
            self._seal.write(data)
        self._hash.update(data)
        self.size_bytes += len(data)

    def finish(self) -> None:
        """Durable when it returns."""
        with disk_full_is_told():
            self._seal.finish()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()

    def discard(self) -> None:
        """Closes and erases; harmless after `finish`."""
        with suppress(OSError):  # a full disk takes the rest of the buffer no more than the file
            self._stream.close()
        erase(self.path)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    @property
    def stored(self) -> StoredFile:
        return StoredFile(path=self.path, key=self.key)


def write_sealed(path: Path, content: bytes, key: FileKey) -> None:
    """A whole file at once, durable when it returns; none is left behind by a failure."""
    file = SealedFile(path, key)
    try:
        file.write(content)
        file.finish()
    except BaseException:
        file.discard()
        raise


def erase(path: Path) -> None:
    """Removes a file durably; one that is gone already is fine."""
    path.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
