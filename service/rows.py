"""Writes of one moment in as few statements as the database takes.

A statement costs more on its way than its rows do in the database. PostgreSQL takes several
inserts as parts of one statement: they see and lock what they would one after another, and
its foreign keys are checked when all of them are done. SQLite, a call and no way, takes them
one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Dialect, Insert, Update, insert
from sqlalchemy.orm import Session

Rows = tuple[Any, Sequence[Mapping[str, Any]]]  # a mapped class, and values of its columns


def add(session: Session, *parts: Rows) -> None:
    """Inserts rows past the identity map. Each names the columns that its first one names."""
    filled = [part for part in parts if part[1]]
    if len(filled) == 1 or not _joins(session):
        for table, rows in filled:
            _add_one_by_one(session, table, rows)
    elif filled:
        *first, last = filled
        _execute(session, first, _insert_sql(last[0], _shape(last), len(first)), _values(filled))


def add_and_update(session: Session, parts: Sequence[Rows], change: Update, to: Any) -> int:
    """Inserts as `add`, then applies the update with its parameters; how many rows it changed."""
    filled = [part for part in parts if part[1]]
    if not _joins(session):
        add(session, *filled)
        return session.connection().execute(change, to).rowcount
    sql = _update_sql(change, session.get_bind().dialect)
    return _execute(session, filled, sql, _values(filled) | to)


def _joins(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"


def _add_one_by_one(session: Session, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    values = [dict(row) for row in rows]
    session.connection().execute(_insert_into(table), values if len(rows) > 1 else values[0])


@lru_cache(maxsize=64)
def _insert_into(table: Any) -> Insert:
    return insert(table.__table__).inline()


def _execute(session: Session, parts: Sequence[Rows], last: str, values: dict[str, Any]) -> int:
    written = ", ".join(
        f"w{number} AS ({_insert_sql(part[0], _shape(part), number)})"
        for number, part in enumerate(parts)
    )
    whole = f"WITH {written} {last}" if written else last
    return session.connection().exec_driver_sql(whole, values).rowcount


def _shape(part: Rows) -> tuple[int, tuple[str, ...]]:
    """How many rows, of which columns."""
    return len(part[1]), tuple(part[1][0])


@lru_cache(maxsize=256)
def _insert_sql(table: Any, shape: tuple[int, tuple[str, ...]], number: int) -> str:
    count, names = shape
    rows = (
        ", ".join(f"%({_parameter(number, row, name)})s" for name in names) for row in range(count)
    )
    listed = ", ".join(f"({row})" for row in rows)
    return f"INSERT INTO {table.__tablename__} ({', '.join(names)}) VALUES {listed}"


def _values(parts: Sequence[Rows]) -> dict[str, Any]:
    return {
        _parameter(number, place, name): value
        for number, (_, rows) in enumerate(parts)
        for place, row in enumerate(rows)
        for name, value in row.items()
    }


def _parameter(part: int, row: int, name: str) -> str:
    return f"w{part}_{row}_{name}"


@lru_cache(maxsize=16)
def _update_sql(change: Update, dialect: Dialect) -> str:
    return str(change.compile(dialect=dialect))
