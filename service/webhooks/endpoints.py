"""Routes of webhooks: for the stewards of a hospital (service.md 6, 15)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from service.addresses import URL_LENGTH_MAX, Rules, rules_of
from service.dependencies import ReadDep, SessionDep, SettingsDep, StewardDep
from service.idempotency.once import OnceDep
from service.listing import ListQuery, page
from service.settings import Settings
from service.webhooks import service
from service.webhooks.events import EventType
from service.webhooks.models import WebhookDelivery, WebhookEndpoint
from service.webhooks.vault import SecretVault

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

Url = Annotated[str, Field(min_length=1, max_length=URL_LENGTH_MAX, strict=True)]
Events = Annotated[list[EventType], Field(min_length=1, max_length=20)]
IfMatch = Annotated[str | None, Header()]


class WebhookCreate(BaseModel):
    """Where to send, and what."""

    model_config = ConfigDict(extra="forbid")

    url: Url
    events: Events


class WebhookChange(BaseModel):
    """What shall be different; the rest stays."""

    model_config = ConfigDict(extra="forbid")

    url: Url | None = None
    events: Events | None = None
    state: Literal["active", "disabled"] | None = None


def get_rules(settings: SettingsDep) -> Rules:
    return rules_of(settings)


def get_secret_vault(settings: SettingsDep) -> SecretVault:
    return vault_of(settings)


def vault_of(settings: Settings) -> SecretVault:
    return SecretVault(settings.keys_dir, make=settings.environment == "embedded")


RulesDep = Annotated[Rules, Depends(get_rules)]
SecretVaultDep = Annotated[SecretVault, Depends(get_secret_vault)]


@router.post("", status_code=201)
def create_webhook(
    body: WebhookCreate,
    subject: StewardDep,
    session: SessionDep,
    vault: SecretVaultDep,
    rules: RulesDep,
    response: Response,
    once: OnceDep,
) -> dict[str, Any]:
    """Answers with the secret, this once."""

    def make() -> dict[str, Any]:
        endpoint, secret = service.register(
            session, subject, vault, rules, url=body.url, events=list(body.events)
        )
        response.headers["Location"] = f"/v1/webhooks/{endpoint.id}"
        return {**_shown(endpoint, response), "secret": secret}

    return once.answer(body, make, shown_once="secret")


def _shown(endpoint: WebhookEndpoint, response: Response) -> dict[str, Any]:
    response.headers["ETag"] = service.etag_of(endpoint)
    return service.endpoint_to_dict(endpoint)


@router.get("")
def list_webhooks(
    subject: StewardDep, session: ReadDep, query: Annotated[ListQuery, Query()]
) -> dict[str, Any]:
    return page(
        session,
        WebhookEndpoint,
        service.visible_endpoints(subject),
        after=query.after,
        limit=query.limit,
        show=service.endpoint_to_dict,
    )


@router.get("/{webhook_id}")
def get_webhook(
    webhook_id: str, subject: StewardDep, session: ReadDep, response: Response
) -> dict[str, Any]:
    return _shown(service.one_endpoint(session, subject, webhook_id), response)


@router.patch("/{webhook_id}")
def change_webhook(
    webhook_id: str,
    body: WebhookChange,
    subject: StewardDep,
    session: SessionDep,
    rules: RulesDep,
    response: Response,
    if_match: IfMatch = None,
) -> dict[str, Any]:
    """Also switches an endpoint off, or on again; what it missed can be replayed."""
    endpoint = service.one_endpoint(session, subject, webhook_id, for_update=True)
    service.require_match(endpoint, if_match)
    service.change(
        session,
        endpoint,
        rules,
        url=body.url,
        events=None if body.events is None else list(body.events),
        state=body.state,
    )
    return _shown(endpoint, response)


@router.delete("/{webhook_id}")
def delete_webhook(
    webhook_id: str, subject: StewardDep, session: SessionDep, if_match: IfMatch = None
) -> dict[str, Any]:
    endpoint = service.one_endpoint(session, subject, webhook_id, for_update=True)
    service.require_match(endpoint, if_match)
    service.remove(session, endpoint)
    return {"id": webhook_id, "object": "webhook", "deleted": True}


@router.post("/{webhook_id}/rotate")
def rotate_secret(
    webhook_id: str,
    subject: StewardDep,
    session: SessionDep,
    vault: SecretVaultDep,
    response: Response,
    once: OnceDep,
) -> dict[str, Any]:
    """A new secret, shown this once. For a day deliveries carry both signatures."""

    def make() -> dict[str, Any]:
        endpoint = service.one_endpoint(session, subject, webhook_id, for_update=True)
        secret = service.rotate(session, endpoint, vault)
        return {**_shown(endpoint, response), "secret": secret}

    return once.answer(None, make, shown_once="secret")


@router.post("/{webhook_id}/test", status_code=201)
def test_webhook(
    webhook_id: str, subject: StewardDep, session: SessionDep, response: Response, once: OnceDep
) -> dict[str, Any]:
    """Owes it an event `webhook.test`; its delivery tells how that went."""

    def make() -> dict[str, Any]:
        endpoint = service.one_endpoint(session, subject, webhook_id)
        return _owed(service.test(session, endpoint), response)

    return once.answer(None, make)


@router.get("/{webhook_id}/deliveries")
def list_deliveries(
    webhook_id: str, subject: StewardDep, session: ReadDep, query: Annotated[ListQuery, Query()]
) -> dict[str, Any]:
    """Newest first; those that ended 30 days ago are gone."""
    endpoint = service.one_endpoint(session, subject, webhook_id)
    return page(
        session,
        WebhookDelivery,
        service.visible_deliveries(endpoint),
        after=query.after,
        limit=query.limit,
        show=service.delivery_to_dict,
    )


@router.post("/{webhook_id}/deliveries/{delivery_id}/replay", status_code=201)
def replay_delivery(
    webhook_id: str,
    delivery_id: str,
    subject: StewardDep,
    session: SessionDep,
    response: Response,
    once: OnceDep,
) -> dict[str, Any]:
    """Sends an event once more, under the same `webhook-id`."""

    def make() -> dict[str, Any]:
        endpoint = service.one_endpoint(session, subject, webhook_id)
        return _owed(service.replay(session, endpoint, delivery_id), response)

    return once.answer(None, make)


def _owed(delivery: WebhookDelivery, response: Response) -> dict[str, Any]:
    response.headers["Location"] = f"/v1/webhooks/{delivery.endpoint_id}/deliveries"
    return service.delivery_to_dict(delivery)
