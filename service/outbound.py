"""One request to somebody else's server: pinned address, no redirect, no proxy, bounded time.

The answer is hostile input. Of its body no more is read than the caller asks for.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from service.addresses import Address, Rules, Target, resolve, target_of


class SendFailed(Exception):
    """Nothing came back that counts. `code` is of a closed list."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(code)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back; `body` is empty unless it was asked for."""

    status: int
    body: bytes = b""


def exchange(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    rules: Rules,
    timeout_seconds: float,
    body: bytes | None = None,
    read_bytes_max: int = 0,
    context: ssl.SSLContext | None = None,
) -> Answer:
    """Sends, and returns status and at most `read_bytes_max` bytes of the body.

    The certificate is checked for the URL's host, though the connection goes to the address
    that was looked up and found allowed.

    Raises:
        TargetRefused: see `addresses`.
        SendFailed: no connection, no trusted certificate, no answer in time, or a body that
            is longer than `read_bytes_max` (if that is not 0).
    """
    target = target_of(url, rules)
    address = resolve(target, rules)
    with _Line(target, address, timeout_seconds) as line:
        try:
            return line.exchange(method, body, headers, read_bytes_max, context)
        except ssl.SSLError:
            raise SendFailed("timeout" if line.is_cut else "tls_failed") from None
        except TimeoutError:
            raise SendFailed("timeout") from None
        except (OSError, http.client.HTTPException):
            raise SendFailed("timeout" if line.is_cut else "connection_failed") from None


class _Line:
    """A connection that is cut when its time is over, however slowly the other side drips."""

    def __init__(self, target: Target, address: Address, timeout_seconds: float) -> None:
        self._target, self._address, self._timeout = target, address, timeout_seconds
        self._sock: socket.socket | None = None
        self._timer = threading.Timer(timeout_seconds, self._cut)
        self.is_cut = False

    def __enter__(self) -> _Line:
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._sock is not None:
            self._sock.close()

    def _cut(self) -> None:
        self.is_cut = True
        if self._sock is not None:
            with suppress(OSError):
                socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def exchange(
        self,
        method: str,
        body: bytes | None,
        headers: Mapping[str, str],
        read_bytes_max: int,
        context: ssl.SSLContext | None,
    ) -> Answer:
        target = self._target
        self._sock = socket.create_connection(
            (str(self._address), target.port), timeout=self._timeout
        )
        if target.scheme == "https":
            trusted = context or ssl.create_default_context()
            self._sock = trusted.wrap_socket(
                self._sock, server_hostname=target.host, do_handshake_on_connect=False
            )
            self._sock.do_handshake()
        if self.is_cut:
            raise TimeoutError
        connection = http.client.HTTPConnection(target.host, target.port)
        connection.sock = self._sock
        connection.request(
            method, target.path, body=body, headers={**headers, "Host": target.host_header}
        )
        with connection.getresponse() as answer:
            return self._read(answer, read_bytes_max)

    def _read(self, answer: http.client.HTTPResponse, bytes_max: int) -> Answer:
        if bytes_max == 0:
            return Answer(status=answer.status)
        body = answer.read(bytes_max + 1)
        if self.is_cut:  # a cut connection can look like an end
            raise TimeoutError
        if len(body) > bytes_max:
            raise SendFailed("answer_too_large")
        return Answer(status=answer.status, body=body)
