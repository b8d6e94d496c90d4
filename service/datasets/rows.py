"""Checks one row and brings it to `unit` and `text`; faults never hold what stood there.

========================  ==========================================================
row                       text
========================  ==========================================================
`text`                    as it is
`prompt`, `completion`    both, one after the other, a line break between
`messages`                `System: …`, `User: …`, `Assistant: …`, one after the other
========================  ==========================================================

Other fields may be there; they are neither kept nor named anywhere.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNIT_FIELD_DEFAULT = "patient_id"
UNIT_LENGTH_MAX = 256
JSON_DEPTH_MAX = 16
ROW_BYTES_MAX = 1024 * 1024
ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}
FORMS: tuple[tuple[str, ...], ...] = (("text",), ("prompt", "completion"), ("messages",))
CONTENT_FIELDS = frozenset(name for form in FORMS for name in form)

MESSAGES = {
    "json_invalid": "The line is not one JSON object.",
    "json_depth": "The object is nested deeper than 16 levels.",
    "utf8_invalid": "The row is not valid UTF-8.",
    "row_too_large": "The row is larger than 1 MB.",
    "field_missing": "The field is missing.",
    "form_missing": "A row needs text, or prompt and completion, or messages.",
    "field_empty": "The field is empty.",
    "field_type": "The field must be text.",
    "columns_mismatch": "The row has another number of cells than the header.",
    "column_nested": "The column holds lists or structures; it must hold text.",
    "header_twice": "The header names a known column twice.",
    "csv_invalid": "The row cannot be read as CSV.",
    "form_twice": "A row holds text, or prompt and completion, or messages: one of them.",
    "messages_type": "Messages must be a list of objects.",
    "role_invalid": "Role must be system, user or assistant.",
    "messages_empty": "Messages needs at least one message.",
    "no_assistant_turn": "Messages needs at least one message of the assistant.",
    "unit_missing": "The unit field is missing.",
    "unit_empty": "The unit field is empty.",
    "unit_type": "The unit must be text of at most 256 characters, or a whole number.",
    "file_empty": "The file holds no rows.",
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault: a pointer of known names, a code of the closed list, our message."""

    pointer: str
    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row as it is kept. Both fields are patients' data."""

    raw_unit: str
    raw_text: str


def fault(code: str, pointer: str = "", *, message: str | None = None) -> Fault:
    return Fault(pointer=pointer, code=code, message=MESSAGES[message or code])


def read_row(
    record: Mapping[str, Any], *, unit_field: str | None, ordinal: int
) -> tuple[Row | None, list[Fault]]:
    """The row, or every fault it has.

    Without a unit field each row is its own unit, named by its place in the file.
    """
    faults: list[Fault] = []
    text = _text_of(record, faults)
    unit = f"row-{ordinal}" if unit_field is None else _unit_of(record, unit_field, faults)
    if not faults and not _is_encodable(text, unit):
        faults.append(fault("utf8_invalid"))
    if faults:
        return None, faults
    return Row(raw_unit=unit, raw_text=text), []


def unit_pointer(unit_field: str) -> str:
    """The default field may be named; a name that the user chose may not."""
    return f"/{unit_field}" if unit_field == UNIT_FIELD_DEFAULT else "/*"


def depth_exceeded(record: Any) -> bool:
    """Whether a parsed value is nested deeper than 16 levels, without recursion."""
    level: list[Any] = [record]
    depth = 0
    while nested := [value for value in level if isinstance(value, (dict, list))]:
        depth += 1
        if depth > JSON_DEPTH_MAX:
            return True
        level = [
            inner
            for value in nested
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return False


def _unit_of(record: Mapping[str, Any], unit_field: str, faults: list[Fault]) -> str:
    value = record.get(unit_field)
    pointer = unit_pointer(unit_field)
    if value is None:
        faults.append(fault("unit_missing", pointer))
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        faults.append(fault("field_type", pointer, message="unit_type"))
        return ""
    # One patient spelled in two Unicode forms, or with a stray blank, must stay one unit.
    unit = unicodedata.normalize("NFC", str(value)).strip()
    if not unit:
        faults.append(fault("unit_empty", pointer))
    elif len(unit) > UNIT_LENGTH_MAX:
        faults.append(fault("field_type", pointer, message="unit_type"))
    return unit


def _text_of(record: Mapping[str, Any], faults: list[Fault]) -> str:
    forms = [form for form in FORMS if any(record.get(name) is not None for name in form)]
    if not forms:
        faults.append(fault("field_missing", "/text", message="form_missing"))
        return ""
    if len(forms) > 1:
        faults.append(fault("columns_mismatch", message="form_twice"))
        return ""
    if forms[0] == ("messages",):
        return _chat(record["messages"], faults)
    parts = [_field(record, name, name != "prompt", faults) for name in forms[0]]
    return "\n".join(part for part in parts if part)


def _field(record: Mapping[str, Any], name: str, required: bool, faults: list[Fault]) -> str:
    value = record.get(name)
    if value is None:
        faults.append(fault("field_missing", f"/{name}"))
        return ""
    if not isinstance(value, str):
        faults.append(fault("field_type", f"/{name}"))
        return ""
    if required and not value.strip():
        faults.append(fault("field_missing", f"/{name}", message="field_empty"))
    return value


def _chat(messages: Any, faults: list[Fault]) -> str:
    if not isinstance(messages, list):
        faults.append(fault("field_type", "/messages", message="messages_type"))
        return ""
    if not messages:
        faults.append(fault("messages_empty", "/messages"))
        return ""
    before = len(faults)
    turns = [_turn(message, f"/messages/{i}", faults) for i, message in enumerate(messages)]
    if len(faults) == before and not any(role == "assistant" for role, _ in turns):
        faults.append(fault("no_assistant_turn", "/messages"))
    return "\n".join(f"{ROLES.get(role, '')}: {content}" for role, content in turns)


def _turn(message: Any, pointer: str, faults: list[Fault]) -> tuple[str, str]:
    if not isinstance(message, dict):
        faults.append(fault("field_type", pointer, message="messages_type"))
        return "", ""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        faults.append(fault("role_invalid", f"{pointer}/role"))
        role = ""
    if content is None:
        faults.append(fault("field_missing", f"{pointer}/content"))
    elif not isinstance(content, str):
        faults.append(fault("field_type", f"{pointer}/content"))
    return role, content if isinstance(content, str) else ""


def _is_encodable(*texts: str) -> bool:
    """JSON can smuggle in half a surrogate pair, which no tokenizer takes."""
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        return False
    return True
