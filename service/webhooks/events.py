"""What can be heard of, and writing it down in the transaction that makes it true.

A body holds type, time, ids, state and reason codes of closed lists: nothing that a
patient's record could have changed (service.md 14, 15).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.database import now_us
from service.ids import new_id
from service.webhooks.models import WebhookDelivery, WebhookEndpoint

# Names of jobs' ends are OpenAI's, so that `client.webhooks.unwrap` knows them.
EventType = Literal[
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "fine_tuning.job.paused",
    "grant.proposed",
    "release.published",
    "budget.threshold",
    "ledger.alert",
]
EVENT_TYPES: frozenset[str] = frozenset(get_args(EventType))
TEST = "webhook.test"
SECOND = 1_000_000


def emit(
    session: Session, tenant_id: str | None, type: EventType, data: Mapping[str, str | None]
) -> int:
    """Owes the event to every active endpoint that asked for it; how many there are.

    `data` holds ids, states and codes. Without a tenant it is for all of them.
    """
    statement = select(WebhookEndpoint).where(WebhookEndpoint.state == "active")
    if tenant_id is not None:
        statement = statement.where(WebhookEndpoint.tenant_id == tenant_id)
    owed = [row for row in session.scalars(statement) if type in row.events]
    if owed:
        owe(session, owed, type=type, data=data)
    return len(owed)


def owe(
    session: Session,
    endpoints: Sequence[WebhookEndpoint],
    *,
    type: str,
    data: Mapping[str, str | None],
) -> list[WebhookDelivery]:
    """One delivery of one event for each endpoint, due now."""
    now, event_id = now_us(), new_id("evt_")
    event = {
        "object": "event",
        "id": event_id,
        "type": type,
        "created_at": now // SECOND,
        "data": dict(data),
    }
    body = json.dumps(event, sort_keys=True, separators=(",", ":"))
    rows = [_delivery(endpoint.id, event_id, type, body, now) for endpoint in endpoints]
    session.add_all(rows)
    session.flush()
    return rows


def owe_again(session: Session, sent: WebhookDelivery) -> WebhookDelivery:
    """The same event under the same `webhook-id`, as a delivery of its own."""
    row = _delivery(sent.endpoint_id, sent.event_id, sent.type, sent.body, now_us())
    session.add(row)
    session.flush()
    return row


def _delivery(endpoint_id: str, event_id: str, type: str, body: str, now: int) -> WebhookDelivery:
    return WebhookDelivery(
        id=new_id("whd_"),
        endpoint_id=endpoint_id,
        event_id=event_id,
        type=type,
        body=body,
        state="pending",
        attempts=0,
        not_before=now,
        held_until=0,
        created_at=now,
    )
