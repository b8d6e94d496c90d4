"""Validates a whole upload in one pass and writes its rows in the form training reads.

Every row is checked and every fault counted; the first 10,000 are kept. Counts and line
numbers are exact facts about patients' data: for the data owner's eyes only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from service.datasets.readers import Kind, kind_of, read
from service.datasets.rows import Fault, Row, fault, read_row
from service.sealing.files import SealedFile, StoredFile

FAULTS_KEPT_MAX = 10_000


@dataclass(frozen=True, kw_only=True)
class RowFault:
    """A fault and the line on which its row starts."""

    line: int
    fault: Fault


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a file. `blob_sha256` is there when, and only when, nothing is wrong."""

    kind: Kind
    errors_total: int
    faults: tuple[RowFault, ...] = field(repr=False)
    blob_sha256: str | None


def validate(
    source: StoredFile, target: SealedFile, *, unit_field: str | None, unpacked_bytes_max: int
) -> Outcome:
    """Reads `source`; finishes `target` if all of it is valid, else leaves no file behind.

    Raises:
        MediaTypeRefused: an archive.
        ParquetInvalid, ParquetUnavailable: of Parquet.
        DiskFull: the rows have no room.
    """
    run = _Run(target)
    try:
        kind = kind_of(source)
        rows = read(source, kind, unit_field, unpacked_bytes_max)
        for ordinal, (line, item) in enumerate(rows, start=1):
            if isinstance(item, Fault):
                run.refuse(line, [item])
                continue
            row, faults = read_row(item, unit_field=unit_field, ordinal=ordinal)
            if row is None:
                run.refuse(line, faults)
            else:
                run.keep(row)
        return run.finish(kind)
    except BaseException:
        run.writer.discard()
        raise


class _Run:
    """The state of one pass: the file being written and the faults found so far."""

    def __init__(self, target: SealedFile) -> None:
        self.writer = target
        self._faults: list[RowFault] = []
        self._errors_total = 0

    def refuse(self, line: int, faults: list[Fault]) -> None:
        self._errors_total += len(faults)
        room = FAULTS_KEPT_MAX - len(self._faults)
        self._faults.extend(RowFault(line=line, fault=found) for found in faults[:room])

    def keep(self, row: Row) -> None:
        if self._errors_total:
            return  # the file is refused already; its rows need not touch the disk
        line = json.dumps(
            {"unit": row.raw_unit, "text": row.raw_text},
            ensure_ascii=False,
            separators=(",", ":"),
        )
        self.writer.write(line.encode() + b"\n")

    def finish(self, kind: Kind) -> Outcome:
        if not self._errors_total and not self.writer.size_bytes:
            self.refuse(1, [fault("file_empty")])
        if self._errors_total:
            self.writer.discard()
        else:
            self.writer.finish()
        return Outcome(
            kind=kind,
            errors_total=self._errors_total,
            faults=tuple(self._faults),
            blob_sha256=None if self._errors_total else self.writer.sha256,
        )
