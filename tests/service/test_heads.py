"""The API's HTTP protocol on a real socket: an endless head ends, everything else is served."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from fastapi import FastAPI, Request

from service.heads import HEAD_BYTES_MAX, BoundedHeads


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    app = FastAPI(openapi_url=None)

    @app.post("/")
    async def count(request: Request) -> dict[str, str | int]:
        loop = type(asyncio.get_running_loop()).__module__
        return {"bytes": len(await request.body()), "loop": loop}

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        chosen = int(free.getsockname()[1])
    config = uvicorn.Config(app, port=chosen, http=BoundedHeads, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield chosen
    server.should_exit = True
    thread.join()


def ask(connection: socket.socket, *pieces: bytes) -> bytes:
    """What comes back until the connection closes or the answer's JSON ends."""
    told = b""
    try:
        for piece in pieces:
            connection.sendall(piece)
        while not told.endswith(b"}"):
            got = connection.recv(65536)
            if not got:
                break
            told += got
    except (ConnectionResetError, BrokenPipeError):  # closed while we still wrote
        pass
    return told


def head(length: int, *, more: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nhost: x\r\n" + more + b"content-length: %d\r\n\r\n" % length


def test_large_bodies_and_one_connection_for_many_are_served(port: int) -> None:
    """A body is no head, also when both come in one piece; the loop is uvloop's."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for length in (3, 4 * HEAD_BYTES_MAX, 5):
            told = ask(connection, head(length) + b"x" * length)
            assert b"200 OK" in told and b'"bytes":%d,"loop":"uvloop"' % length in told


def test_a_head_below_the_limit_is_read_in_pieces(port: int) -> None:
    long = head(1, more=b"x-long: " + b"a" * (HEAD_BYTES_MAX - 1000) + b"\r\n")
    pieces = [long[at : at + 8000] for at in range(0, len(long), 8000)]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        assert b"200 OK" in ask(connection, *pieces, b"x")


@pytest.mark.parametrize("more", [b"x-a: " + b"a" * 900 + b"\r\n", b"a" * 900])
def test_a_head_without_end_is_refused_and_the_connection_closed(port: int, more: bytes) -> None:
    """Of many fields, or of one that never ends; at most one piece above the limit is read."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        start = b"POST / HTTP/1.1\r\nhost: x\r\n" + (b"" if b"\r" in more else b"x-a: ")
        sent = 0
        told = b""
        connection.sendall(start)
        try:
            while sent < 64 * HEAD_BYTES_MAX:
                connection.sendall(more)
                sent += len(more)
            told = ask(connection)
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert sent < 64 * HEAD_BYTES_MAX, "the server went on reading"
        assert told in (b"",) or b"400" in told


def test_after_all_this_it_still_answers(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        assert b"200 OK" in ask(connection, head(2) + b"ab")
