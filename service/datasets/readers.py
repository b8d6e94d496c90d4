"""Reads JSON lines, CSV and Parquet row by row; memory does not grow with the file.

Every row comes as its line number (1-based, where it starts; of Parquet the row's number)
with either a record or the fault that keeps it from being one.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from typing import IO, Any, Literal

from service.datasets.parquet import read_parquet
from service.datasets.rows import (
    CONTENT_FIELDS,
    FORMS,
    ROW_BYTES_MAX,
    Fault,
    depth_exceeded,
    fault,
    unit_pointer,
)
from service.errors import MediaTypeRefused
from service.sealing.files import StoredFile

Kind = Literal["jsonl", "csv", "parquet"]
Item = tuple[int, Mapping[str, Any] | Fault]

BOM = b"\xef\xbb\xbf"
DELIMITERS = (",", ";", "\t")
PARQUET_MAGIC = b"PAR1"
FOREIGN_MAGIC = (b"PK\x03\x04", b"\x1f\x8b", b"PARE", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")

csv.field_size_limit(ROW_BYTES_MAX)


def kind_of(source: StoredFile) -> Kind:
    """JSON lines, CSV or Parquet, found by content; the name plays no part.

    Raises:
        MediaTypeRefused: an archive, or a table that is encrypted already.
    """
    with source.open() as stream:
        head = stream.read(4096)
    if head.startswith(FOREIGN_MAGIC):
        raise MediaTypeRefused("JSON lines, CSV or Parquet, packed into nothing else")
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    return "jsonl" if head.removeprefix(BOM).lstrip()[:1] in (b"{", b"[") else "csv"


def read(
    source: StoredFile, kind: Kind, unit_field: str | None, unpacked_bytes_max: int
) -> Iterator[Item]:
    """Every row of the file, in order. The limit is for kinds that are packed in themselves.

    Raises:
        ParquetInvalid, ParquetUnavailable: of Parquet.
    """
    if kind == "parquet":
        yield from read_parquet(source, unit_field, unpacked_bytes_max)
        return
    with source.open() as stream:
        if stream.read(len(BOM)) != BOM:
            stream.seek(0)
        yield from _json_lines(stream) if kind == "jsonl" else _csv_rows(stream, unit_field)


class _Lines:
    """Physical lines with their number; a line over the limit is skipped and reported."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.number = 0

    def next_line(self) -> bytes | None:
        """The next line; `b""` at the end of the file; None for one that is too large."""
        line = self._stream.readline(ROW_BYTES_MAX + 1)
        if line:
            self.number += 1
        if len(line) <= ROW_BYTES_MAX:
            return line
        while line and not line.endswith(b"\n"):
            line = self._stream.readline(ROW_BYTES_MAX)
        return None


def _json_lines(stream: IO[bytes]) -> Iterator[Item]:
    lines = _Lines(stream)
    while (line := lines.next_line()) != b"":
        if line is None:
            yield lines.number, fault("row_too_large")
        elif line.strip():
            yield lines.number, _parsed(line)


def _parsed(line: bytes) -> Mapping[str, Any] | Fault:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return fault("utf8_invalid")
    try:
        record = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except ValueError:
        return fault("json_invalid")
    except RecursionError:
        return fault("json_invalid", message="json_depth")
    if not isinstance(record, dict):
        return fault("json_invalid")
    return fault("json_invalid", message="json_depth") if depth_exceeded(record) else record


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A key given twice could give a row two patients."""
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key stands twice")
    return record


def _no_constant(_name: str) -> Any:
    raise ValueError("NaN and infinity are not JSON")


class _RowTooLarge(Exception):
    """The cells of one CSV row, over several lines, pass the limit."""


class _CsvLines:
    """Feeds the csv module; notes where a row starts and whether its bytes are UTF-8."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._lines = _Lines(stream)
        self.start_row()

    def start_row(self) -> None:
        self.first_line = self._lines.number + 1
        self.is_utf8 = True
        self._bytes = 0

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line = self._lines.next_line()
        if line == b"":
            raise StopIteration
        self._bytes += ROW_BYTES_MAX + 1 if line is None else len(line)
        if line is None or self._bytes > ROW_BYTES_MAX:
            raise _RowTooLarge
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.is_utf8 = False
            return line.decode(errors="replace")


def _csv_rows(stream: IO[bytes], unit_field: str | None) -> Iterator[Item]:
    position = stream.tell()
    delimiter = _delimiter(stream.readline(ROW_BYTES_MAX))
    stream.seek(position)
    lines = _CsvLines(stream)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while (cells := _next_cells(reader, lines)) is not None:
        at = lines.first_line
        lines.start_row()
        if isinstance(cells, Fault):
            yield at, cells
            if header is None:
                return
        elif not cells:
            continue  # a blank line
        elif header is None:
            header = [name.strip() for name in cells]
            faults = _header_faults(header, unit_field)
            yield from ((at, found) for found in faults)
            if faults:
                return
        elif len(cells) != len(header):
            yield at, fault("columns_mismatch")
        else:
            yield at, dict(zip(header, cells, strict=True))


def _next_cells(reader: Any, lines: _CsvLines) -> list[str] | Fault | None:
    """One row; None at the end. The csv module starts afresh after a fault."""
    try:
        cells: list[str] = next(reader)
    except StopIteration:
        return None
    except _RowTooLarge:
        return fault("row_too_large")
    except csv.Error:
        return fault("columns_mismatch", message="csv_invalid")
    return cells if lines.is_utf8 else fault("utf8_invalid")


def _delimiter(header: bytes) -> str:
    """The separator under which the header shows the most columns."""
    text = header.decode(errors="replace")
    return max(DELIMITERS, key=text.count)


def _header_faults(header: list[str], unit_field: str | None) -> list[Fault]:
    known = CONTENT_FIELDS | ({unit_field} if unit_field else set())
    faults: list[Fault] = []
    if any(header.count(name) > 1 for name in known):
        faults.append(fault("columns_mismatch", message="header_twice"))
    forms = [form for form in FORMS if form != ("messages",) and set(form) <= set(header)]
    if not forms:
        faults.append(fault("field_missing", "/text", message="form_missing"))
    if unit_field is not None and unit_field not in header:
        faults.append(fault("unit_missing", unit_pointer(unit_field)))
    return faults
