"""The outermost layer of every request: its id, security headers, access log, last resort."""

from __future__ import annotations

import logging
import time

from prometheus_client import Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import rate_limits, row_fence
from service.logs import frames_of
from service.problems import internal_error, problem_response, request_id_of
from service.routes import route_template
from service.traces import Traces

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

access_log = logging.getLogger("rldp.access")


class AnswerCut(Exception):
    """An answer broke after its first bytes had left; closes the connection, tells nothing."""


class Edge:
    """Middleware around everything else.

    An unforeseen exception becomes a 500 with the request id. It is logged by type and
    place; its text, which may quote a row, goes nowhere.
    """

    def __init__(self, app: ASGIApp, seconds: Histogram, traces: Traces) -> None:
        self._app, self._seconds, self._traces = app, seconds, traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, began = time.monotonic(), time.time_ns()
        status: int | None = None

        async def dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                _dress(headers, request_id_of(scope), scope["path"])
                headers.update(rate_limits.headers_of(scope.get(rate_limits.SCOPE_KEY, [])))
            await send(message)

        broken = False
        try:
            with row_fence.request():
                await self._app(scope, receive, dressed)
        except Exception as error:
            _log_failure(error, _fields(scope, 500, started))
            broken = True
        if broken and status is not None:
            raise AnswerCut
        if broken:
            await problem_response(scope, internal_error())(scope, receive, dressed)
        fields = _fields(scope, status or 500, started)
        access_log.info("request", extra=fields)
        labels = (str(fields[name]) for name in ("route", "method", "status"))
        self._seconds.labels(*labels).observe(time.monotonic() - started)
        self._traces.request(fields, began, Headers(scope=scope).get("traceparent"))


def _log_failure(error: Exception, fields: dict[str, object]) -> None:
    """Type and places only, also under a logging set-up that would print a traceback."""
    kind, frames = type(error).__qualname__, frames_of(error.__traceback__)
    access_log.error(
        "request failed: %s at %s",
        kind,
        frames[-1] if frames else "?",
        extra={**fields, "exception": kind, "frames": frames},
    )


def _dress(headers: MutableHeaders, request_id: str, path: str) -> None:
    headers["x-request-id"] = request_id
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    if not path.startswith("/static/"):
        headers.setdefault("Cache-Control", "no-store")


def _fields(scope: Scope, status: int, started: float) -> dict[str, object]:
    """What an access line may hold: a raw path or query can hold anything."""
    return {
        "request_id": request_id_of(scope),
        "route": route_template(scope) or "(none)",
        "method": scope["method"] if scope["method"] in METHODS else "(other)",
        "status": status,
        "duration_ms": round((time.monotonic() - started) * 1000),
    }
