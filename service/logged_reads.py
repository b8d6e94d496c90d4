"""A route class that enters each read in the access log before its answer leaves."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool

from service.auth.subject import Subject
from service.errors import ServiceError
from service.exact_json import ExactRoute
from service.ledger import access
from service.ledger.entries import this_minute
from service.ledger.errors import ERROR_TABLE
from service.routes import route_template

READ_METHODS = frozenset({"GET", "HEAD"})
READING_POSTS = frozenset({"/v1/ledger/forecast"})
ENTERED_MAX = 10_000


class LoggedRoute(ExactRoute):
    """Reads of anyone known are entered, refused ones too. Writes have entries of their own.

    `logged` names the templates concerned; None means all of the router. Of `hourly` ones,
    which an open page asks for every two seconds, equal reads of an hour are one entry.
    """

    logged: ClassVar[frozenset[str] | None] = None
    hourly: ClassVar[frozenset[str]] = frozenset()

    @property
    def is_logged(self) -> bool:
        return self.logged is None or self.path in self.logged

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if not self.is_logged:
            return handle
        once = self.path in self.hourly

        async def handle_and_enter(request: Request) -> Response:
            try:
                response = await handle(request)
            except Exception as error:
                await run_in_threadpool(_enter, request, _status_of(error), once)
                raise
            await run_in_threadpool(_enter, request, response.status_code, once)
            return response

        return handle_and_enter


def _status_of(error: Exception) -> int:
    """As the edge will answer it; the two families of errors that these routes raise."""
    if isinstance(error, ServiceError):
        return error.status
    return next((ERROR_TABLE[kind][0] for kind in type(error).__mro__ if kind in ERROR_TABLE), 500)


def _enter(request: Request, status: int, once_an_hour: bool) -> None:
    route = route_template(request.scope) or ""
    subject: Subject | None = getattr(request.state, "subject", None)
    is_read = request.method in READ_METHODS or route in READING_POSTS
    if subject is None or not is_read:
        return
    # An id from the path is ours only if the answer showed its object.
    shown = ",".join(map(str, request.path_params.values())) if status < 400 else ""
    said = (subject.principal_id, subject.role, route, status, shown, this_minute()[:13])
    if once_an_hour and _was_entered(request, said):
        return
    with request.app.state.database.transaction() as session:
        access.record(
            session,
            tenant_id=subject.tenant_id,
            actor=subject.principal_id,
            role=subject.role,
            route=route,
            status=status,
            shown=shown,
            once_an_hour=once_an_hour,
        )
    if once_an_hour:
        request.app.state.entered.add(said)


def _was_entered(request: Request, said: tuple[object, ...]) -> bool:
    """Whether this process has entered an equal read of this hour; then nothing is written."""
    state = request.app.state
    if len(getattr(state, "entered", ())) >= ENTERED_MAX or not hasattr(state, "entered"):
        state.entered = set()
    return said in state.entered
