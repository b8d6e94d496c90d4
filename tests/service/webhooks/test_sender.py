"""Where a webhook may go, and that it goes there, once, within its time."""

from __future__ import annotations

import ipaddress
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from service.addresses import Rules, TargetRefused, resolve, rules_of, target_of
from service.settings import Settings
from service.webhooks.sender import SendFailed, post
from tests.service.webhooks.receiver import drip, open_receiver, server_context

LOCAL = Rules(is_http_allowed=True, networks_allowed=(ipaddress.ip_network("127.0.0.0/8"),))
PUBLIC = "93.184.215.14"


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Names resolve to the next of these answers; the last one stays. Returns who asked."""
    left, asked = list(answers), []
    real = socket.getaddrinfo

    def lookup(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            return real(host, port, *args, **kwargs)
        asked.append(host)
        found = left.pop(0) if len(left) > 1 else left[0]
        family = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [
            (family[ipaddress.ip_address(a).version], socket.SOCK_STREAM, 6, "", (a, port))
            for a in found
        ]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return asked


class TestAddresses:
    @pytest.mark.parametrize(
        ("url", "code"),
        [
            ("http://example.org/", "scheme_refused"),
            ("ftp://example.org/", "scheme_refused"),
            ("file:///etc/passwd", "scheme_refused"),
            ("https://user:word@example.org/", "url_invalid"),
            ("https://user@example.org/", "url_invalid"),
            ("https://example.org/#x", "url_invalid"),
            ("https://example.org\\@127.0.0.1/", "url_invalid"),
            ("https:///path", "url_invalid"),
            ("https://example.org:70000/", "url_invalid"),
            ("https://exam ple.org/", "url_invalid"),
            ("https://example.org/\r\nHost: x", "url_invalid"),
            ("https://[fe80::1%25eth0]/", "url_invalid"),
            ("https://bücher.example/", "url_invalid"),
            ("https://127.0.0.1/", "address_refused"),
            ("https://10.1.2.3/", "address_refused"),
            ("https://169.254.169.254/latest/meta-data", "address_refused"),
            ("https://100.64.0.1/", "address_refused"),
            ("https://0.0.0.0/", "address_refused"),
            ("https://224.0.0.1/", "address_refused"),
            ("https://[::1]/", "address_refused"),
            ("https://[fd00::1]/", "address_refused"),
            ("https://[::ffff:127.0.0.1]/", "address_refused"),
            ("https://[2002:7f00:1::]/", "address_refused"),
            ("https://[64:ff9b::7f00:1]/", "address_refused"),
        ],
    )
    def test_refused_without_a_look_up(self, url: str, code: str) -> None:
        with pytest.raises(TargetRefused) as refused:
            target_of(url, Rules())
        assert refused.value.code == code

    @pytest.mark.parametrize(
        "host",
        # what the C library reads as 127.0.0.1 though it is no dotted quad
        ["2130706433", "0x7f000001", "127.1", "0177.0.0.1", "localhost"],
    )
    def test_other_spellings_of_this_host_are_refused_after_the_look_up(self, host: str) -> None:
        with pytest.raises(TargetRefused) as refused:
            resolve(target_of(f"https://{host}/", Rules()), Rules())
        assert refused.value.code in ("address_refused", "name_unknown")

    @pytest.mark.parametrize("inner", ["10.0.0.1", "127.0.0.1", "fd00::1", "::1"])
    def test_one_private_address_among_public_ones_refuses_the_name(
        self, monkeypatch: pytest.MonkeyPatch, inner: str
    ) -> None:
        resolve_to(monkeypatch, [PUBLIC, inner])
        with pytest.raises(TargetRefused, match="not public"):
            resolve(target_of("https://hooks.test/", Rules()), Rules())

    def test_a_public_name_passes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        resolve_to(monkeypatch, [PUBLIC])
        target = target_of("https://hooks.test/a?b=c", Rules())
        assert (target.port, target.path, target.host_header) == (443, "/a?b=c", "hooks.test")
        assert str(resolve(target, Rules())) == PUBLIC

    def test_the_operators_settings_open_what_they_name(self) -> None:
        settings = Settings(webhook_networks_allowed="10.1.0.0/16, fd00::/8")
        rules = rules_of(settings)
        assert target_of("https://10.1.2.3/", rules).host == "10.1.2.3"
        assert target_of("https://[fd00::1]:8443/", rules).host_header == "[fd00::1]:8443"
        for url in ("https://10.2.0.1/", "http://10.1.2.3/"):
            with pytest.raises(TargetRefused):
                target_of(url, rules)
        with pytest.raises(ValueError, match="webhook_networks_allowed"):
            Settings(webhook_networks_allowed="everywhere")


class TestPost:
    def test_the_body_arrives_as_it_is(self) -> None:
        with open_receiver() as receiver:
            status = post(receiver.url(), body=b'{"a":1}', headers={"webhook-id": "e"}, rules=LOCAL)
        assert status == 204
        assert receiver.heard[0].body == b'{"a":1}'
        assert receiver.heard[0].path == "/hooks?x=1"
        assert receiver.heard[0].headers["webhook-id"] == "e"
        assert receiver.heard[0].headers["host"] == f"127.0.0.1:{receiver.port}"

    def test_a_name_that_answers_differently_later_changes_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second answer would be the forbidden one; nobody asks a second time."""
        with open_receiver() as receiver:
            asked = resolve_to(monkeypatch, ["127.0.0.1"], ["10.0.0.1"])
            assert post(receiver.url("hooks.test"), body=b"", headers={}, rules=LOCAL) == 204
        assert asked == ["hooks.test"]
        assert receiver.heard[0].headers["host"].startswith("hooks.test:")

    def test_a_private_address_is_never_connected_to(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_receiver() as receiver:
            resolve_to(monkeypatch, ["127.0.0.1"])
            rules = Rules(is_http_allowed=True)
            with pytest.raises(TargetRefused):
                post(receiver.url("hooks.test"), body=b"", headers={}, rules=rules)
        assert receiver.heard == []

    def test_no_redirect_is_followed(self) -> None:
        with open_receiver() as other, open_receiver() as receiver:

            def redirect(handler: Any) -> None:
                handler.send_response(307)
                handler.send_header("Location", other.url())
                handler.end_headers()

            receiver.answer = redirect
            assert post(receiver.url(), body=b"", headers={}, rules=LOCAL) == 307
        assert other.heard == []

    def test_no_proxy_of_the_environment_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_receiver() as proxy, open_receiver() as receiver:
            monkeypatch.setenv("HTTP_PROXY", proxy.url())
            monkeypatch.setenv("http_proxy", proxy.url())
            post(receiver.url(), body=b"", headers={}, rules=LOCAL)
        assert (len(receiver.heard), proxy.heard) == (1, [])

    def test_a_server_that_drips_is_cut_off_in_time(self) -> None:
        with open_receiver() as receiver:
            receiver.answer = drip(10)
            began = time.monotonic()
            with pytest.raises(SendFailed) as failed:
                post(receiver.url(), body=b"", headers={}, rules=LOCAL, timeout_seconds=0.5)
        assert failed.value.code == "timeout"
        assert time.monotonic() - began < 5

    def test_a_body_without_end_is_not_read(self) -> None:
        def flood(handler: Any) -> None:
            handler.send_response(200)
            handler.end_headers()
            try:
                while True:
                    handler.wfile.write(b"x" * 65536)
            except OSError:
                return

        with open_receiver() as receiver:
            receiver.answer = flood
            began = time.monotonic()
            assert post(receiver.url(), body=b"", headers={}, rules=LOCAL) == 200
        assert time.monotonic() - began < 5

    def test_nobody_there(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(SendFailed) as failed:
            post(f"http://127.0.0.1:{port}/", body=b"", headers={}, rules=LOCAL)
        assert failed.value.code == "connection_failed"


class TestTls:
    def test_the_certificate_is_checked_for_the_name_at_the_pinned_address(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        served, trusting = server_context(tmp_path, "hooks.test")
        resolve_to(monkeypatch, ["127.0.0.1"])
        with open_receiver(served) as receiver:
            url = receiver.url("hooks.test", "https")
            assert post(url, body=b"{}", headers={}, rules=LOCAL, context=trusting) == 204
            wrong = receiver.url("other.test", "https")
            with pytest.raises(SendFailed) as failed:
                post(wrong, body=b"{}", headers={}, rules=LOCAL, context=trusting)
            assert failed.value.code == "tls_failed"
            with pytest.raises(SendFailed):  # and by default nobody trusts it
                post(url, body=b"{}", headers={}, rules=LOCAL)
        assert len(receiver.heard) == 1
