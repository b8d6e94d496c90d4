"""`python -m service.datasets.parquet_decoder`: one Parquet file to JSON lines, under limits.

Reads its order as one JSON object from standard input and writes an object a line: `row`,
`fault`, at last `done` or `refused`. Imported by nobody: `parquet` starts it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from service.datasets.rows import CONTENT_FIELDS, FORMS, ROW_BYTES_MAX, unit_pointer
from service.sealing.files import FileKey, StoredFile

MEMORY_BYTES_MAX = 512 * 1024 * 1024  # beside the API in a container of 1 GB
CPU_SECONDS_MAX = 300
ROW_GROUPS_MAX = 10_000
ROWS_AT_ONCE = 64  # of at most 1 MB each, or memory ends the work
THRIFT_ITEMS_MAX = 1_000_000  # in the file's own description of itself
UNREADABLE = object()


class Refused(Exception):
    """The file as a whole is not taken; the argument is the code."""


def main() -> None:
    """Entry point. Ends without a last word only when a limit stops it."""
    order = json.load(sys.stdin)
    _limit()
    try:
        _decode(order)
        _tell(kind="done")
    except Refused as refusal:
        _tell(kind="refused", code=refusal.args[0])
    except MemoryError:
        _tell(kind="refused", code="parquet_memory")
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        _tell(kind="refused", code="parquet_unreadable")
    sys.stdout.flush()
    _end()


def _end() -> NoReturn:
    os._exit(0)  # nothing to clean up, and no library's threads to wait for


def _limit() -> None:
    """Memory, processor time, no file written, no image of memory left behind."""
    import resource

    for kind, value in (
        (resource.RLIMIT_DATA, MEMORY_BYTES_MAX),
        (resource.RLIMIT_CPU, CPU_SECONDS_MAX),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _decode(order: dict[str, Any]) -> None:
    unit_field: str | None = order["unit_field"]
    key = FileKey(
        owner_id=order["owner_id"], label=order["label"], secret=bytes.fromhex(order["secret"])
    )
    with StoredFile(path=Path(order["path"]), key=key).open() as stream:
        file = pq.ParquetFile(
            stream,
            buffer_size=1024 * 1024,
            pre_buffer=False,
            thrift_container_size_limit=THRIFT_ITEMS_MAX,
        )
        names = _needed(file.schema_arrow, unit_field)
        if not _columns_fit(file.schema_arrow, names, unit_field):
            return
        _check_declared(file.metadata, names, order["unpacked_bytes_max"])
        _write_rows(file, names, order["unpacked_bytes_max"])


def _needed(schema: pa.Schema, unit_field: str | None) -> list[str]:
    wanted = CONTENT_FIELDS | ({unit_field} if unit_field else set())
    return [name for name in schema.names if name in wanted]


def _columns_fit(schema: pa.Schema, names: list[str], unit_field: str | None) -> bool:
    """Tells what is wrong with the columns; rows are read only if nothing is."""
    faults: list[tuple[str, str, str | None]] = []
    if len(set(names)) != len(names):
        faults.append(("columns_mismatch", "", "header_twice"))
    else:
        faults.extend(
            found for name in names if (found := _type_fault(name, schema.field(name).type))
        )
    if not any(set(form) <= set(names) for form in FORMS):
        faults.append(("field_missing", "/text", "form_missing"))
    if unit_field is not None and unit_field not in names:
        faults.append(("unit_missing", unit_pointer(unit_field), None))
    for code, pointer, message in faults:
        _tell(kind="fault", number=1, code=code, pointer=pointer, message=message)
    return not faults


def _type_fault(name: str, kind: pa.DataType) -> tuple[str, str, str | None] | None:
    """Columns needed are text; the unit may count, and messages are a list of two texts each."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if _is_text(kind) or pa.types.is_null(kind):
        return None if name != "messages" else ("field_type", "/messages", "messages_type")
    if name == "messages":
        return None if _is_chat(kind) else ("field_type", "/messages", "messages_type")
    if name not in CONTENT_FIELDS:
        if pa.types.is_integer(kind):
            return None
        return ("field_type", unit_pointer(name), "unit_type")
    is_nested = pa.types.is_nested(kind)
    return ("field_type", f"/{name}", "column_nested" if is_nested else None)


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_chat(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    turn = kind.value_type
    return bool(pa.types.is_struct(turn)) and all(
        _is_text(turn.field(i).type) for i in range(turn.num_fields)
    )


def _check_declared(metadata: Any, names: list[str], bytes_max: int) -> None:
    """Before a page is opened: what the file says of itself."""
    if metadata.num_row_groups > ROW_GROUPS_MAX:
        raise Refused("parquet_row_groups")
    total = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for index in range(group.num_columns):
            column = group.column(index)
            if column.path_in_schema.partition(".")[0] in names:
                total += max(0, column.total_uncompressed_size)
        if total > bytes_max:
            raise Refused("parquet_too_large")


def _write_rows(file: Any, names: list[str], bytes_max: int) -> None:
    """As read, too: repeated values are few bytes in the file and many in its rows."""
    number = written = 0
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=names, use_threads=False):
        columns = {name: _values(batch.column(name)) for name in names}
        for row in range(batch.num_rows):
            number += 1
            record = {name: columns[name][row] for name in names}
            written += _write_row(number, record)
            if written > bytes_max:
                raise Refused("parquet_too_large")


def _write_row(number: int, record: dict[str, Any]) -> int:
    if any(value is UNREADABLE for value in record.values()):
        _tell(kind="fault", number=number, code="utf8_invalid", pointer="", message=None)
        return 0
    line = json.dumps({"kind": "row", "number": number, "record": record}, ensure_ascii=False)
    encoded = line.encode()
    if len(encoded) > ROW_BYTES_MAX:
        _tell(kind="fault", number=number, code="row_too_large", pointer="", message=None)
    else:
        sys.stdout.buffer.write(encoded + b"\n")
    return len(encoded)


def _values(column: Any) -> list[Any]:
    """Python values; text that is not UTF-8 spoils its own row only."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return list(_one_by_one(column))


def _one_by_one(column: Any) -> Iterator[Any]:
    for value in column:
        try:
            yield value.as_py()
        except UnicodeDecodeError:
            yield UNREADABLE


def _tell(**said: Any) -> None:
    sys.stdout.buffer.write(json.dumps(said).encode() + b"\n")


if __name__ == "__main__":
    main()
