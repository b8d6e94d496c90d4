"""Lists in one envelope, paged by the key (created_at, id) of the last row, never by offset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Select, tuple_
from sqlalchemy.orm import Session

from service.errors import CursorInvalid

LIMIT_DEFAULT = 20


class ListQuery(BaseModel):
    """`?after=<last id>&limit=`; an unknown parameter is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(default=None, max_length=64)
    limit: int = Field(default=LIMIT_DEFAULT, ge=1, le=100)


def envelope(data: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """The list object of service.md 2.4; every item has an `id`."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def page(
    session: Session,
    table: Any,
    visible: Select[Any],
    *,
    after: str | None,
    limit: int,
    show: Callable[[Any], dict[str, Any]],
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """One page of the rows that the caller may see.

    Raises:
        CursorInvalid: `after` names none of them.
    """
    key = tuple_(table.created_at, table.id)
    newest_first = order == "desc"
    columns = (table.created_at, table.id)
    statement = visible.order_by(*(c.desc() if newest_first else c.asc() for c in columns))
    if after is not None:
        last = session.scalar(visible.where(table.id == after))
        if last is None:
            raise CursorInvalid
        border = tuple_(last.created_at, last.id)
        statement = statement.where(key < border if newest_first else key > border)
    rows = list(session.scalars(statement.limit(limit + 1)))
    return envelope([show(row) for row in rows[:limit]], has_more=len(rows) > limit)
