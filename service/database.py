"""Engine and transactions: the same rules on SQLite and PostgreSQL.

SQLite: WAL, `synchronous=FULL`, every writing transaction opens with `BEGIN
IMMEDIATE`, so that a write never fails half-way with "database is locked".
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, text
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import QueuePool

from service import row_fence

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


# A request may hold two connections (its own, and the access log's); the rest is for
# the short looks that no request keeps open, such as the caller's key. What a busy process
# uses all the time stays open: to open a connection costs more than to answer a request.
REQUESTS_AT_ONCE = 8
KEYS_AT_ONCE = 4
POOL = {"pool_size": REQUESTS_AT_ONCE + KEYS_AT_ONCE, "max_overflow": REQUESTS_AT_ONCE}
# A connection that was in use so recently is not tried before it is used again.
FRESH_SECONDS = 0.25
# What a reading session may send: no statement that changes rows or holds locks.
READS = re.compile(r"\s*(?:SELECT|SHOW)\b(?!.*\bFOR (?:NO KEY )?(?:UPDATE|SHARE)\b)", re.DOTALL)


class Base(DeclarativeBase):
    """Declarative base of every table. Times are stored as integer Unix microseconds."""

    metadata = MetaData(naming_convention=NAMING)


def now_us() -> int:
    """The current time in Unix microseconds, UTC."""
    return int(datetime.now(UTC).timestamp() * 1_000_000)


def clock_us(session: Session) -> int:
    """The database's clock in Unix microseconds: the only one that leases are judged by.

    On SQLite database and callers share one host, so the host's clock is the same one.
    """
    if session.get_bind().dialect.name == "sqlite":
        return now_us()
    statement = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"
    return int(session.execute(text(statement)).scalar_one())


class Database:
    """Hands out sessions; one `with` block is one transaction, committed at its end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _make_engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        # both over the one pool
        self.writer = self.engine.execution_options(rldp_begin="immediate")
        self.reader = self.engine if self.is_sqlite else _reader_of(self.engine)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A writing transaction. Commits on success, rolls back on any exception."""
        with Session(self.writer, expire_on_commit=False) as session:
            session.connection()
            with _committing(session):
                yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A read-only look; never commits. What was loaded stays readable after it."""
        with Session(self.reader, expire_on_commit=False) as session:
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
        engine = create_engine(url, hide_parameters=True, **POOL)
        _ping_idle_connections(engine)
        event.listen(engine, "begin", _begin_fenced)
        return engine
    engine = create_engine(
        url,
        connect_args={"timeout": 15, "check_same_thread": False},
        hide_parameters=True,
        poolclass=QueuePool,
        **POOL,
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


def _begin_fenced(connection: Connection) -> None:
    """Opens a transaction on PostgreSQL and says whose it is, in one message to the server.

    Where no transaction is wanted, the connection remembers whose it was last, and is told
    only when that changes.
    """
    driver: Any = connection.connection.dbapi_connection
    level = connection.get_execution_options().get("isolation_level")
    if level == "AUTOCOMMIT":
        _tell_connection(connection, driver)
    elif level is not None:  # the driver begins, at this level
        driver.execute(_set_local(), prepare=False)
    else:
        driver.autocommit = True  # so that the driver sends no BEGIN of its own
        driver.execute(f"BEGIN; {_set_local()}", prepare=False)


def _set_local() -> str:
    held = row_fence.held() or row_fence.NOBODY  # telling costs nothing here
    return f"SET LOCAL {row_fence.SETTING} = '{held}'"


def _tell_connection(connection: Connection, driver: Any) -> None:
    held, info = row_fence.held(), connection.connection.info
    if held not in (row_fence.UNTOLD, info.get("row_fence")):
        driver.execute(f"SET {row_fence.SETTING} = '{held}'", prepare=False)
        info["row_fence"] = held


def fence(session: Session) -> None:
    """Tells a session that began before its caller was known whose it is now."""
    connection = session.connection()
    if connection.dialect.name != "postgresql":
        return
    driver: Any = connection.connection.dbapi_connection
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        _tell_connection(connection, driver)
    else:
        driver.execute(_set_local(), prepare=False)


def _reader_of(engine: Engine) -> Engine:
    """Statements that read, each by itself: PostgreSQL's own level would show no more.

    Without BEGIN and ROLLBACK around them, and refused if they do anything but read.
    """
    reader = engine.execution_options(isolation_level="AUTOCOMMIT")

    @event.listens_for(reader, "before_cursor_execute")
    def _refuse_writes(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        assert _reads(statement), "a look at the database writes nothing"

    return reader


@lru_cache(maxsize=1024)
def _reads(statement: str) -> bool:
    return READS.match(statement) is not None


def _ping_idle_connections(engine: Engine) -> None:
    """Tries a connection before its use, as `pool_pre_ping` does, unless it was just in use.

    What a restart of the database has cut is found by its idle time: no server is back so soon.
    """

    @event.listens_for(engine, "checkin")
    def _on_checkin(_connection: Any, record: Any) -> None:
        record.info["used_at"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _on_checkout(connection: Any, record: Any, _proxy: Any) -> None:
        used_at = record.info.get("used_at")
        if used_at is None or time.monotonic() - used_at < FRESH_SECONDS:
            return  # new, or in use a moment ago
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error:
            raise InvalidatePoolError from None  # the pool opens a new one in its place
