"""Refuses bodies that a route does not take, before a route reads them (service.md 13, 18).

==============================================  ====================================
request                                         answer
==============================================  ====================================
`Content-Encoding` other than identity          415 content_encoding_refused
a body under /v1 that is not JSON (upload:      415 media_type_refused
not multipart/form-data)
declared or received length over the limit      413 body_too_large
==============================================  ====================================
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, EncodingRefused, MediaTypeRefused, ServiceError
from service.problems import problem_response

BODY_BYTES_MAX = 1024 * 1024
FORM_OVERHEAD_BYTES = 64 * 1024  # boundaries and form fields around an uploaded file
UPLOAD_PATH = "/v1/files"


class BodyGuard:
    """Middleware: one limit for uploads, a small one for everything else."""

    def __init__(self, app: ASGIApp, upload_bytes_max: int) -> None:
        self._app = app
        self._upload_limit = upload_bytes_max + FORM_OVERHEAD_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["method"] == "POST" and scope["path"].rstrip("/") == UPLOAD_PATH
        limit = self._upload_limit if is_upload else BODY_BYTES_MAX
        headers = Headers(scope=scope)
        refusal = _refusal(scope, headers, limit, is_upload)
        if refusal is not None:
            await problem_response(scope, refusal)(scope, receive, send)
            return
        await self._pass_counted(scope, receive, send, limit)

    async def _pass_counted(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        received = 0
        too_large = False

        async def counted() -> Message:
            nonlocal received, too_large
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                too_large = True
                raise BodyTooLarge(limit)
            return message

        async def muted(message: Message) -> None:
            if not too_large:  # else whatever the route makes of the cut body is replaced
                await send(message)

        try:
            await self._app(scope, counted, muted)
        except BodyTooLarge:
            if not too_large:
                raise
        if too_large:
            await problem_response(scope, BodyTooLarge(limit))(scope, receive, send)


def _refusal(scope: Scope, headers: Headers, limit: int, is_upload: bool) -> ServiceError | None:
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        return EncodingRefused()
    declared = headers.get("content-length", "0")
    length = int(declared) if declared.isdecimal() and len(declared) < 20 else limit + 1
    if length > limit:
        return BodyTooLarge(limit)
    has_body = length > 0 or "transfer-encoding" in headers
    if not has_body or not scope["path"].startswith("/v1/"):
        return None
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if is_upload:
        return None if kind == "multipart/form-data" else MediaTypeRefused("multipart/form-data")
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return None
    return MediaTypeRefused("application/json")
