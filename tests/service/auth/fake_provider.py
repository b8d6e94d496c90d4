"""An identity provider of the tests: keys, tokens, and a server on loopback that speaks OIDC.

Its authorisation page asks nobody: whoever comes is `user`. The token endpoint checks what a
real one would: code, PKCE verifier, client and redirect URL.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE = "rldp-api"
CLIENT = "rldp-dashboard"
USER = "8d0c-user"
_WRITERS: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}


@dataclass(frozen=True)
class SigningKey:
    """A private key with its id."""

    key_id: str
    algorithm: str
    private: Any = field(repr=False)

    @property
    def jwk(self) -> dict[str, Any]:
        found: dict[str, Any] = _WRITERS[self.algorithm].to_jwk(
            self.private.public_key(), as_dict=True
        )
        found.pop("key_ops", None)
        return found | {"kid": self.key_id, "use": "sig", "alg": self.algorithm}

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        return jwt.encode(
            claims, self.private, self.algorithm, headers={"kid": self.key_id, **header}
        )


@cache
def signing_key(key_id: str, algorithm: str = "ES256") -> SigningKey:
    if algorithm == "RS256":
        return SigningKey(key_id, algorithm, rsa.generate_private_key(65537, 2048))
    if algorithm == "ES256":
        return SigningKey(key_id, algorithm, ec.generate_private_key(ec.SECP256R1()))
    return SigningKey(key_id, algorithm, ed25519.Ed25519PrivateKey.generate())


def key_document(*keys: SigningKey) -> bytes:
    return json.dumps({"keys": [key.jwk for key in keys]}).encode()


def claims(issuer: str, **changes: Any) -> dict[str, Any]:
    """Those of a good access token; a claim that is None is left out."""
    now = int(time.time())
    made: dict[str, Any] = {
        "iss": issuer,
        "aud": AUDIENCE,
        "sub": USER,
        "iat": now,
        "exp": now + 300,
        "amr": ["pwd", "mfa"],
    } | changes
    return {name: value for name, value in made.items() if value is not None}


@dataclass
class FakeProvider:
    """What the server answers may be changed while it runs; `asked` counts requests by path."""

    issuer: str = ""
    user: str = USER
    keys: list[SigningKey] = field(default_factory=lambda: [signing_key("first")])
    changes: dict[str, Any] = field(default_factory=dict)  # of the claims of the next ID tokens
    nonce: str | None = None  # instead of the one that was asked for
    client_secret: str = ""
    is_down: bool = False
    asked: dict[str, int] = field(default_factory=dict)
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def token(self, **changes: Any) -> str:
        """An access token for the API."""
        return self.keys[-1].sign(claims(self.issuer, **changes))

    def answer(self, path: str) -> dict[str, Any] | None:
        if path == "/.well-known/openid-configuration":
            return {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
            }
        if path == "/keys":
            return dict(json.loads(key_document(*self.keys)))
        return None

    def authorize(self, query: str) -> str:
        """Where the browser is sent back to."""
        asked = {name: values[0] for name, values in parse_qs(query).items()}
        assert asked["response_type"] == "code" and asked["client_id"] == CLIENT
        assert asked["code_challenge_method"] == "S256" and "openid" in asked["scope"].split()
        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        back = urlencode({"code": code, "state": asked["state"], "iss": self.issuer})
        return f"{asked['redirect_uri']}?{back}"

    def redeem(self, form: dict[str, str], authorization: str) -> dict[str, Any] | None:
        """The answer of the token endpoint; None for 400."""
        asked = self._codes.pop(form.get("code", ""), None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if asked is None or asked["code_challenge"] != challenge:
            return None
        if form.get("redirect_uri") != asked["redirect_uri"]:
            return None
        if self.client_secret:
            basic = base64.b64encode(f"{CLIENT}:{self.client_secret}".encode()).decode()
            if authorization != f"Basic {basic}":
                return None
        elif form.get("client_id") != CLIENT:
            return None
        told = {"aud": CLIENT, "sub": self.user, "nonce": self.nonce or asked["nonce"]}
        made = claims(self.issuer, **{**told, **self.changes})
        return {"id_token": self.keys[-1].sign(made), "token_type": "Bearer"}


def _handler(provider: FakeProvider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            provider.asked[parts.path] = provider.asked.get(parts.path, 0) + 1
            if parts.path == "/authorize":
                self.send_response(302)
                self.send_header("Location", provider.authorize(parts.query))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self._json(None if provider.is_down else provider.answer(parts.path))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            self._json(provider.redeem(form, self.headers.get("Authorization", "")))

        def _json(self, found: dict[str, Any] | None) -> None:
            body = json.dumps(found or {"error": "invalid_grant"}).encode()
            self.send_response(200 if found is not None else 400)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def open_provider(**values: Any) -> Iterator[FakeProvider]:
    """A provider on a free port of this machine."""
    provider = FakeProvider(**values)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(provider))
    provider.issuer = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
