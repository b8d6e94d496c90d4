"""The authorisation code flow with PKCE (OpenID Connect Core 3.1, RFC 7636, RFC 9207).

`begin` says where the browser goes, and what it must bring back; `finish` turns what it
brings into checked claims. Only `openid` is asked for: no name, no mail address.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from service.auth.key_sets import SourceUnavailable
from service.auth.provider import Provider
from service.auth.tokens import TokenRefused

SECRET_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Started:
    """A sign-in on its way. All three are secrets of one browser, for a quarter of an hour."""

    state: str
    nonce: str
    verifier: str


def begin(provider: Provider) -> tuple[str, Started]:
    """The provider's address to go to, with what only this browser knows.

    Raises:
        SourceUnavailable: the provider cannot be reached.
    """
    settings = provider.settings
    started = Started(
        state=secrets.token_urlsafe(SECRET_BYTES),
        nonce=secrets.token_urlsafe(SECRET_BYTES),
        verifier=secrets.token_urlsafe(SECRET_BYTES),
    )
    asked = {
        "response_type": "code",
        "client_id": settings.oidc_client_id,
        "redirect_uri": settings.oidc_redirect_url,
        "scope": "openid",
        "state": started.state,
        "nonce": started.nonce,
        "code_challenge": _challenge(started.verifier),
        "code_challenge_method": "S256",
    }
    address = provider.description().authorization_endpoint
    return f"{address}{'&' if '?' in address else '?'}{urlencode(asked)}", started


def finish(provider: Provider, started: Started, code: str) -> dict[str, Any]:
    """The claims of whoever came back with this code.

    Raises:
        SourceUnavailable: the provider cannot be reached, or does not take the code.
        TokenRefused: its answer is no good ID token for this sign-in.
    """
    settings = provider.settings
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": settings.oidc_redirect_url,
        "code_verifier": started.verifier,
    }
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    if settings.oidc_client_secret_file is None:
        form["client_id"] = settings.oidc_client_id
    else:
        headers["Authorization"] = _basic(settings.oidc_client_id, _secret(provider))
    address = provider.description().token_endpoint
    answer = provider.ask("POST", address, headers=headers, body=urlencode(form).encode())
    token = answer.get("id_token")
    if not isinstance(token, str):
        raise TokenRefused("malformed")
    return provider.sign_in_claims(token, started.nonce)


def _challenge(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _secret(provider: Provider) -> str:
    file = provider.settings.oidc_client_secret_file
    assert file is not None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError):
        raise SourceUnavailable from None


def _basic(client_id: str, secret: str) -> str:
    """RFC 6749 2.3.1: both are form-encoded before they are joined."""
    joined = f"{quote(client_id, safe='')}:{quote(secret, safe='')}"
    return f"Basic {base64.b64encode(joined.encode()).decode()}"
