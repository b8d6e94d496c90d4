"""Rules of webhook endpoints: a steward's, of their hospital, ten at most (service.md 15, 16)."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from service.addresses import Rules, TargetRefused, target_of
from service.auth.subject import Subject
from service.database import now_us
from service.errors import (
    EtagMismatch,
    FieldInvalid,
    NotFound,
    PreconditionRequired,
    ServiceError,
    StateConflict,
)
from service.ids import new_id
from service.times import utc_text
from service.webhooks.deliveries import disable
from service.webhooks.events import TEST, owe, owe_again
from service.webhooks.models import WebhookDelivery, WebhookEndpoint
from service.webhooks.vault import SecretVault, new_secret

ENDPOINTS_MAX = 10
OVERLAP_US = 24 * 3600 * 1_000_000  # an old secret still signs for a day


def visible_endpoints(subject: Subject) -> Select[WebhookEndpoint]:
    """Those of the steward's hospital that are not deleted."""
    return select(WebhookEndpoint).where(
        WebhookEndpoint.tenant_id == subject.tenant_id, WebhookEndpoint.state != "deleted"
    )


def one_endpoint(
    session: Session, subject: Subject, endpoint_id: str, *, for_update: bool = False
) -> WebhookEndpoint:
    """Raises NotFound when the caller may not see it."""
    statement = visible_endpoints(subject).where(WebhookEndpoint.id == endpoint_id)
    if for_update:
        statement = statement.with_for_update().execution_options(populate_existing=True)
    found = session.scalar(statement)
    if found is None:
        raise NotFound
    return found


def visible_deliveries(endpoint: WebhookEndpoint) -> Select[WebhookDelivery]:
    """Of an endpoint that the caller was found to see."""
    return select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint.id)


def register(
    session: Session,
    subject: Subject,
    vault: SecretVault,
    rules: Rules,
    *,
    url: str,
    events: list[str],
) -> tuple[WebhookEndpoint, str]:
    """A new active endpoint and its secret, which is shown this once.

    Raises:
        FieldInvalid: the URL is not one to send to.
        ServiceError: 429 `quota_exceeded`, ten are there already.
    """
    _check_url(url, rules)
    count = session.scalar(select(func.count()).select_from(visible_endpoints(subject).subquery()))
    if (count or 0) >= ENDPOINTS_MAX:
        raise ServiceError(429, "quota_exceeded", "Delete a webhook first: 10 are there already.")
    endpoint_id, secret = new_id("wh_"), new_secret()
    endpoint = WebhookEndpoint(
        id=endpoint_id,
        tenant_id=subject.tenant_id,
        created_by=subject.principal_id,
        url=url,
        events=sorted(set(events)),
        state="active",
        secret=vault.seal(secret, endpoint_id),
        version=1,
        created_at=now_us(),
    )
    session.add(endpoint)
    session.flush()
    return endpoint, secret


def change(
    session: Session,
    endpoint: WebhookEndpoint,
    rules: Rules,
    *,
    url: str | None,
    events: list[str] | None,
    state: str | None,
) -> None:
    """Changes what was given. Back to `active`, it hears of what happens from now on."""
    if url is not None:
        _check_url(url, rules)
        endpoint.url = url
    if events is not None:
        endpoint.events = sorted(set(events))
    if state == "active":
        endpoint.state, endpoint.disabled_reason = "active", None
    elif state == "disabled" and endpoint.state == "active":
        disable(session, endpoint, "by_steward", now_us())
    endpoint.version += 1
    session.flush()


def remove(session: Session, endpoint: WebhookEndpoint) -> None:
    """Forgets its secrets; nothing more is sent."""
    disable(session, endpoint, "by_steward", now_us(), state="deleted")
    endpoint.secret = ""
    endpoint.previous_secret = endpoint.previous_until = None
    session.flush()


def rotate(session: Session, endpoint: WebhookEndpoint, vault: SecretVault) -> str:
    """A new secret, shown this once. For a day the one before signs as well."""
    secret = new_secret()
    endpoint.previous_secret, endpoint.previous_until = endpoint.secret, now_us() + OVERLAP_US
    endpoint.secret = vault.seal(secret, endpoint.id)
    endpoint.version += 1
    session.flush()
    return secret


def test(session: Session, endpoint: WebhookEndpoint) -> WebhookDelivery:
    """Owes it a `webhook.test`.

    Raises:
        StateConflict: it is disabled.
    """
    _require_active(endpoint)
    return owe(session, [endpoint], type=TEST, data={"id": endpoint.id})[0]


def replay(session: Session, endpoint: WebhookEndpoint, delivery_id: str) -> WebhookDelivery:
    """Owes it an event once more, under the `webhook-id` it had.

    Raises:
        NotFound: no such delivery.
        StateConflict: the endpoint is disabled, or the delivery is still on its way.
    """
    sent = session.scalar(visible_deliveries(endpoint).where(WebhookDelivery.id == delivery_id))
    if sent is None:
        raise NotFound
    _require_active(endpoint)
    if sent.state == "pending":
        raise StateConflict("This delivery is still on its way.")
    return owe_again(session, sent)


def _require_active(endpoint: WebhookEndpoint) -> None:
    if endpoint.state != "active":
        raise StateConflict("The webhook is disabled. Set its state to active first.")


def _check_url(url: str, rules: Rules) -> None:
    try:
        target_of(url, rules)
    except TargetRefused as refused:
        raise FieldInvalid("url", str(refused)) from None


def require_match(endpoint: WebhookEndpoint, if_match: str | None) -> None:
    """Raises PreconditionRequired, EtagMismatch."""
    if if_match is None:
        raise PreconditionRequired
    if if_match.strip() not in ("*", etag_of(endpoint)):
        raise EtagMismatch


def etag_of(endpoint: WebhookEndpoint) -> str:
    return f'"{endpoint.id}.{endpoint.version}"'


def endpoint_to_dict(endpoint: WebhookEndpoint) -> dict[str, Any]:
    """Never a secret."""
    return {
        "id": endpoint.id,
        "object": "webhook",
        "url": endpoint.url,
        "events": list(endpoint.events),
        "state": endpoint.state,
        "disabled_reason": endpoint.disabled_reason,
        "created_by": endpoint.created_by,
        "created_at": utc_text(endpoint.created_at),
        "previous_secret_until": utc_text(endpoint.previous_until),
    }


def delivery_to_dict(row: WebhookDelivery) -> dict[str, Any]:
    """What was owed and how it went; of the answer only its status."""
    return {
        "id": row.id,
        "object": "webhook.delivery",
        "webhook": row.endpoint_id,
        "event_id": row.event_id,
        "type": row.type,
        "state": row.state,
        "attempts": row.attempts,
        "last_error": row.last_error,
        "last_status": row.last_status,
        "next_attempt_at": utc_text(row.not_before) if row.state == "pending" else None,
        "created_at": utc_text(row.created_at),
        "ended_at": utc_text(row.ended_at),
        "body": row.body,
    }
