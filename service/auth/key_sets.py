"""The public keys of an identity provider (RFC 7517), kept for ten minutes.

A key id that is not known makes the set be read again, at most once a minute: a provider
may change its keys at any time, and a caller who invents key ids must not make us ask.
While the provider is away the keys serve on for an hour, then none does.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from jwt import PyJWK
from jwt.exceptions import PyJWTError

logger = logging.getLogger(__name__)

FRESH_SECONDS = 600
STALE_SECONDS_MAX = 3600
ASK_SECONDS_MIN = 60
KEYS_MAX = 100
_TYPES = {"RS256": ("RSA", None), "ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519")}


class SourceUnavailable(Exception):
    """The provider, or the file with its keys, cannot be read just now."""


class KeySet:
    """Keys by id, of the algorithms that are allowed here.

    `read` returns the document's bytes or raises SourceUnavailable; it is called with a lock
    held and has to end in seconds. `clock` gives seconds that never go back.
    """

    def __init__(
        self,
        read: Callable[[], bytes],
        *,
        algorithms: Collection[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._algorithms, self._clock = read, frozenset(algorithms), clock
        self._keys: dict[str | None, PyJWK] = {}
        self._read_at: float | None = None
        self._asked_at: float | None = None
        self._turn = threading.Lock()

    def key(self, key_id: str | None) -> PyJWK | None:
        """The key of this id; without an id, the only one there is.

        Raises:
            SourceUnavailable: there are no keys, or none that are fresh enough.
        """
        # With keys at hand nobody waits for the one who asks.
        if self._must_ask(key_id) and self._turn.acquire(blocking=self._age() is None):
            try:
                if self._must_ask(key_id):
                    self._ask()
            finally:
                self._turn.release()
        age = self._age()
        if age is None or age > STALE_SECONDS_MAX:
            raise SourceUnavailable
        return self._find(key_id)

    def _find(self, key_id: str | None) -> PyJWK | None:
        keys = self._keys
        if key_id is not None:
            return keys.get(key_id)
        return next(iter(keys.values())) if len(keys) == 1 else None

    def _must_ask(self, key_id: str | None) -> bool:
        now = self._clock()
        if self._asked_at is not None and now - self._asked_at < ASK_SECONDS_MIN:
            return False
        age = self._age()
        return age is None or age > FRESH_SECONDS or self._find(key_id) is None

    def _age(self) -> float | None:
        return None if self._read_at is None else self._clock() - self._read_at

    def _ask(self) -> None:
        self._asked_at = self._clock()
        try:
            self._keys = usable_keys(self._read(), self._algorithms)
            self._read_at = self._asked_at
        except (SourceUnavailable, ValueError) as error:
            logger.warning("provider's keys not read", extra={"code": type(error).__name__})


def usable_keys(document: bytes, algorithms: Collection[str]) -> dict[str | None, PyJWK]:
    """The public signature keys of a JWK set, by id; what is of no use here is left out.

    Left out: shared secrets, keys for encryption, other curves and algorithms, and a key
    whose private half was published. Raises ValueError if it is no key set.
    """
    parsed = json.loads(document)
    listed = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(listed, list) or len(listed) > KEYS_MAX:
        raise ValueError("no JWK set")
    found: dict[str | None, PyJWK] = {}
    for jwk in listed:
        key = _usable(jwk, algorithms) if isinstance(jwk, dict) else None
        if key is not None:
            found[key.key_id] = key
    return found


def _usable(jwk: dict[str, Any], algorithms: Collection[str]) -> PyJWK | None:
    algorithm = next((a for a in algorithms if _TYPES[a] == (jwk.get("kty"), _curve(jwk))), None)
    operations = jwk.get("key_ops", ["verify"])
    if (
        algorithm is None
        or jwk.get("alg", algorithm) != algorithm
        or jwk.get("use", "sig") != "sig"
        or not isinstance(operations, list)
        or "verify" not in operations
        or "d" in jwk
        or not isinstance(jwk.get("kid"), str | None)
    ):
        return None
    try:
        return PyJWK(jwk, algorithm=algorithm)
    except (PyJWTError, ValueError, TypeError, KeyError):
        return None


def _curve(jwk: dict[str, Any]) -> Any:
    return None if jwk.get("kty") == "RSA" else jwk.get("crv")
