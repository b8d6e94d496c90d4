"""Rows of a Parquet file, decoded in a process of its own under limits.

Parquet is read by native code, and a few bytes of it can ask for gigabytes. So the
decoder (`parquet_decoder`) runs apart: memory and processor time are capped, it may write
no file, and whatever kills it costs the upload and nothing else. The key of the sealed
upload goes to it by a pipe, and rows come back by another: neither touches a disk.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from service.datasets.rows import Fault, fault
from service.errors import ServiceError
from service.sealing.files import StoredFile

MODULE = "pyarrow"
DECODER = "service.datasets.parquet_decoder"
REFUSALS = {
    "parquet_unreadable": "The Parquet file is damaged or uses a feature that is not read here. "
    "Write it anew, without encryption, or send JSON lines.",
    "parquet_too_large": "Unpacked, the columns needed are larger than an upload may be. Split "
    "the file.",
    "parquet_row_groups": "The Parquet file has more than 10000 row groups. Write fewer, larger "
    "ones.",
    "parquet_memory": "Decoding the Parquet file takes more memory or time than allowed. Write "
    "smaller row groups and pages, or send JSON lines.",
}


class ParquetUnavailable(ServiceError):
    """This installation has no decoder."""

    def __init__(self) -> None:
        super().__init__(
            415,
            "media_type_refused",
            "This installation reads no Parquet. Send JSON lines or CSV, or ask an administrator "
            "to install pyarrow (pip install 'rldp[parquet]').",
        )


class ParquetInvalid(ServiceError):
    """The file as a whole cannot be read; the reason is one of a closed list."""

    def __init__(self, code: str) -> None:
        message = REFUSALS[code]
        told = {"pointer": "/file", "code": code, "message": message}
        super().__init__(422, "file_invalid", message, param="file", extra={"errors": [told]})


def read_parquet(
    source: StoredFile, unit_field: str | None, unpacked_bytes_max: int
) -> Iterator[tuple[int, Mapping[str, Any] | Fault]]:
    """Every row with its number from 1.

    Raises:
        ParquetUnavailable: pyarrow is not installed.
        ParquetInvalid: damaged, too large when unpacked, or too much for the decoder.
    """
    if importlib.util.find_spec(MODULE) is None:
        raise ParquetUnavailable
    assert source.key is not None
    order = {
        "path": str(source.path),
        "owner_id": source.key.owner_id,
        "label": source.key.label,
        "secret": source.key.secret.hex(),
        "unit_field": unit_field,
        "unpacked_bytes_max": unpacked_bytes_max,
    }
    with subprocess.Popen(
        [sys.executable, "-m", DECODER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a library's words may quote the file
    ) as process:
        try:
            yield from _rows(process, json.dumps(order).encode())
        finally:
            process.kill()


def _rows(
    process: subprocess.Popen[bytes], order: bytes
) -> Iterator[tuple[int, Mapping[str, Any] | Fault]]:
    """Until the decoder says that it is done; one that falls silent was stopped by a limit."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(order)
        process.stdin.close()
    except BrokenPipeError:
        raise ParquetInvalid("parquet_memory") from None
    for line in process.stdout:
        if not line.endswith(b"\n"):
            break
        told = json.loads(line)
        if told["kind"] == "row":
            yield told["number"], told["record"]
        elif told["kind"] == "fault":
            yield told["number"], fault(told["code"], told["pointer"], message=told["message"])
        elif told["kind"] == "refused":
            raise ParquetInvalid(told["code"])
        else:
            return
    raise ParquetInvalid("parquet_memory")
