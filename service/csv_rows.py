"""Lists as CSV: one column per field, nested fields joined by a dot, lists as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Response

MEDIA_TYPE = "text/csv"


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The row's fields in order; None is an empty cell."""
    cells: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            cells |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            cells[prefix + name] = json.dumps(value, sort_keys=True)
        elif isinstance(value, bool):
            cells[prefix + name] = str(value).lower()
        else:
            cells[prefix + name] = "" if value is None else str(value)
    return cells


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A header of all columns that occur, then the rows; empty for no rows."""
    cells = [flat(row) for row in rows]
    columns = list(dict.fromkeys(name for row in cells for name in row))
    if not columns:
        return ""
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(cells)
    return text.getvalue()


def csv_answer(listed: Mapping[str, Any]) -> Response:
    """A page in CSV. `x-next-after` holds the cursor of the next one, if there is one."""
    headers = {}
    if listed["has_more"]:
        headers["x-next-after"] = str(listed.get("next_after", listed["last_id"]))
    return Response(csv_text(listed["data"]), media_type=MEDIA_TYPE, headers=headers)
