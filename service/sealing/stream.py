"""Files sealed in segments: AES-256-GCM in the STREAM construction.

STREAM is Hoang, Reyhanitabar, Rogaway and Vizár (2015), "Online Authenticated-Encryption
and its Nonce-Reuse Misuse-Resistance"; the layout follows Tink's AES-GCM-HKDF streaming.
A file is a header and segments of 64 KiB of plaintext, each with a tag of 16 bytes:

    header   magic, version, length of the key's id, the key's id, salt (32), prefix (7)
    segment  AES-256-GCM(file key, prefix | counter (4) | 1 if last else 0, segment, header)

The file key is HKDF-SHA256(data key, salt, header and label), so that no two files share
one and nonces cannot meet. The label says what the file is and is not stored: whoever
opens it must know.

======================================  =======================================
what was done to the file               what is found
======================================  =======================================
a bit changed, segments in another      the tag of a segment fails
order, left out, or of another file
cut short, or grown                     the tag of what now is last fails, at opening
put in another file's place             key's id or label differ, at opening
======================================  =======================================

Each of them raises `SealBroken`. Nothing unauthenticated is ever returned.
"""

from __future__ import annotations

import io
import os
from typing import IO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from service.sealing.errors import SealBroken

MAGIC = b"\x89RLDPSEA\x01"  # its last byte is the version of the format
KEY_BYTES = 32
SEGMENT_BYTES = 64 * 1024
TAG_BYTES = 16
_SALT_BYTES, _PREFIX_BYTES = 32, 7
_SEALED_SEGMENT = SEGMENT_BYTES + TAG_BYTES
_SEGMENTS_MAX = 2**32


def is_sealed(head: bytes) -> bool:
    """Whether a file that starts like this is a sealed one, of any version."""
    return head.startswith(MAGIC[:-1])


class _Segments:
    """The cipher of one file: what a segment is called, and the key that only it has."""

    def __init__(self, data_key: bytes, header: bytes, label: str) -> None:
        salt, self._prefix = header[-_SALT_BYTES - _PREFIX_BYTES :][:_SALT_BYTES], header[-7:]
        told = header + label.encode()
        file_key = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=told).derive(data_key)
        self._cipher, self._header = AESGCM(file_key), header

    def _nonce(self, counter: int, is_last: bool) -> bytes:
        return self._prefix + counter.to_bytes(4, "big") + bytes([is_last])

    def seal(self, counter: int, segment: bytes, *, is_last: bool) -> bytes:
        return self._cipher.encrypt(self._nonce(counter, is_last), segment, self._header)

    def open(self, counter: int, sealed: bytes, *, is_last: bool) -> bytes:
        try:
            return self._cipher.decrypt(self._nonce(counter, is_last), sealed, self._header)
        except InvalidTag:
            raise SealBroken from None


class SealingWriter:
    """Seals what is written to it into a binary stream; `finish` writes the last segment.

    Without `finish` the file reads as cut short.
    """

    def __init__(self, stream: IO[bytes], data_key: bytes, *, key_id: str, label: str) -> None:
        name = key_id.encode()
        assert len(data_key) == KEY_BYTES and len(name) < 256
        random = os.urandom(_SALT_BYTES + _PREFIX_BYTES)
        header = MAGIC + bytes([len(name)]) + name + random
        self._stream, self._segments = stream, _Segments(data_key, header, label)
        self._pending, self._counter = bytearray(), 0
        stream.write(header)

    def write(self, data: bytes) -> None:
        self._pending += data
        while len(self._pending) > SEGMENT_BYTES:  # a full one waits: it may be the last
            self._put(bytes(self._pending[:SEGMENT_BYTES]), is_last=False)
            del self._pending[:SEGMENT_BYTES]

    def finish(self) -> None:
        self._put(bytes(self._pending), is_last=True)
        self._pending.clear()

    def _put(self, segment: bytes, *, is_last: bool) -> None:
        if self._counter >= _SEGMENTS_MAX:
            raise OverflowError("the file has more segments than counters")
        self._stream.write(self._segments.seal(self._counter, segment, is_last=is_last))
        self._counter += 1


class SealedReader(io.RawIOBase):
    """Plaintext of a sealed file, readable from any place; one segment in memory.

    Takes over the stream and closes it.

    Raises:
        SealBroken: at opening or reading, see the module's table.
    """

    def __init__(self, stream: IO[bytes], data_key: bytes, *, key_id: str, label: str) -> None:
        super().__init__()
        self._stream = stream
        self._held: tuple[int, bytes] = (-1, b"")
        self._position = 0
        try:
            header = _header(stream, key_id)
            self._start = len(header)
            sealed = stream.seek(0, io.SEEK_END) - self._start
            self._count = max(1, -(-sealed // _SEALED_SEGMENT))
            self.size = sealed - self._count * TAG_BYTES
            self._segments = _Segments(data_key, header, label)
            self._segment(self._count - 1)
        except BaseException:
            self.close()
            raise

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("negative seek position")
        self._position = base + offset
        return self._position

    def readinto(self, target: object) -> int:
        view = memoryview(target).cast("B")  # type: ignore[arg-type]
        if self._position >= self.size or not len(view):
            return 0
        index, offset = divmod(self._position, SEGMENT_BYTES)
        piece = self._segment(index)[offset : offset + len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        self._stream.close()
        self._held = (-1, b"")
        super().close()

    def _segment(self, index: int) -> bytes:
        if self._held[0] != index:
            self._stream.seek(self._start + index * _SEALED_SEGMENT)
            sealed = self._stream.read(_SEALED_SEGMENT)
            is_last = index == self._count - 1
            self._held = (index, self._segments.open(index, sealed, is_last=is_last))
        return self._held[1]


def _header(stream: IO[bytes], key_id: str) -> bytes:
    start = MAGIC + bytes([len(key_id.encode())]) + key_id.encode()
    header = stream.read(len(start) + _SALT_BYTES + _PREFIX_BYTES)
    if len(header) != len(start) + _SALT_BYTES + _PREFIX_BYTES or not header.startswith(start):
        raise SealBroken
    return header
