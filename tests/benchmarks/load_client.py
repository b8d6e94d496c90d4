"""A load generator that costs next to nothing: ready-made bytes over open connections.

    python -m tests.benchmarks.load_client < what.json > times.json

It runs in a process of its own, so that its processor time is told apart from the service's.
One thread serves all connections; of an answer only the status line and the length are read.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

NUMBER = b"@NUMBER@"  # in a request, replaced by digits that no other request of this run has
DIGITS = 12
OK = b"HTTP/1.1 200 "
LENGTH = b"content-length: "
READ_BYTES = 1 << 18


@dataclass
class Connection:
    """One client: sends its request again as soon as it is answered."""

    socket: socket.socket
    request: bytes
    sent_at: float = 0.0
    received: bytearray = field(default_factory=bytearray)
    expected: int = 0  # bytes of the whole answer; 0 until its head has come

    def send(self, number: int) -> None:
        self.received.clear()
        self.expected = 0
        self.sent_at = time.monotonic()
        self.socket.sendall(self.request.replace(NUMBER, b"%0*d" % (DIGITS, number)))

    def is_answered(self) -> bool:
        """Reads what has come; True once the answer is whole.

        Raises:
            RuntimeError: the connection ended, or the answer is no success.
        """
        got = self.socket.recv(READ_BYTES)
        if not got:
            raise RuntimeError("the service closed a connection")
        self.received += got
        if not self.expected:
            head, end, _ = bytes(self.received).partition(b"\r\n\r\n")
            if not end:
                return False
            if not head.startswith(OK):
                raise RuntimeError(bytes(self.received[:2000]).decode(errors="replace"))
            length = head.lower().partition(LENGTH)[2].partition(b"\r\n")[0]
            self.expected = len(head) + len(end) + int(length)
        return len(self.received) >= self.expected


def run(what: dict[str, Any]) -> dict[str, Any]:
    """Sends `requests` (one connection each: port, text) for `seconds`; milliseconds of each."""
    opened = [_open(port, text.encode()) for port, text in what["requests"]]
    began = time.monotonic()
    end, sent, times = began + what["seconds"], 0, []
    with selectors.DefaultSelector() as selector:
        for connection in opened:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(sent := sent + 1)
        waiting = len(opened)
        while waiting:
            for key, _ in selector.select():
                connection = key.data
                if not connection.is_answered():
                    continue
                now = time.monotonic()
                times.append((now - connection.sent_at) * 1000)
                if now < end:
                    connection.send(sent := sent + 1)
                else:
                    selector.unregister(connection.socket)
                    waiting -= 1
    took = time.monotonic() - began
    for connection in opened:
        connection.socket.close()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"seconds": took, "times_ms": times, "cpu_seconds": used.ru_utime + used.ru_stime}


def _open(port: int, request: bytes) -> Connection:
    made = socket.create_connection(("127.0.0.1", port), timeout=60)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(socket=made, request=request)


if __name__ == "__main__":
    json.dump(run(json.load(sys.stdin)), sys.stdout)
