"""Turns a file of real records into the upload format, one JSON object a line.

The format is found by content, never by name; gzip is opened on the way:

====================================  ====================  ==========================
content                               unit                  rows taken
====================================  ====================  ==========================
JSONL `patient_id`, `text`            patient               all
JSONL of Diabetes-130 notes           patient               split train and valid
CSV of Diabetes-130 encounters        patient (repeats)     all, rendered to notes
JSONL of MTS-Dialog sections          record, by statement  all
====================================  ====================  ==========================

Rows stream; memory does not grow with the file, apart from the set of patient ids.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.demo import diabetes130

GZIP_MAGIC = b"\x1f\x8b"


class RecordsError(Exception):
    """The file cannot be used; the text says where and what to do, never what it holds."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A recognised format and what its records say about patients."""

    name: str
    each_record_is_another_patient: bool  # the unit rests on a statement, not on a field
    patients_published: int | None  # a lower bound anyone may know; None: not published
    prompt: str  # public start of a sentence, for the words before and after


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Outcome of a conversion. `patients` and `notes` are exact, hence private."""

    source: Source
    patients: int
    notes: int


OWN = Source(
    name="JSON lines with patient_id and text",
    each_record_is_another_patient=False,
    patients_published=None,
    prompt="The patient",
)
DIABETES_NOTES = Source(
    name="Diabetes-130 notes (one note a patient, splits train and valid)",
    each_record_is_another_patient=False,
    patients_published=32_000,
    prompt="Patient: white woman, 70 to 80 years old. Admitted",
)
DIABETES_TABLE = Source(
    name="Diabetes-130 encounters (CSV, rendered to notes, patients repeat)",
    each_record_is_another_patient=False,
    patients_published=35_000,
    prompt="A woman of 70 to 80 years was admitted",
)
MTS_DIALOG = Source(
    name="MTS-Dialog sections (stated: each record is another patient)",
    each_record_is_another_patient=True,
    patients_published=1_300,
    prompt="The patient is a 62-year-old woman who",
)

Row = dict[str, str]


def recognise(path: Path) -> Source:
    """Which format a file has.

    Raises:
        RecordsError: missing, empty, not UTF-8, or no known format.
    """
    with _opened(path) as lines:
        first = next((line for line in lines if line.strip()), "")
    if not first:
        raise RecordsError(f"{path.name} holds no records.")
    if first.lstrip().startswith("{"):
        return _recognise_json(_parsed(first, 1))
    if set(next(csv.reader([first]))) >= diabetes130.COLUMNS:
        return DIABETES_TABLE
    raise RecordsError(
        f"{path.name} is neither JSON lines nor the Diabetes-130 table. Give one JSON object "
        'a line, such as {"patient_id": "p1", "text": "..."}.'
    )


def _recognise_json(row: Mapping[str, Any]) -> Source:
    keys = set(row)
    if keys >= {"patient_id", "text"}:
        return OWN
    if keys >= {"id", "patient", "split", "text"}:
        return DIABETES_NOTES
    if keys >= {"id", "section", "text"}:
        return MTS_DIALOG
    raise RecordsError(
        "The first record lacks the fields of any known format. Each line needs patient_id "
        "(whose record it is) and text; without an id the patient cannot be protected."
    )


def records(path: Path) -> Iterator[Row]:
    """`{"patient_id", "text"}` of every usable row, in file order.

    Raises:
        RecordsError: a row cannot be read; names its line, nothing of its content.
    """
    source = recognise(path)
    with _opened(path) as lines:
        if source is DIABETES_TABLE:
            yield from _table_rows(lines)
            return
        for number, line in enumerate(lines, start=1):
            if line.strip():
                row = _READERS[source.name](_parsed(line, number), number)
                if row is not None:
                    yield row


def write_upload(path: Path, out: Path) -> Converted:
    """Writes the upload file and counts its patients.

    Raises:
        RecordsError: as `records`, or nothing is left to train on.
    """
    patients: set[str] = set()
    notes = 0
    with out.open("w", encoding="utf-8") as target:
        for row in records(path):
            target.write(json.dumps(row, ensure_ascii=True) + "\n")
            patients.add(row["patient_id"])
            notes += 1
    if not notes:
        raise RecordsError(f"{path.name} has no row of the splits that may be used.")
    return Converted(source=recognise(path), patients=len(patients), notes=notes)


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[str]]:
    if not path.is_file():
        raise RecordsError(f"There is no file {path}. Give the path of a file with records.")
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == GZIP_MAGIC
    try:
        with gzip.open(path, "rb") if is_gzip else path.open("rb") as stream:
            yield io.TextIOWrapper(stream, encoding="utf-8", newline="")
    except UnicodeDecodeError:
        raise RecordsError(f"{path.name} is not UTF-8 text.") from None
    except (gzip.BadGzipFile, EOFError):
        raise RecordsError(f"{path.name} is a damaged gzip file.") from None


def _parsed(line: str, number: int) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        raise RecordsError(f"Line {number} is not JSON.") from None
    if not isinstance(value, dict):
        raise RecordsError(f"Line {number} is not a JSON object.")
    return value


def _text(row: Mapping[str, Any], field: str, number: int) -> str:
    value = row.get(field)
    if isinstance(value, int) and not isinstance(value, bool) and field != "text":
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise RecordsError(f"Line {number}: the field {field} is missing, empty or not text.")
    return value


def _own_row(row: Mapping[str, Any], number: int) -> Row | None:
    return {
        "patient_id": _text(row, "patient_id", number),
        "text": _text(row, "text", number),
    }


def _diabetes_row(row: Mapping[str, Any], number: int) -> Row | None:
    if row.get("split") not in ("train", "valid"):
        return None
    return {"patient_id": _text(row, "patient", number), "text": _text(row, "text", number)}


def _mts_row(row: Mapping[str, Any], number: int) -> Row | None:
    return {"patient_id": _text(row, "id", number), "text": _text(row, "text", number)}


def _table_rows(lines: Iterator[str]) -> Iterator[Row]:
    for number, row in enumerate(csv.DictReader(lines), start=2):
        if any(row.get(column) is None for column in diabetes130.COLUMNS):
            raise RecordsError(f"Line {number} has fewer columns than the header.")
        yield {"patient_id": row["patient_nbr"], "text": diabetes130.render(row)}


_READERS: Mapping[str, Callable[[Mapping[str, Any], int], Row | None]] = {
    OWN.name: _own_row,
    DIABETES_NOTES.name: _diabetes_row,
    MTS_DIALOG.name: _mts_row,
}
