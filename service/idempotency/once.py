"""What an endpoint asks for, so that its POST is answered twice and done once.

The key is taken in the request's own transaction, before the effect, and the answer is kept
in it: both commit or neither does. Where no key is sent, nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.dependencies import SessionDep, SubjectDep
from service.idempotency import store
from service.routes import route_template

KeyHeader = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]
REPLAYED = "Idempotent-Replayed"
_LOCATION = "_location"


class Once:
    """One request, with its key if it sent one."""

    def __init__(
        self,
        request: Request,
        response: Response,
        session: Session,
        subject: Subject,
        key: str | None,
    ) -> None:
        self._request, self._response = request, response
        self._session, self._subject, self._key = session, subject, key

    def answer(
        self,
        body: BaseModel | None,
        make: Callable[[], dict[str, Any]],
        *,
        shown_once: str | None = None,
    ) -> dict[str, Any]:
        """What `make` answers, or answered before under this key.

        `shown_once` names a field that holds a secret: it is not kept, and null in a replay.

        Raises:
            IdempotencyKeyReused, RequestInProgress: of the key.
            Whatever `make` raises; the key is free again then.
        """
        if self._key is None:
            return make()
        keyed = self._keyed(self._key, body)
        kept = store.take(self._session, keyed)
        if kept is not None:
            return self._again(kept)
        made = make()
        hidden = {} if shown_once is None else {shown_once: None}
        location = {_LOCATION: self._response.headers.get("Location")}
        store.keep(self._session, keyed, made | hidden | location)
        return made

    def _keyed(self, key: str, body: BaseModel | None) -> store.Keyed:
        route = f"{self._request.method} {route_template(self._request.scope)}"
        asked = {
            "path": dict(self._request.path_params),
            "body": None if body is None else body.model_dump(mode="json"),
        }
        return store.keyed(self._subject, route, key, asked)

    def _again(self, kept: dict[str, Any]) -> dict[str, Any]:
        location = kept.pop(_LOCATION)
        if location is not None:
            self._response.headers["Location"] = location
        self._response.headers[REPLAYED] = "true"
        return kept


async def get_once(
    request: Request,
    response: Response,
    session: SessionDep,
    subject: SubjectDep,
    idempotency_key: KeyHeader = None,
) -> Once:
    return Once(request, response, session, subject, idempotency_key)


OnceDep = Annotated[Once, Depends(get_once)]
