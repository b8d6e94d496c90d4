"""HTTP answers with the plaintext of stored files, decrypted as they are sent."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import IO

from fastapi.responses import StreamingResponse

from service.sealing.files import StoredFile

CHUNK_BYTES = 256 * 1024


def file_answer(
    stored: StoredFile,
    *,
    media_type: str,
    filename: str,
    headers: Mapping[str, str] | None = None,
) -> StreamingResponse:
    """The whole file as a download of announced length; `filename` is ours, plain ASCII.

    Raises:
        SealError, OSError: before the answer begins. Damage that only shows further on ends
        it early, so that the reader sees a length that does not fit, never other bytes.
    """
    stream = stored.open()
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    told = {
        "Content-Length": str(size),
        "Content-Disposition": f'attachment; filename="{filename}"',
        **(headers or {}),
    }
    return StreamingResponse(_chunks(stream), media_type=media_type, headers=told)


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk
