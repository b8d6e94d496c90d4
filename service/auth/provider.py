"""The one identity provider of an installation: its description, its keys, its tokens.

What is read from the provider is hostile input. Addresses are checked as those of webhooks
are; https only, but for a provider on this very machine in an embedded installation.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from service.addresses import Rules, TargetRefused, networks_of
from service.auth.identities import ClaimRules
from service.auth.key_sets import KeySet, SourceUnavailable
from service.auth.tokens import Expected, claims_of
from service.outbound import SendFailed, exchange
from service.settings import Settings

logger = logging.getLogger(__name__)

DOCUMENT_BYTES_MAX = 256 * 1024
TIMEOUT_SECONDS = 5.0
DESCRIPTION_SECONDS = 3600
WELL_KNOWN = "/.well-known/openid-configuration"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a provider says of itself (OpenID Connect Discovery 1.0)."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str


class Provider:
    """Reads the provider and checks its tokens; shared by the threads of one process."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        assert settings.oidc_issuer, "no provider is configured"
        self.settings = settings
        self.issuer = settings.oidc_issuer
        self.rules = ClaimRules.of(settings)
        self.algorithms = tuple(part.strip() for part in settings.oidc_algorithms.split(","))
        self.keys = KeySet(self._key_document, algorithms=self.algorithms, clock=clock)
        self._clock = clock
        self._described: tuple[float, Description] | None = None
        self._lock = threading.Lock()

    def api_claims(self, text: str) -> dict[str, Any]:
        """Claims of an access token for the API. Raises TokenRefused, SourceUnavailable."""
        return claims_of(text, self.keys, self._expected(self.settings.oidc_audience))

    def sign_in_claims(self, text: str, nonce: str) -> dict[str, Any]:
        """Claims of an ID token that answers our own sign-in. Raises as `api_claims` does."""
        return claims_of(text, self.keys, self._expected(self.settings.oidc_client_id, nonce))

    def _expected(self, audience: str, nonce: str | None = None) -> Expected:
        return Expected(
            issuer=self.issuer,
            audience=audience,
            algorithms=self.algorithms,
            leeway_seconds=self.settings.oidc_leeway_seconds,
            seconds_max=self.settings.oidc_token_seconds_max,
            nonce=nonce,
        )

    def description(self) -> Description:
        """The provider's own, read at most once an hour. Raises SourceUnavailable."""
        with self._lock:
            now = self._clock()
            if self._described is None or now - self._described[0] > DESCRIPTION_SECONDS:
                self._described = (now, self._read_description())
            return self._described[1]

    def _read_description(self) -> Description:
        document = self.ask("GET", self.issuer.rstrip("/") + WELL_KNOWN)
        wanted = ("authorization_endpoint", "token_endpoint", "jwks_uri")
        found = {name: document.get(name) for name in wanted}
        if document.get("issuer") != self.issuer:
            raise SourceUnavailable  # another provider's (RFC 8414 3.3)
        if not all(isinstance(url, str) and self._is_address(url) for url in found.values()):
            raise SourceUnavailable
        return Description(**{name: str(url) for name, url in found.items()})

    def _key_document(self) -> bytes:
        source = self.settings.oidc_jwks
        if source and "://" not in source:
            try:
                with open(source, "rb") as file:  # noqa: PTH123
                    return file.read(DOCUMENT_BYTES_MAX)
            except OSError:
                raise SourceUnavailable from None
        return self._body("GET", source or self.description().jwks_uri)

    def ask(self, method: str, url: str, **request: Any) -> dict[str, Any]:
        """A JSON object from the provider. Raises SourceUnavailable."""
        try:
            parsed = json.loads(self._body(method, url, **request))
        except (ValueError, RecursionError):
            raise SourceUnavailable from None
        if not isinstance(parsed, dict):
            raise SourceUnavailable
        return parsed

    def _body(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> bytes:
        try:
            answer = exchange(
                method,
                url,
                headers={"Accept": "application/json", **(headers or {})},
                rules=self._rules_of(url),
                timeout_seconds=TIMEOUT_SECONDS,
                body=body,
                read_bytes_max=DOCUMENT_BYTES_MAX,
            )
        except (TargetRefused, SendFailed) as error:
            logger.warning("identity provider unreachable", extra={"code": error.code})
            raise SourceUnavailable from None
        if answer.status != 200:
            logger.warning("identity provider refused", extra={"status": answer.status})
            raise SourceUnavailable
        return answer.body

    def _rules_of(self, url: str) -> Rules:
        networks = networks_of(self.settings.oidc_networks_allowed)
        if self._is_on_this_machine(url):
            return Rules(is_http_allowed=True, networks_allowed=networks_of(f"{LOOPBACK}/32"))
        return Rules(networks_allowed=networks)

    def _is_on_this_machine(self, url: str) -> bool:
        try:
            host = urlsplit(url).hostname
        except ValueError:
            return False
        return self.settings.environment == "embedded" and host == LOOPBACK

    def _is_address(self, url: str) -> bool:
        """Whether a browser may be sent there, and we may ask there."""
        return url.startswith("https://") or self._is_on_this_machine(url)


def provider_of(state: Any) -> Provider | None:
    """That of an application, made at first use from its settings; None if none is configured."""
    if not state.settings.oidc_issuer:
        return None
    if getattr(state, "identity_provider", None) is None:
        state.identity_provider = Provider(state.settings)
    found: Provider = state.identity_provider
    return found
