"""Signed values: only ours, only for their purpose, only until their end."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest
from fastapi import Request

from service.dashboard.sessions import SessionSigner, cookie_name, must_be_secure


@pytest.fixture
def signer() -> SessionSigner:
    return SessionSigner(b"0" * 32)


def _request(url: str) -> Request:
    scheme, _, host = url.partition("://")
    name, _, port = host.partition(":")
    scope = {
        "type": "http", "scheme": scheme, "path": "/", "query_string": b"", "root_path": "",
        "server": (name, int(port or 80)), "headers": [(b"host", host.encode())],
    }  # fmt: skip
    return Request(scope)


def _until(seconds: float) -> dict[str, str | int]:
    return {"key": "key_1", "until": int(time.time() + seconds)}


class TestSigner:
    def test_reads_what_it_signed(self, signer: SessionSigner) -> None:
        value = _until(60)
        assert signer.read("session", signer.sign("session", value)) == value

    @pytest.mark.parametrize("place", [0, 5, -1])
    def test_a_changed_character_is_refused(self, signer: SessionSigner, place: int) -> None:
        text = list(signer.sign("session", _until(60)))
        text[place] = "A" if text[place] != "A" else "B"
        assert signer.read("session", "".join(text)) is None

    @pytest.mark.parametrize("text", [None, "", ".", "a.b", "é.x"])
    def test_other_text_is_refused(self, signer: SessionSigner, text: str | None) -> None:
        assert signer.read("session", text) is None

    def test_another_purpose_is_refused(self, signer: SessionSigner) -> None:
        assert signer.read("session", signer.sign("form", _until(60))) is None

    def test_an_expired_value_is_refused(self, signer: SessionSigner) -> None:
        assert signer.read("session", signer.sign("session", _until(-1))) is None

    def test_another_installation_is_refused(self, signer: SessionSigner) -> None:
        other = SessionSigner(b"1" * 32)
        assert other.read("session", signer.sign("session", _until(60))) is None

    def test_a_form_token_belongs_to_its_cookie(self, signer: SessionSigner) -> None:
        token = signer.form_token("cookie")
        assert signer.form_matches("cookie", token)
        assert not signer.form_matches("other", token)
        assert not signer.form_matches(None, token)

    def test_the_secret_is_made_once_and_private(self, tmp_path: Path) -> None:
        first = SessionSigner.of_directory(tmp_path / "keys")
        second = SessionSigner.of_directory(tmp_path / "keys")
        assert second.read("session", first.sign("session", _until(60))) is not None
        path = tmp_path / "keys" / "dashboard.key"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert list(path.parent.iterdir()) == [path]


class TestSecureCookies:
    @pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "http://localhost"])
    def test_plain_http_on_this_machine_may_do_without(self, url: str) -> None:
        assert not must_be_secure(_request(url))
        assert cookie_name(_request(url), "c") == "c"

    @pytest.mark.parametrize("url", ["https://127.0.0.1", "http://hospital.example"])
    def test_elsewhere_the_cookie_is_bound_to_the_host(self, url: str) -> None:
        assert must_be_secure(_request(url))
        assert cookie_name(_request(url), "c") == "__Host-c"
