"""Whose rows a transaction may touch on PostgreSQL: a second fence below the queries.

A request is bound to its caller's hospital, and to nobody before the caller is known; the
database then shows it no other hospital's rows, whatever a query forgot. What works for all
hospitals (dispatcher, workers, commands, the publisher of the logs) says so, or runs outside
any request. The policies (`policies_of`) read the setting `app.tenant`.

This guards against mistakes in our queries. Whoever holds the role's password can set it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

SETTING = "app.tenant"
EVERYBODY = "*"
NOBODY = "-"
UNTOLD = ""
_PLAIN = re.compile(r"[A-Za-z0-9_]{1,40}")
# Tables with the hospital in a column. People and keys have none of these policies: they are
# read before anybody knows whose request it is.
BY_TENANT = (
    "alert_acknowledgement",
    "artifact",
    "budget_grant",
    "certificate",
    "data_key",
    "dataset",
    "dataset_version",
    "file",
    "idempotency_key",
    "job",
    "job_audit",
    "log_head",
    "natural_key",
    "population",
    "release_request",
    "reservation",
    "tenant_key",
    "webhook_endpoint",
)
# Tables with the hospital in the name of the log: `tn_…/2026`, `access/tn_…/2026`.
BY_LOG = ("approval", "disclosure", "disclosure_key", "entry", "posting")
# The system log belongs to no hospital: everybody may read it, no request writes it.
SYSTEM_READ = ("entry", "log_head", "posting")
_HELD = f"coalesce(current_setting('{SETTING}', true), '')"


@dataclass(eq=False)
class _Request:
    tenant: str = NOBODY


_request: ContextVar[_Request | None] = ContextVar("row_fence_request", default=None)
_said: ContextVar[str | None] = ContextVar("row_fence_said", default=None)


@contextmanager
def request() -> Iterator[None]:
    """What runs inside, in other threads of the request too, is nobody's until `bind`."""
    token = _request.set(_Request())
    try:
        yield
    finally:
        _request.reset(token)


def bind(tenant_id: str) -> None:
    """The request is this hospital's from now on; transactions that are open stay as they are."""
    found = _request.get()
    if found is not None:
        assert _PLAIN.fullmatch(tenant_id), "no tenant id"
        found.tenant = tenant_id


@contextmanager
def every_tenant() -> Iterator[None]:
    """For work that belongs to all hospitals, though a request caused it."""
    token = _said.set(EVERYBODY)
    try:
        yield
    finally:
        _said.reset(token)


@contextmanager
def untold() -> Iterator[None]:
    """For a look at keys and people alone, which nothing fences: spares telling the database.

    What a connection was told before still holds: of a fenced table, anything may be seen.
    """
    token = _said.set(UNTOLD)
    try:
        yield
    finally:
        _said.reset(token)


@contextmanager
def lifted(session: Session) -> Iterator[None]:
    """For a count over all hospitals in the middle of a request, on the session's connection.

    Whoever lifts it answers with numbers only, or filters by the caller's hospital as always.
    """
    if session.get_bind().dialect.name != "postgresql":
        yield
        return
    told = text("SELECT set_config(:setting, :value, false)")
    session.execute(told, {"setting": SETTING, "value": EVERYBODY})
    back = {"setting": SETTING, "value": held() or NOBODY}
    try:
        yield
    except BaseException:
        with suppress(SQLAlchemyError):  # in a failed transaction it goes back by itself
            session.execute(told, back)
        raise
    session.execute(told, back)


def held() -> str:
    """The hospital's id, or one of the marks for everybody, nobody and nothing to tell."""
    said = _said.get()
    if said is not None:
        return said
    found = _request.get()
    return EVERYBODY if found is None else found.tenant


def policies_of(table: str) -> list[str]:
    """Statements that fence a table, for PostgreSQL. The owner of the tables is exempt.

    A connection that never set `app.tenant` sees everything: a process of the release before
    this one is such, while it is replaced. The release after this one may take that away.
    """
    if table not in BY_TENANT + BY_LOG:
        return []
    is_own = f"{_HELD} IN ('', '{EVERYBODY}', tenant_id)"
    is_system = "tenant_id = 'system'"
    if table in BY_LOG:
        parts = "split_part(log_id, '/', 1), split_part(log_id, '/', 2)"
        is_own = f"{_HELD} IN ('', '{EVERYBODY}', {parts})"
        is_system = "split_part(log_id, '/', 1) = 'system'"
    made = [
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY tenant ON {table} USING ({is_own}) WITH CHECK ({is_own})",
    ]
    if table in SYSTEM_READ:
        made.append(f"CREATE POLICY system_log ON {table} FOR SELECT USING ({is_system})")
    return made
