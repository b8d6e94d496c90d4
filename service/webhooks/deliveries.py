"""Brings owed deliveries to their endpoints: at least once, with pauses that grow to a day.

A delivery is held for one sender while it is on its way. A sender that dies lets the hold
run out, and the delivery is taken again, under the same `webhook-id`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from service.addresses import TargetRefused, rules_of
from service.database import Database, now_us
from service.errors import NotReady
from service.settings import Settings
from service.webhooks import sender
from service.webhooks.models import WebhookDelivery, WebhookEndpoint
from service.webhooks.sender import SendFailed
from service.webhooks.vault import SecretUnreadable, SecretVault, signature_header

logger = logging.getLogger(__name__)
Row = TypeVar("Row", WebhookEndpoint, WebhookDelivery)

SECOND = 1_000_000
MINUTE, HOUR = 60, 3600
# Waits before the second, third, ... try: ten tries within three days.
WAITS = (5, 5 * MINUTE, 30 * MINUTE, *(HOUR * hours for hours in (2, 5, 10, 14, 16, 24)))
JITTER = 0.1  # of a wait, so that a server that was down is not met by all at once
HOLD_SECONDS = 60
AT_ONCE = 8
KEPT_SECONDS = 30 * 86_400
GONE = 410


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one try went. `error` is a code of a closed list, None for success."""

    error: str | None
    status: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Parcel:
    """What a try needs, outside any transaction."""

    id: str
    endpoint_id: str
    url: str
    event_id: str
    body: str
    secrets: tuple[str, ...]  # sealed


@dataclass(kw_only=True)
class Sender:
    """Sends what is due. `post` is replaced in tests."""

    db: Database
    settings: Settings
    post: Callable[..., int] = sender.post
    _vault: SecretVault = field(init=False)

    def __post_init__(self) -> None:
        self._vault = SecretVault(
            self.settings.keys_dir, make=self.settings.environment == "embedded"
        )

    def turn(self) -> int:
        """Takes up to eight due deliveries and tries each once; how many were tried."""
        parcels = self._take()
        if not parcels:
            return 0
        with ThreadPoolExecutor(len(parcels)) as pool:
            outcomes = list(pool.map(self._try, parcels))
        for parcel, outcome in zip(parcels, outcomes, strict=True):
            self._note(parcel, outcome)
        return len(parcels)

    def _take(self) -> list[_Parcel]:
        now = now_us()
        due = (
            select(WebhookDelivery)
            .where(
                WebhookDelivery.state == "pending",
                WebhookDelivery.not_before <= now,
                WebhookDelivery.held_until <= now,
            )
            .order_by(WebhookDelivery.not_before)
            .limit(AT_ONCE)
        )
        with self.db.reading() as session:
            if session.scalar(due.limit(1)) is None:  # an idle sender holds up no writer
                return []
        with self.db.transaction() as session:
            rows = session.scalars(due.with_for_update(skip_locked=True)).all()
            parcels = []
            for row in rows:
                endpoint = session.get_one(WebhookEndpoint, row.endpoint_id)
                if endpoint.state != "active":  # switched off while the event was written
                    row.state, row.ended_at = "failed", now
                    continue
                row.held_until = now + HOLD_SECONDS * SECOND
                parcels.append(_parcel(row, endpoint, now))
            return parcels

    def _try(self, parcel: _Parcel) -> Outcome:
        timestamp = now_us() // SECOND
        try:
            keys = [self._vault.open(sealed, parcel.endpoint_id) for sealed in parcel.secrets]
            status = self.post(
                parcel.url,
                body=parcel.body.encode(),
                headers={
                    "Content-Type": "application/json",
                    "User-Agent": "rldp-webhooks",
                    "webhook-id": parcel.event_id,
                    "webhook-timestamp": str(timestamp),
                    "webhook-signature": signature_header(
                        keys, event_id=parcel.event_id, timestamp=timestamp, body=parcel.body
                    ),
                },
                rules=rules_of(self.settings),
            )
        except (TargetRefused, SendFailed) as error:
            return Outcome(error=error.code)
        except (NotReady, SecretUnreadable):
            return Outcome(error="secret_unreadable")
        if 200 <= status < 300:
            return Outcome(error=None, status=status)
        return Outcome(error="gone" if status == GONE else "status_refused", status=status)

    def _note(self, parcel: _Parcel, outcome: Outcome) -> None:
        with self.db.transaction() as session:
            endpoint = _locked(session, WebhookEndpoint, parcel.endpoint_id)
            row = _locked(session, WebhookDelivery, parcel.id)
            if endpoint is None or row is None or row.state != "pending":
                return
            _book(session, endpoint, row, outcome)
        logger.info("webhook tried", extra={"code": outcome.error or "delivered"})


def _parcel(row: WebhookDelivery, endpoint: WebhookEndpoint, now: int) -> _Parcel:
    secrets = [endpoint.secret]
    if endpoint.previous_secret is not None and (endpoint.previous_until or 0) > now:
        secrets.append(endpoint.previous_secret)
    return _Parcel(
        id=row.id,
        endpoint_id=endpoint.id,
        url=endpoint.url,
        event_id=row.event_id,
        body=row.body,
        secrets=tuple(secrets),
    )


def _locked(session: Session, table: type[Row], row_id: str) -> Row | None:
    statement = select(table).where(table.id == row_id).with_for_update()
    return session.scalar(statement.execution_options(populate_existing=True))


def _book(
    session: Session, endpoint: WebhookEndpoint, row: WebhookDelivery, outcome: Outcome
) -> None:
    now = now_us()
    row.attempts += 1
    row.held_until = 0
    row.last_error, row.last_status = outcome.error, outcome.status
    if outcome.error is None:
        row.state, row.ended_at = "delivered", now
    elif outcome.error == "gone":
        disable(session, endpoint, "gone", now)
    elif row.attempts > len(WAITS):
        row.state, row.ended_at = "failed", now
        if not _heard_since(session, endpoint.id, row.created_at):
            disable(session, endpoint, "failing", now)
    else:
        wait = WAITS[row.attempts - 1] * (1 + JITTER * random.random())
        row.not_before = now + int(wait * SECOND)


def _heard_since(session: Session, endpoint_id: str, since: int) -> bool:
    statement = select(WebhookDelivery.id).where(
        WebhookDelivery.endpoint_id == endpoint_id, WebhookDelivery.ended_at >= since
    )
    return (
        session.scalar(statement.where(WebhookDelivery.state == "delivered").limit(1)) is not None
    )


def disable(
    session: Session, endpoint: WebhookEndpoint, reason: str, now: int, *, state: str = "disabled"
) -> None:
    """Owes the endpoint nothing more. What it was owed is kept as failed and can be replayed."""
    endpoint.state, endpoint.disabled_reason = state, reason
    endpoint.version += 1
    session.flush()
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint.id, WebhookDelivery.state == "pending")
        .values(state="failed", ended_at=now, held_until=0)
        .execution_options(synchronize_session=False)
    )


def forget_old(db: Database) -> None:
    """Drops deliveries that ended 30 days ago."""
    with db.transaction() as session:
        oldest = now_us() - KEPT_SECONDS * SECOND
        session.execute(delete(WebhookDelivery).where(WebhookDelivery.ended_at <= oldest))
