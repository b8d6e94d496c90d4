"""Errors of the edge: each has a status, a code, and a text that repeats nothing sent.

    ServiceError
    ├── MalformedRequest         400 malformed_json
    ├── UnknownField             400 unknown_field
    ├── UnsupportedOption        400 unsupported_option
    ├── CursorInvalid            400 cursor_invalid
    ├── DatasetRequired          400 dataset_required
    ├── AuthenticationRequired   401 authentication_required
    ├── RoleForbidden            403 role_forbidden
    ├── ScopeForbidden           403 role_forbidden
    ├── TrainingDataSealed       403 training_data_sealed
    ├── NotFound                 404 not_found: absent, or in a scope the caller may not see
    ├── StateConflict            409 state_conflict, never repeated by the client
    ├── RequestInProgress        409 request_in_progress
    ├── EtagMismatch             412 etag_mismatch
    ├── BodyTooLarge             413 body_too_large
    ├── EncodingRefused          415 content_encoding_refused
    ├── MediaTypeRefused         415 media_type_refused
    ├── FieldInvalid             422 field_invalid
    ├── FileInvalid              422 file_invalid
    ├── IdempotencyKeyReused     422 idempotency_key_reused
    ├── PreconditionRequired     428 precondition_required
    ├── RateLimited              429 rate_limited
    └── NotReady                 503 not_ready

Domain packages keep their own families and state their statuses in an `ERROR_TABLE`;
`service/error_table.py` collects those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RETRY_SECONDS = 5

# Every code of service.md section 3, plus `method_not_allowed` for HTTP's own 405.
STATUS_OF_CODE: Mapping[str, int] = {
    "malformed_json": 400,
    "unknown_field": 400,
    "unsupported_option": 400,
    "privacy_required": 400,
    "dataset_required": 400,
    "cursor_invalid": 400,
    "authentication_required": 401,
    "role_forbidden": 403,
    "privacy_budget_exceeded": 403,
    "self_approval": 403,
    "release_pending": 403,
    "training_data_sealed": 403,
    "model_not_allowed": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "state_conflict": 409,
    "request_in_progress": 409,
    "etag_mismatch": 412,
    "body_too_large": 413,
    "content_encoding_refused": 415,
    "media_type_refused": 415,
    "field_invalid": 422,
    "plan_infeasible": 422,
    "file_invalid": 422,
    "idempotency_key_reused": 422,
    "precondition_required": 428,
    "rate_limited": 429,
    "quota_exceeded": 429,
    "internal": 500,
    "not_ready": 503,
    "ledger_halted": 503,
}


class ServiceError(Exception):
    """An answer other than success. `message` is ours and holds nothing the caller sent.

    `param` is the dotted name of a known field; `extra` is added to the problem body.
    """

    retry_seconds = RETRY_SECONDS  # for the statuses that ask to come again

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        assert STATUS_OF_CODE.get(code) == status, (status, code)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.extra = dict(extra or {})
        super().__init__(message)


class MalformedRequest(ServiceError):
    """The body cannot be read at all."""

    def __init__(self, message: str = "The body cannot be read.") -> None:
        super().__init__(400, "malformed_json", message)


class UnknownField(ServiceError):
    """A field we do not know. It is never named; the nearest known one is offered."""

    def __init__(self, *, pointer: str, nearest: str | None) -> None:
        advice = f" The nearest known field is {nearest}." if nearest else ""
        message = f"The request holds an unknown field.{advice}"
        fault = {"pointer": pointer, "code": "unknown_field", "message": message}
        super().__init__(400, "unknown_field", message, extra={"errors": [fault]})


class UnsupportedOption(ServiceError):
    """A known field asks for what is not offered."""

    def __init__(self, param: str, advice: str) -> None:
        super().__init__(400, "unsupported_option", advice, param=param)


class CursorInvalid(ServiceError):
    """`after` names no object of this list."""

    def __init__(self) -> None:
        super().__init__(
            400, "cursor_invalid", "after names no object of this list.", param="after"
        )


class DatasetRequired(ServiceError):
    """The file belongs to no dataset, so nobody's budget can pay for it."""

    def __init__(self) -> None:
        super().__init__(
            400,
            "dataset_required",
            "The file belongs to no dataset. Upload it with dataset=<id>, or add it with "
            "POST /v1/datasets/{id}/versions.",
            param="training_file",
        )


class AuthenticationRequired(ServiceError):
    """No key, or one that is unknown, expired or revoked: the caller cannot tell which."""

    def __init__(self) -> None:
        super().__init__(
            401, "authentication_required", "Send a valid API key as Authorization: Bearer."
        )


class RoleForbidden(ServiceError):
    """The caller's role may not do this."""

    def __init__(self) -> None:
        super().__init__(403, "role_forbidden", "Your role may not do this.")


class ScopeForbidden(ServiceError):
    """The role may, but not with this key."""

    def __init__(self) -> None:
        super().__init__(403, "role_forbidden", "The scopes of this key do not cover this.")


class TrainingDataSealed(ServiceError):
    """Only data stewards read training data back."""

    def __init__(self) -> None:
        super().__init__(
            403, "training_data_sealed", "Only a data steward may read training data back."
        )


class NotFound(ServiceError):
    """Absent, or in a scope the caller may not see."""

    def __init__(self) -> None:
        super().__init__(404, "not_found", "No such object.")


class StateConflict(ServiceError):
    """The object's state does not allow this."""

    def __init__(self, message: str) -> None:
        super().__init__(409, "state_conflict", message)


class RequestInProgress(ServiceError):
    """An equal key is held by a request still open; nothing was written."""

    def __init__(self) -> None:
        super().__init__(
            409,
            "request_in_progress",
            "The first request under this Idempotency-Key is still open.",
        )


class IdempotencyKeyReused(ServiceError):
    """The key stands with another request; nothing was written."""

    def __init__(self) -> None:
        super().__init__(
            422,
            "idempotency_key_reused",
            "This Idempotency-Key was used for another request. Send a new key with a new request.",
        )


class EtagMismatch(ServiceError):
    """The object changed since the caller read it."""

    def __init__(self) -> None:
        super().__init__(412, "etag_mismatch", "The object has changed. Read it again first.")


class BodyTooLarge(ServiceError):
    """The body passes the limit of this route."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            413, "body_too_large", f"The body may have at most {limit_bytes} bytes here."
        )


class EncodingRefused(ServiceError):
    """Bodies must be sent as they are."""

    def __init__(self) -> None:
        super().__init__(415, "content_encoding_refused", "Send the body without Content-Encoding.")


class MediaTypeRefused(ServiceError):
    """The body is of a kind this route does not take."""

    def __init__(self, wanted: str) -> None:
        super().__init__(415, "media_type_refused", f"This route takes {wanted}.")


class FieldInvalid(ServiceError):
    """A known field with an unacceptable value. The text never repeats the value."""

    def __init__(self, param: str, problem: str) -> None:
        pointer = "/" + param.replace(".", "/")
        fault = {"pointer": pointer, "code": "field_invalid", "message": problem}
        super().__init__(422, "field_invalid", problem, param=param, extra={"errors": [fault]})


class FileInvalid(ServiceError):
    """The file did not pass its validation."""

    def __init__(self, param: str) -> None:
        super().__init__(
            422,
            "file_invalid",
            "The file did not pass its validation. GET /v1/files/{id}/validation lists each row.",
            param=param,
        )


class PreconditionRequired(ServiceError):
    """A change needs `If-Match`, so that it meets the object the caller has read."""

    def __init__(self) -> None:
        super().__init__(428, "precondition_required", "Send If-Match with the object's ETag.")


class RateLimited(ServiceError):
    """Too many requests of one key, one hospital, or with wrong keys from one address."""

    def __init__(self, policy: str, retry_seconds: int) -> None:
        super().__init__(
            429,
            "rate_limited",
            f"Too many requests (limit: {policy}). Come again in {retry_seconds} s.",
        )
        self.retry_seconds = retry_seconds


class NotReady(ServiceError):
    """The service cannot take requests yet, or not any more."""

    def __init__(self, checks: Mapping[str, str]) -> None:
        super().__init__(
            503, "not_ready", "The service is not ready.", extra={"checks": dict(checks)}
        )
