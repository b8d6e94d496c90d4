"""Endpoint, end of its transaction and JSON of its answer in one stay of one thread.

The framework sends a blocking endpoint to a thread, checks its answer in a second stay there
and ends its session in a third. Each way there and back costs as much processor time as a
query, and under load two threads fight for the interpreter at each. What is told to the
caller, and that a commit comes before the answer, stay as they are.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import Response
from pydantic_core import to_json
from sqlalchemy import Engine
from sqlalchemy.orm import Session

_PARAMETER = "answer_headers"  # where an endpoint names no `Response` of its own


class UnitOfWork(Session):
    """The session of one request: begins at its first statement, ends by `finish` or `undo`."""

    def __init__(self, engine: Engine, *, writes: bool) -> None:
        super().__init__(engine, expire_on_commit=False)
        self._writes = writes

    def finish(self) -> None:
        """Commits what was written. A reading one lets go; what it loaded stays readable."""
        try:
            if self._writes:
                self.commit()
            else:
                self.expunge_all()  # a rollback would expire the rows
        finally:
            self.undo()

    def undo(self) -> None:
        """Rolls back what is not committed and gives the connection back."""
        self.rollback()
        self.close()


@asynccontextmanager
async def lent(unit: UnitOfWork) -> AsyncIterator[UnitOfWork]:
    """Ends a unit that its endpoint has not ended: one that failed on the way there, mostly."""
    try:
        yield unit
    except BaseException:
        await _in_thread(unit, unit.undo)
        raise
    await _in_thread(unit, unit.finish)


async def _in_thread(unit: UnitOfWork, end: Callable[[], None]) -> None:
    """Ends it, in a thread if it may hold a connection; never waits for a free thread.

    All of those may be waiting for the connection that is given back here.
    """
    if unit.in_transaction():
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(end, limiter=anyio.CapacityLimiter(1))


def in_one_thread(endpoint: Callable[..., Any], status_code: int | None) -> Callable[..., Any]:
    """The endpoint, ending the units of work among its arguments and answering in bytes.

    An answer that is no dict, or that already is a `Response`, goes on as it is.
    """
    signature = inspect.signature(endpoint, eval_str=True)
    parameters = list(signature.parameters.values())
    name = next((p.name for p in parameters if p.annotation is Response), None)

    @functools.wraps(endpoint)
    def run(**arguments: Any) -> Any:
        given: Response = arguments[name] if name else arguments.pop(_PARAMETER)
        units = [one for one in arguments.values() if isinstance(one, UnitOfWork)]
        try:
            answer = endpoint(**arguments)
        except BaseException:
            for unit in units:
                unit.undo()
            raise
        for unit in units:
            unit.finish()
        return _as_json(answer, given, status_code) if isinstance(answer, dict) else answer

    if name is None:
        hidden = inspect.Parameter(_PARAMETER, inspect.Parameter.KEYWORD_ONLY, annotation=Response)
        signature = signature.replace(parameters=[*parameters, hidden])
    run.__signature__ = signature  # type: ignore[attr-defined]
    return run


def _as_json(answer: dict[str, Any], given: Response, status_code: int | None) -> Response:
    """As the framework writes it, with status and headers that were set on the way."""
    made = Response(
        to_json(answer, inf_nan_mode="null"),
        status_code=given.status_code or status_code or 200,
        media_type="application/json",
    )
    made.raw_headers.extend(given.raw_headers)
    return made
