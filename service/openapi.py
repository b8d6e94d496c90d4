"""The description of the API: what each operation takes, and every status it can answer.

FastAPI knows paths, parameters and bodies. What it cannot know is added here by rules that
follow the layers of a request: who may answer before the route does (`bodies`, `auth`,
`rate_limits`), what a parameter can be wrong about, and the one error body for both worlds
(service.md 3). `tests/contract` holds every answer against this document.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.errors import STATUS_OF_CODE

PROBLEM_TYPE = "application/problem+json"
EVENT_STREAM = "text/event-stream"
DESCRIPTION = (
    "Fine-tuning under differential privacy. The unmodified `openai` client drives the routes of "
    "files, jobs and models. Every error has one body: a problem (RFC 9457) that also holds the "
    "`error` object of that client. `Idempotency-Key` makes a repeated POST safe for 24 hours."
)
TITLES = {
    400: "Cannot be read, or asks for what is not offered.",
    401: "No key, or one that is unknown, expired or revoked.",
    403: "Understood and refused.",
    404: "Absent, or in a scope the caller may not see.",
    409: "The state does not allow this, or an equal request is still open.",
    412: "The object has changed since its ETag was read.",
    413: "The body passes the limit of this route.",
    415: "The body is of a kind that is not taken here.",
    422: "Known fields with unacceptable values.",
    428: "`If-Match` is missing.",
    429: "Too many requests.",
    500: "The service failed; no detail but the request id.",
    503: "Not ready, or the ledger takes nothing new.",
}
HEADERS: dict[str, dict[str, Any]] = {
    "x-request-id": {"description": "Of this request; ours always.", "required": True},
    "RateLimit-Policy": {"description": "Limits that were counted, where there are any."},
    "RateLimit": {"description": "What is left of the tightest of them."},
    "Retry-After": {"description": "Seconds to wait, at most 120.", "required": True},
    "WWW-Authenticate": {"description": "`Bearer`.", "required": True},
    "x-should-retry": {"description": "`false` for a conflict that a repeat cannot solve."},
    "Idempotent-Replayed": {"description": "`true` if this answer was given before."},
    "Location": {"description": "Of what was made."},
    "ETag": {"description": "For `If-Match`."},
}
COMMON_HEADERS = ("x-request-id", "RateLimit-Policy", "RateLimit")
HEADERS_OF_STATUS = {
    401: ("WWW-Authenticate",),
    409: ("x-should-retry",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
STORED_FILES = ("/content", "/artifacts/{name}")
# Reads without an id in the path that still look for one object: the caller's log.
SEEK_A_LOG = ("/v1/ledger/", "/v1/proofs/")
FRAMEWORK_SCHEMAS = ("HTTPValidationError", "ValidationError")

_FAULT = {
    "type": "object",
    "required": ["pointer", "code", "message"],
    "properties": {name: {"type": "string"} for name in ("pointer", "code", "message")},
}
PROBLEM: dict[str, Any] = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457, with the `error` that the openai client reads.",
    "required": ["type", "title", "status", "detail", "request_id", "error"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "description": "The route's template."},
        "request_id": {"type": "string"},
        "errors": {"type": "array", "items": _FAULT},
        "balance": {"type": "object"},
        "receipts": {
            "type": "array",
            "items": {"type": "object"},
            "description": "Signed receipts of what a refusal has entered in the ledger.",
        },
        "checks": {"type": "object"},
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string", "enum": sorted(STATUS_OF_CODE)},
            },
        },
    },
}


def files(*media_types: str) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route whose answer is a file in one of these forms.

    Use with `response_class=Response`, which claims no JSON.
    """
    return {200: {"content": {kind: _file(kind) for kind in media_types}}}


def _file(media_type: str) -> dict[str, Any]:
    if media_type == EVENT_STREAM:
        return {"itemSchema": _event({"type": "string"})}
    return {"schema": {} if media_type.endswith("json") else {"type": "string"}}


def events(**shapes: str) -> dict[int | str, dict[str, Any]]:
    """`responses` of a stream of named server-sent events; each name with its data's schema.

    `itemSchema` is of OpenAPI 3.2; FastAPI writes it into its 3.1 documents too.
    """
    kinds = [
        _event(
            {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"$ref": f"#/components/schemas/{shape}"},
            },
            event={"const": name},
        )
        for name, shape in shapes.items()
    ]
    return {200: {"content": {EVENT_STREAM: {"itemSchema": {"oneOf": kinds}}}}}


def _event(data: dict[str, Any], **more: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["data", *more],
        "properties": {"data": data, "id": {"type": "string"}, **more},
    }


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Schemas by name, and which of them the success of an operation has, by operation id."""

    schemas: Mapping[str, dict[str, Any]]
    of_operation: Mapping[str, str]


def install(app: FastAPI, answers: Answers) -> None:
    """Lets `app.openapi()` answer this description; it is made at first use."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document_of(app, answers)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def document_of(app: FastAPI, answers: Answers) -> dict[str, Any]:
    """The whole OpenAPI document of an application."""
    document = get_openapi(
        title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes
    )
    components = document["components"]
    for name in FRAMEWORK_SCHEMAS:
        components["schemas"].pop(name, None)
    components["schemas"] |= {"Problem": PROBLEM, **answers.schemas}
    components["headers"] = {
        name: {**header, "schema": {"type": "string"}} for name, header in HEADERS.items()
    }
    components["responses"] = {f"Problem{status}": _problem(status) for status in TITLES}
    for path, method, operation in operations(document):
        _complete(path, method, operation)
        shape = answers.of_operation.get(operation["operationId"])
        if shape is not None:
            success = operation["responses"]["200"]["content"]["application/json"]
            success["schema"] = {"$ref": f"#/components/schemas/{shape}"}
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(path, method, operation) of a document."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def _problem(status: int) -> dict[str, Any]:
    codes = sorted(code for code, of in STATUS_OF_CODE.items() if of == status)
    narrowed = {
        "properties": {
            "status": {"const": status},
            "error": {"properties": {"code": {"enum": codes}}},
        }
    }
    schema = {"allOf": [{"$ref": "#/components/schemas/Problem"}, narrowed]}
    return {
        "description": f"{TITLES[status]} Codes: {', '.join(codes)}.",
        "headers": _headers(*COMMON_HEADERS, *HEADERS_OF_STATUS.get(status, ())),
        "content": {PROBLEM_TYPE: {"schema": schema}},
    }


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    parameters = operation.get("parameters", [])
    headers = {one["name"].lower() for one in parameters if one["in"] == "header"}
    for status in [s for s in operation["responses"] if not s.startswith("2")]:
        del operation["responses"][status]  # the framework's own shape of a fault
    for status, answer in operation["responses"].items():
        named = [*COMMON_HEADERS]
        named += ["Idempotent-Replayed"] if "idempotency-key" in headers else []
        named += ["Location"] if status == "201" else []
        answer["headers"] = answer.get("headers", {}) | _headers(*named)
    _add_formats(parameters, operation["responses"])
    for error in sorted(_errors(path, method, operation, headers)):
        operation["responses"][str(error)] = {"$ref": f"#/components/responses/Problem{error}"}


def _add_formats(parameters: list[dict[str, Any]], responses: dict[str, Any]) -> None:
    """A list that `?format=` gives as text too."""
    media = {"csv": "text/csv", "jsonl": "application/jsonl"}
    formats = (p["schema"].get("enum", []) for p in parameters if p["name"] == "format")
    offered: list[str] = next(formats, [])
    for name in offered:
        if name in media:
            responses["200"]["content"][media[name]] = {"schema": {"type": "string"}}


def _errors(path: str, method: str, operation: dict[str, Any], headers: set[str]) -> set[int]:
    """Every status but success that the layers and the route can answer."""
    parameters, has_body = operation.get("parameters", []), "requestBody" in operation
    needs_key = bool(operation.get("security"))
    if not needs_key and not has_body:
        return {500, 503} if path == "/readyz" else {500}
    found = {429, 500, 503} | ({401, 403} if needs_key else set())
    in_path = any(one["in"] == "path" for one in parameters)
    if parameters or has_body:
        found |= {400, 422}
    if in_path or (has_body and needs_key) or path.startswith(SEEK_A_LOG):
        found.add(404)
    if method != "get":
        found |= {400, 409, 413, 415}
    if path.endswith(STORED_FILES):  # erased, or gone from the disk
        found.add(409)
    if "if-match" in headers:
        found |= {412, 428}
    return found
