"""Engine and transactions: the same rules on SQLite and PostgreSQL.

SQLite: WAL, `synchronous=FULL`, every writing transaction opens with `BEGIN
IMMEDIATE`, so that a write never fails half-way with "database is locked".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, MetaData, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Session

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Declarative base of every table. Times are stored as integer Unix microseconds."""

    metadata = MetaData(naming_convention=NAMING)


def now_us() -> int:
    """The current time in Unix microseconds, UTC."""
    return int(datetime.now(UTC).timestamp() * 1_000_000)


class Database:
    """Hands out sessions; one `with` block is one transaction, committed at its end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _make_engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A writing transaction. Commits on success, rolls back on any exception."""
        with Session(self.engine, expire_on_commit=False) as session:
            session.connection(execution_options={"rldp_begin": "immediate"})
            with _committing(session):
                yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A read-only look; never commits. What was loaded stays readable after it."""
        with Session(self.engine, expire_on_commit=False) as session:
            try:
                yield session
            finally:
                session.expunge_all()  # a rollback would expire the rows
                session.rollback()

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A read-only look whose statements all see the database as of one moment."""
        with self.reading() as session:
            if not self.is_sqlite:  # SQLite's BEGIN gives a snapshot already
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            yield session

    def dispose(self) -> None:
        self.engine.dispose()


@contextmanager
def _committing(session: Session) -> Iterator[None]:
    try:
        yield
    except BaseException:
        session.rollback()
        raise
    session.commit()


def _make_engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        # hide_parameters: an exception text must never quote a row.
        return create_engine(
            url, pool_pre_ping=True, pool_size=10, max_overflow=10, hide_parameters=True
        )
    engine = create_engine(
        url, connect_args={"timeout": 15, "check_same_thread": False}, hide_parameters=True
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we emit BEGIN ourselves
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "busy_timeout=15000",
            "secure_delete=ON",  # what is erased is overwritten, not only unlinked
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:
        immediate = connection.get_execution_options().get("rldp_begin") == "immediate"
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine
