"""Answers every error with one body for both worlds: RFC 9457 and the `openai` client.

No part of the body is taken from the request: the instance is the route's template, the
type a relative reference, since a Host header would else come back to its sender.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from service.auth.bearer import owner_of_bearer
from service.error_table import DOMAIN_ERRORS, as_service_error
from service.errors import (
    AuthenticationRequired,
    MalformedRequest,
    MediaTypeRefused,
    NotFound,
    NotReady,
    ServiceError,
)
from service.field_faults import request_fault
from service.ids import new_id
from service.routes import route_template

REQUEST_ID_KEY = "rldp_request_id"
MEDIA_TYPE = "application/problem+json"


def request_id_of(scope: Any) -> str:
    """The id of this request: ours always, never one that the caller chose."""
    found = scope.get(REQUEST_ID_KEY)
    if found is None:
        found = scope[REQUEST_ID_KEY] = new_id("req_")
    return str(found)


def problem_body(scope: Any, error: ServiceError) -> dict[str, Any]:
    """The document of service.md 3; `error` is what the `openai` client reads."""
    body: dict[str, Any] = {
        "type": f"/problems/{error.code}",
        "title": error.code.replace("_", " ").capitalize(),
        "status": error.status,
        "detail": error.message,
        "request_id": request_id_of(scope),
    }
    instance = route_template(scope)
    if instance is not None:
        body["instance"] = instance
    body.update(error.extra)
    body["error"] = {
        "message": error.message,
        "type": _openai_type(error.status),
        "param": error.param,
        "code": error.code,
    }
    return body


def problem_response(scope: Any, error: ServiceError) -> JSONResponse:
    """The whole answer, with the headers that its status asks for."""
    headers: dict[str, str] = {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.code == "state_conflict":
        headers["x-should-retry"] = "false"  # the client repeats a 409 by itself otherwise
    if error.code == "request_in_progress":
        headers["Retry-After"] = "1"
    if error.status in (429, 503):
        headers["Retry-After"] = str(error.retry_seconds)
    return JSONResponse(
        problem_body(scope, error),
        status_code=error.status,
        headers=headers,
        media_type=MEDIA_TYPE,
    )


def internal_error() -> ServiceError:
    """Our own fault: no detail but the request id."""
    return ServiceError(500, "internal", "The service failed. Tell its operator the request id.")


def install_handlers(app: FastAPI) -> None:
    """Registers the one table of errors with the application."""
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ServiceError, _on_domain)
    for kind in DOMAIN_ERRORS:
        app.add_exception_handler(kind, _on_domain)


def _on_domain(request: Request, error: Exception) -> Response:
    answer = as_service_error(error)
    assert answer is not None, type(error)
    return problem_response(request.scope, answer)


def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    answer = request_fault(request.scope.get("route"), error.errors())
    if isinstance(answer, MalformedRequest) and not _is_authenticated(request):
        answer = AuthenticationRequired()  # the framework parses a body before it asks who calls
    return problem_response(request.scope, answer)


def _is_authenticated(request: Request) -> bool:
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    try:
        return scheme.lower() == "bearer" and (
            owner_of_bearer(request.app.state, text.strip()) is not None
        )
    except NotReady:  # nobody can tell; the caller is told no more than a stranger is
        return False


def _on_http(request: Request, error: Exception) -> Response:
    """HTTP's own errors: no such path, no such method, an unreadable body."""
    assert isinstance(error, HTTPException)
    response = problem_response(request.scope, _of_http_status(error.status_code))
    allowed = (error.headers or {}).get("Allow")
    if allowed and error.status_code == 405:
        response.headers["Allow"] = allowed
    return response


def _of_http_status(status: int) -> ServiceError:
    if status == 401:
        return AuthenticationRequired()
    if status == 404:
        return NotFound()
    if status == 405:
        return ServiceError(405, "method_not_allowed", "This path does not take this method.")
    if status == 415:
        return MediaTypeRefused("application/json")
    if 400 <= status < 500:
        return MalformedRequest()
    return internal_error()


def _openai_type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
