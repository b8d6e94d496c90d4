"""Reads JSON bodies without ever passing a number through a float (service.md 2.3).

A number with a fraction arrives as `Decimal`, with the digits that were sent; the
framework's own reader would have made a float of it first. Use `ExactRoute` as the
`route_class` of a router, and `DecimalText` for amounts, rates, epsilon and delta.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Annotated, Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from service.one_thread import in_one_thread

_DECIMAL = re.compile(r"(?:\d{1,12}(?:\.\d{1,18})?|\.\d{1,18})(?:[eE][+-]?\d{1,2})?")


def _decimal_text(value: object) -> str:
    is_number = isinstance(value, (str, int, Decimal)) and not isinstance(value, bool)
    text = str(value) if is_number else ""
    if not _DECIMAL.fullmatch(text):
        raise PydanticCustomError("decimal_text", "Write a non-negative decimal number.")
    return text


DecimalText = Annotated[
    str,
    BeforeValidator(_decimal_text),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}], "examples": ["3.0"]}),
]


def _no_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def exact_json(data: bytes) -> Any:
    """The value of a JSON text; fractions as Decimal.

    Raises:
        ValueError: not JSON, or a text in it has a NUL character, which PostgreSQL cannot hold.
    """
    value = json.loads(data, parse_float=Decimal, parse_constant=_no_constant)
    if b"\\u0000" in data and _has_nul(value):
        raise ValueError("a text with NUL")
    return value


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_has_nul(key) or _has_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(_has_nul(item) for item in value)


class ExactRequest(Request):
    """A request whose JSON keeps its digits."""

    async def json(self) -> Any:
        if not hasattr(self, "_exact"):
            self._exact = exact_json(await self.body())
        return self._exact


class ExactRoute(APIRoute):
    """A route whose body is read exactly, and whose blocking endpoint runs `in_one_thread`."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        if not inspect.iscoroutinefunction(endpoint):
            endpoint = in_one_thread(endpoint, options.get("status_code"))
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_exactly(request: Request) -> Response:
            return await handle(ExactRequest(request.scope, request.receive))

        return handle_exactly
