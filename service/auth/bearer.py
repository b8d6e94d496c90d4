"""Whose credential came with a request: an API key, or a token of the identity provider."""

from __future__ import annotations

import logging
from typing import Any

from service.auth.identities import owner_of_claims
from service.auth.key_sets import SourceUnavailable
from service.auth.keys import KeyOwner, authenticate
from service.auth.provider import provider_of
from service.auth.tokens import TokenRefused, looks_like_token
from service.database import Database
from service.errors import NotReady

logger = logging.getLogger(__name__)


def owner_of_bearer(state: Any, text: str) -> KeyOwner | None:
    """The owner, or None if the credential opens nothing. Call it outside any transaction.

    Raises:
        NotReady: the provider's keys cannot be had, so nobody can tell.
    """
    database: Database = state.database
    if not looks_like_token(text):
        return authenticate(database, text)
    provider = provider_of(state)
    if provider is None or not provider.settings.oidc_audience:
        return None
    try:
        claims = provider.api_claims(text)
        with database.reading() as session:
            return owner_of_claims(session, claims, issuer=provider.issuer, rules=provider.rules)
    except TokenRefused as refused:
        logger.info("token refused", extra={"code": refused.code})  # never a part of the token
        return None
    except SourceUnavailable:
        raise NotReady({"identity_provider": "unreachable"}) from None
