"""Answers kept under `Idempotency-Key`, so that a repeated POST is answered and not repeated.

The row is inserted first and commits with the effect: no mark of an open request survives
a crash, and a refused request leaves no row, hence may be sent again under its key
(service.md 4.1).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.database import now_us
from service.errors import IdempotencyKeyReused, RequestInProgress
from service.idempotency.models import IdempotencyKey
from service.ledger.entries import insert_if_absent

SECOND = 1_000_000
KEPT_SECONDS = 86_400
WAIT_MILLISECONDS = 2_000
LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's SQLSTATE


@dataclass(frozen=True, kw_only=True)
class Keyed:
    """A request under a key. Only digests of either are stored."""

    subject: Subject
    route: str
    key_digest: str
    request_digest: str

    @property
    def identity(self) -> dict[str, str]:
        """The primary key of its row."""
        return {
            "tenant_id": self.subject.tenant_id,
            "principal_id": self.subject.principal_id,
            "route": self.route,
            "key_digest": self.key_digest,
        }


def keyed(subject: Subject, route: str, key: str, request: dict[str, Any]) -> Keyed:
    """Takes the quoted string of the draft standard and a bare token for the same key."""
    bare = key[1:-1] if len(key) > 2 and key[0] == key[-1] == '"' else key
    canonical = json.dumps(request, sort_keys=True, separators=(",", ":"))
    return Keyed(
        subject=subject,
        route=route,
        key_digest=hashlib.sha256(bare.encode()).hexdigest(),
        # Keyed with what is not stored: a guess of a personal field cannot be tested against it.
        request_digest=hmac.new(bare.encode(), canonical.encode(), hashlib.sha256).hexdigest(),
    )


def kept_answer(session: Session, request: Keyed) -> dict[str, Any] | None:
    """The first answer under this key, if it is less than a day old.

    Raises:
        IdempotencyKeyReused: the key stands with another request.
    """
    row = session.execute(
        select(IdempotencyKey.request_digest, IdempotencyKey.answer).where(
            *_is(request), IdempotencyKey.created_at > _oldest()
        )
    ).first()
    if row is None:
        return None
    if row.request_digest != request.request_digest:
        raise IdempotencyKeyReused()
    answer: dict[str, Any] = json.loads(row.answer)
    return answer


def take(session: Session, request: Keyed) -> dict[str, Any] | None:
    """Holds the key until this transaction ends, or returns the answer kept under it.

    Waits up to two seconds for an equal key that another transaction holds.

    Raises:
        RequestInProgress: it is held longer; the transaction must roll back.
        IdempotencyKeyReused: the key stands with another request.
    """
    session.execute(
        delete(IdempotencyKey).where(*_is(request), IdempotencyKey.created_at <= _oldest())
    )
    values = request.identity | {
        "request_digest": request.request_digest,
        "answer": "",
        "created_at": now_us(),
    }
    return None if _insert(session, values) else kept_answer(session, request)


def _insert(session: Session, values: dict[str, Any]) -> bool:
    if session.get_bind().dialect.name == "sqlite":  # one writer: nobody else holds a key now
        return insert_if_absent(session, IdempotencyKey, values)
    before = session.scalar(text("SHOW lock_timeout"))
    _set_lock_timeout(session, f"{WAIT_MILLISECONDS}ms")
    try:
        inserted = insert_if_absent(session, IdempotencyKey, values)
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) == LOCK_NOT_AVAILABLE:
            raise RequestInProgress() from None
        raise
    _set_lock_timeout(session, str(before))
    return inserted


def _set_lock_timeout(session: Session, value: str) -> None:
    session.execute(text("SELECT set_config('lock_timeout', :value, true)"), {"value": value})


def keep(session: Session, request: Keyed, answer: dict[str, Any]) -> None:
    """Stores the answer under the key that this transaction holds."""
    session.execute(update(IdempotencyKey).where(*_is(request)).values(answer=json.dumps(answer)))


def forget_old(session: Session) -> None:
    """Drops keys a day old."""
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at <= _oldest()))


def _is(request: Keyed) -> list[Any]:
    return [getattr(IdempotencyKey, name) == value for name, value in request.identity.items()]


def _oldest() -> int:
    return now_us() - KEPT_SECONDS * SECOND
