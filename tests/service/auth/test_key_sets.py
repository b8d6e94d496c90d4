"""A provider's keys: which are used, how long they serve, how often the provider is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from service.auth.key_sets import (
    ASK_SECONDS_MIN,
    FRESH_SECONDS,
    STALE_SECONDS_MAX,
    KeySet,
    SourceUnavailable,
    usable_keys,
)
from tests.service.auth.fake_provider import key_document, signing_key

ALL = ("RS256", "ES256", "EdDSA")


class Source:
    """A provider whose document changes, and whose clock stands still until it is moved."""

    def __init__(self, *names: str) -> None:
        self.names, self.now, self.asked, self.is_down = names, 1000.0, 0, False
        self.keys = KeySet(self.read, algorithms=ALL, clock=lambda: self.now)

    def read(self) -> bytes:
        self.asked += 1
        if self.is_down:
            raise SourceUnavailable
        return key_document(*(signing_key(name) for name in self.names))


def of(*keys: Any) -> bytes:
    return json.dumps({"keys": list(keys)}).encode()


class TestUsableKeys:
    @pytest.mark.parametrize("algorithm", ALL)
    def test_a_key_of_each_allowed_algorithm(self, algorithm: str) -> None:
        jwk = signing_key(algorithm, algorithm).jwk
        found = usable_keys(of(jwk), ALL)
        assert found[algorithm].algorithm_name == algorithm
        assert not usable_keys(of(jwk), [a for a in ALL if a != algorithm])

    def test_an_algorithm_that_the_key_does_not_name_follows_from_its_type(self) -> None:
        jwk = signing_key("k").jwk
        del jwk["alg"], jwk["use"]
        assert usable_keys(of(jwk), ALL)["k"].algorithm_name == "ES256"

    @pytest.mark.parametrize(
        "changes",
        [
            {"use": "enc"},
            {"key_ops": ["encrypt"]},
            {"key_ops": "verify"},
            {"alg": "ES384"},
            {"alg": "HS256"},
            {"kty": "oct", "k": "c2VjcmV0"},
            {"crv": "P-384"},
            {"x": "AAAA"},
            {"d": "AAAA"},
            {"kid": 7},
        ],
    )
    def test_what_is_of_no_use_is_left_out(self, changes: dict[str, Any]) -> None:
        assert usable_keys(of(signing_key("k").jwk | changes), ALL) == {}

    def test_an_uncommon_curve_is_left_out(self) -> None:
        public = ec.generate_private_key(ec.SECP384R1()).public_key()
        jwk: dict[str, Any] = ECAlgorithm.to_jwk(public, as_dict=True)
        assert usable_keys(of(jwk), ALL) == {}

    @pytest.mark.parametrize("document", [b"", b"[]", b"{}", b'{"keys": 3}', of(*[{}] * 101)])
    def test_what_is_no_key_set_is_refused(self, document: bytes) -> None:
        with pytest.raises(ValueError):
            usable_keys(document, ALL)


class TestKeySet:
    def test_the_provider_is_asked_once_for_many_tokens(self) -> None:
        source = Source("a")
        assert [source.keys.key("a") is not None for _ in range(5)] == [True] * 5
        assert source.asked == 1

    def test_without_an_id_the_only_key_serves_and_no_other(self) -> None:
        assert Source("a").keys.key(None) is not None
        assert Source("a", "b").keys.key(None) is None

    def test_a_new_key_is_found_and_the_old_one_gone(self) -> None:
        source = Source("a")
        source.keys.key("a")
        source.names, source.now = ("b",), source.now + ASK_SECONDS_MIN
        assert source.keys.key("b") is not None
        assert source.keys.key("a") is None

    def test_invented_ids_make_us_ask_once_a_minute(self) -> None:
        source = Source("a")
        source.keys.key("a")
        for second in range(120):
            source.now = 1000.0 + second
            assert source.keys.key(f"invented-{second}") is None
        assert source.asked == 2

    def test_keys_are_read_again_when_they_are_no_longer_fresh(self) -> None:
        source = Source("a")
        source.keys.key("a")
        source.now += FRESH_SECONDS + 1
        source.keys.key("a")
        assert source.asked == 2

    def test_keys_serve_on_for_an_hour_while_the_provider_is_away(self) -> None:
        source = Source("a")
        source.keys.key("a")
        source.is_down = True
        source.now += STALE_SECONDS_MAX
        assert source.keys.key("a") is not None
        source.now += 1
        with pytest.raises(SourceUnavailable):
            source.keys.key("a")

    def test_a_provider_that_was_never_there_is_asked_again_a_minute_later(self) -> None:
        source = Source("a")
        source.is_down = True
        for _ in range(3):
            with pytest.raises(SourceUnavailable):
                source.keys.key("a")
        assert source.asked == 1
        source.is_down, source.now = False, source.now + ASK_SECONDS_MIN
        assert source.keys.key("a") is not None
