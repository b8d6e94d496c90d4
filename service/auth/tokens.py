"""Checks signed tokens of an identity provider (RFC 7519, 8725): who says what about whom.

==========================================  ====================
token                                       refused with code
==========================================  ====================
too long, no JWT, critical header, of a     `malformed`
sender-constrained or other kind
algorithm that is not allowed               `algorithm`
key id that the provider does not know      `key_unknown`
changed after it was signed                 `signature`
of another issuer; for another audience     `issuer`; `audience`
over, issued too long ago; not yet valid    `expired`; `too_early`
without a claim that is needed              `claim_missing`
an ID token of another sign-in              `nonce`
==========================================  ====================
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from jwt.exceptions import (
    ExpiredSignatureError,
    ImmatureSignatureError,
    InvalidAlgorithmError,
    InvalidAudienceError,
    InvalidIssuerError,
    InvalidSignatureError,
    MissingRequiredClaimError,
    PyJWTError,
)

from service.auth.key_sets import KeySet

LENGTH_MAX = 16_384
KINDS = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
CODES: tuple[tuple[type[PyJWTError], str], ...] = (
    (ExpiredSignatureError, "expired"),
    (ImmatureSignatureError, "too_early"),
    (InvalidIssuerError, "issuer"),
    (InvalidAudienceError, "audience"),
    (InvalidAlgorithmError, "algorithm"),
    (InvalidSignatureError, "signature"),
    (MissingRequiredClaimError, "claim_missing"),
)


class TokenRefused(Exception):
    """The token opens nothing. `code` is of a closed list; the text never quotes the token."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(code)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a token has to say, and how old it may be."""

    issuer: str
    audience: str
    algorithms: Collection[str]
    leeway_seconds: int = 30
    seconds_max: int | None = None  # since it was issued, whatever end it names
    nonce: str | None = None


def looks_like_token(text: str) -> bool:
    """Three parts with dots between; an API key has none."""
    return text.count(".") == 2


def claims_of(text: str, keys: KeySet, expected: Expected) -> dict[str, Any]:
    """The claims of a token that was found good.

    Raises:
        TokenRefused: see the table above.
        SourceUnavailable: the provider's keys cannot be had.
    """
    header = _header_of(text)
    if header.get("alg") not in expected.algorithms:
        raise TokenRefused("algorithm")
    key_id = header.get("kid")
    if not isinstance(key_id, str | None):
        raise TokenRefused("malformed")
    key = keys.key(key_id)
    if key is None:
        raise TokenRefused("key_unknown")
    try:
        claims: dict[str, Any] = jwt.decode(
            text,
            key,  # bound to its own algorithm, whatever the header says
            algorithms=list(expected.algorithms),
            issuer=expected.issuer,
            audience=expected.audience,
            leeway=expected.leeway_seconds,
            options={
                "require": ["iss", "aud", "exp", "iat", "sub"],
                "enforce_minimum_key_length": True,
            },
        )
        _check_more(claims, expected)
    except PyJWTError as error:
        raise TokenRefused(_code_of(error)) from None
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise TokenRefused("malformed") from None
    return claims


def _header_of(text: str) -> Mapping[str, Any]:
    if len(text) > LENGTH_MAX or not text.isascii() or not looks_like_token(text):
        raise TokenRefused("malformed")
    try:
        header: Mapping[str, Any] = jwt.get_unverified_header(text)
    except (PyJWTError, ValueError, RecursionError):
        raise TokenRefused("malformed") from None
    kind = header.get("typ", "JWT")
    if "crit" in header or not isinstance(kind, str) or kind.lower() not in KINDS:
        raise TokenRefused("malformed")
    return header


def _check_more(claims: Mapping[str, Any], expected: Expected) -> None:
    """What the library leaves to us."""
    if "cnf" in claims:  # bound to a key of its sender, which a bearer does not prove
        raise TokenRefused("malformed")
    oldest = time.time() - expected.leeway_seconds - (expected.seconds_max or float("inf"))
    if float(claims["iat"]) < oldest:
        raise TokenRefused("expired")
    if expected.nonce is None:
        return
    if claims.get("nonce") != expected.nonce:  # an ID token (OpenID Connect Core 3.1.3.7)
        raise TokenRefused("nonce")
    has_several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
    if (has_several or "azp" in claims) and claims.get("azp") != expected.audience:
        raise TokenRefused("audience")


def _code_of(error: PyJWTError) -> str:
    return next((code for kind, code in CODES if isinstance(error, kind)), "malformed")
