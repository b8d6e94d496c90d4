"""Refuses bodies that a route does not take, before a route reads them (service.md 13, 18).

==============================================  ====================================
request                                         answer
==============================================  ====================================
a NUL character in path or query, which         400 malformed_json
PostgreSQL cannot look for
`Content-Encoding` other than identity          415 content_encoding_refused
a body under /v1 that is not JSON (upload:      415 media_type_refused
not multipart/form-data)
declared or received length over the limit      413 body_too_large; to the upload
                                                page's form a page, after its body
==============================================  ====================================
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import (
    BodyTooLarge,
    EncodingRefused,
    MalformedRequest,
    MediaTypeRefused,
    ServiceError,
)
from service.problems import problem_response

PageOfLimit = Callable[[int], Response]

BODY_BYTES_MAX = 1024 * 1024
FORM_OVERHEAD_BYTES = 64 * 1024  # boundaries and form fields around an uploaded file
UPLOAD_PAGE = "/files"
UPLOAD_PATHS = frozenset({"/v1/files", UPLOAD_PAGE})  # the API's and the page's form
DRAINED_TIMES_MAX = 4  # of the limit: a browser shows an answer only to a body it could send


class BodyGuard:
    """Middleware: one limit for uploads, a small one for everything else."""

    def __init__(self, app: ASGIApp, upload_bytes_max: int, too_large_page: PageOfLimit) -> None:
        self._app, self._page = app, too_large_page
        self._upload_bytes_max = upload_bytes_max
        self._upload_limit = upload_bytes_max + FORM_OVERHEAD_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["method"] == "POST" and scope["path"].rstrip("/") in UPLOAD_PATHS
        limit = self._upload_limit if is_upload else BODY_BYTES_MAX
        headers = Headers(scope=scope)
        refusal = _refusal(scope, headers, limit, is_upload)
        if refusal is not None:
            if isinstance(refusal, BodyTooLarge):
                await self._too_large(scope, receive, send, refusal, is_whole=False)
            else:
                await problem_response(scope, refusal)(scope, receive, send)
            return
        await self._pass_counted(scope, receive, send, limit)

    async def _pass_counted(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        received = 0
        too_large = is_whole = False

        async def counted() -> Message:
            nonlocal received, too_large, is_whole
            message = await receive()
            is_whole = not message.get("more_body", False)
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
            await self._too_large(scope, receive, send, BodyTooLarge(limit), is_whole=is_whole)

    async def _too_large(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        refusal: BodyTooLarge,
        *,
        is_whole: bool,
    ) -> None:
        """A person gets a page, a program the problem. `is_whole`: nothing more will come."""
        answer: Response = problem_response(scope, refusal)
        if scope["method"] == "POST" and scope["path"].rstrip("/") == UPLOAD_PAGE:
            if not is_whole:
                await _drain(receive, DRAINED_TIMES_MAX * self._upload_limit)
            answer = self._page(self._upload_bytes_max)
        await answer(scope, receive, send)


async def _drain(receive: Receive, bytes_max: int) -> None:
    """Reads the rest of a body and keeps none of it."""
    drained = 0
    while drained <= bytes_max:
        message = await receive()
        drained += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


def _refusal(scope: Scope, headers: Headers, limit: int, is_upload: bool) -> ServiceError | None:
    if "\0" in scope["path"] or b"%00" in scope.get("query_string", b""):
        return MalformedRequest("The address holds a NUL character, which no name has.")
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
