"""Routes of API keys: own keys for everybody, those of the tenant for its admin."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from service.auth import service
from service.auth.keys import LIFETIME_DAYS_DEFAULT, LIFETIME_DAYS_MAX
from service.auth.models import ApiKey
from service.auth.scopes import Scope
from service.dependencies import ReadDep, SessionDep, SubjectDep
from service.idempotency.once import OnceDep
from service.listing import ListQuery, page
from service.times import utc_text

router = APIRouter(prefix="/v1/api_keys", tags=["access"])


class KeyCreate(BaseModel):
    """How long the new key shall live, and what it may do of all that its owner may."""

    model_config = ConfigDict(extra="forbid")

    expires_in_days: int = Field(
        default=LIFETIME_DAYS_DEFAULT, ge=1, le=LIFETIME_DAYS_MAX, strict=True
    )
    scopes: list[Scope] | None = Field(default=None, min_length=1, max_length=20)


@router.post("", status_code=201)
def create_key(
    body: KeyCreate, subject: SubjectDep, session: SessionDep, response: Response, once: OnceDep
) -> dict[str, Any]:
    """Answers with the key's text, this once."""

    def make() -> dict[str, Any]:
        issued = service.make_own_key(session, subject, body.expires_in_days, body.scopes)
        row = service.one_key(session, subject, issued.key_id)
        response.headers["Location"] = f"/v1/api_keys/{row.id}"
        response.headers["ETag"] = service.etag_of(row)
        return {**key_to_dict(row), "key": issued.text}

    return once.answer(body, make, shown_once="key")


@router.get("")
def list_keys(
    subject: SubjectDep, session: ReadDep, query: Annotated[ListQuery, Query()]
) -> dict[str, Any]:
    return page(
        session,
        ApiKey,
        service.visible_keys(subject),
        after=query.after,
        limit=query.limit,
        show=key_to_dict,
    )


@router.get("/{key_id}")
def retrieve_key(
    key_id: str, subject: SubjectDep, session: ReadDep, response: Response
) -> dict[str, Any]:
    row = service.one_key(session, subject, key_id)
    response.headers["ETag"] = service.etag_of(row)
    return key_to_dict(row)


@router.delete("/{key_id}")
def revoke_key(
    key_id: str,
    subject: SubjectDep,
    session: SessionDep,
    if_match: Annotated[str | None, Header()] = None,
) -> dict[str, Any]:
    row = service.revoke_key(session, subject, key_id, if_match)
    return {"id": row.id, "object": "api_key", "deleted": True}


def key_to_dict(row: ApiKey) -> dict[str, Any]:
    """Never the digest; of the text only its first characters."""
    return {
        "id": row.id,
        "object": "api_key",
        "principal": row.principal_id,
        "prefix": row.prefix,
        "scopes": [held.scope for held in row.scope_rows] or None,
        "created_at": utc_text(row.created_at),
        "expires_at": utc_text(row.expires_at),
        "last_used_at": utc_text(row.last_used_at),
        "revoked_at": utc_text(row.revoked_at),
    }
