"""The API's HTTP protocol: httptools' parser, which is quick, with an end to a request's head.

Parsing HTTP in Python and asyncio's own loop were a tenth of the processor time of a read.
The parser in C keeps whatever head it is sent; this one gives up at 64 KiB, as the one in
Python does.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES_MAX = 64 * 1024


class BoundedHeads(HttpToolsProtocol):
    """Answers 400 and closes once an unfinished head holds more than `HEAD_BYTES_MAX`.

    At most one further piece of what the socket gave (256 KiB) is in memory then.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._is_in_head = False
        self._head_bytes = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._is_in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES_MAX:
            self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()
