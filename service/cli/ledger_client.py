"""Calls a running service with the caller's own key.

So the answers pass the same roles and the same access log as everybody's; nothing here
opens the database.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import typer

KEY_VARIABLE = "RLDP_API_KEY"
TIMEOUT_SECONDS = 60.0
FOR_NOW = frozenset({429, 502, 503, 504})
RETRY_SECONDS = 1.0
PAGE = {"limit": "100"}


class LedgerClient:
    """One service and one key."""

    def __init__(self, url: str, key_file: Path | None) -> None:
        self._base = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {_key(key_file)}"}

    @classmethod
    def without_key(cls, url: str) -> LedgerClient:
        """For the one thing that needs none: to get the first."""
        client = cls.__new__(cls)
        client._base, client._headers = url.rstrip("/"), {}
        return client

    def get(self, path: str, *, accept: str = "*/*", **query: Any) -> httpx.Response:
        """The answer of one route; ends the command on a refusal, with the service's words."""
        given = {name: str(value) for name, value in query.items() if value is not None}
        return self._checked("GET", path, accept=accept, params=given or None)

    def post(
        self, path: str, body: Mapping[str, Any], *, idempotency_key: str = "", **query: Any
    ) -> httpx.Response:
        """With an idempotency key, a lost answer is asked for again: it acts once."""
        given = {name: str(value) for name, value in query.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        tries = 3 if idempotency_key else 1
        sent, query = dict(body), given or {}
        return self._checked("POST", path, more=headers, tries=tries, json=sent, params=query)

    def upload(self, rows: BinaryIO, name: str, fields: Mapping[str, str]) -> dict[str, Any]:
        """The service's word on a file that is sent from disk, piece by piece."""
        files = {"file": (name, rows, "application/octet-stream")}
        answer = self._checked("POST", "/files", data=dict(fields), files=files)
        told: dict[str, Any] = answer.json()
        return told

    @contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str], silent_seconds: float
    ) -> Iterator[httpx.Response]:
        """An answer that is read as it comes; ends the command on a refusal.

        Raises:
            httpx.TransportError: no answer, or none of it for so long; or a proxy's or the
                service's word that it is busy or away for now, as while it is upgraded.
        """
        timeout = httpx.Timeout(TIMEOUT_SECONDS, read=silent_seconds)
        sent = {**self._headers, **headers}
        with httpx.stream("GET", f"{self._base}/v1{path}", headers=sent, timeout=timeout) as answer:
            if answer.status_code in FOR_NOW:
                raise httpx.ReadError(f"status {answer.status_code}")
            if answer.status_code >= 400:
                answer.read()
                typer.echo(_words(answer), err=True)
                raise typer.Exit(1)
            yield answer

    def download(self, path: str, out: Path, *, accept: str = "*/*", **query: Any) -> None:
        """Writes the answer to a new file; a refused one leaves none behind.

        Raises:
            typer.BadParameter: the file exists.
        """
        content = self.get(path, accept=accept, **query).content
        try:
            descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise typer.BadParameter(f"{out} exists; choose another name.") from None
        with os.fdopen(descriptor, "wb") as target:
            target.write(content)

    def rows(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Every object of a list, over all its pages."""
        cursor: dict[str, Any] = {}
        while True:
            page = self.get(path, **PAGE, **query, **cursor).json()
            yield from page["data"]
            if not page["has_more"]:
                return
            cursor = {"after": page.get("next_after", page["last_id"])}

    def table(self, path: str, **query: Any) -> Iterator[str]:
        """The same list as lines of CSV, one header for all pages."""
        cursor: dict[str, Any] = {}
        header = None
        while True:
            answer = self.get(path, **PAGE, format="csv", **query, **cursor)
            first, _, rest = answer.text.partition("\n")
            if header is None:
                header = first
                yield f"{first}\n" if first else ""
            yield rest
            following = answer.headers.get("x-next-after")
            if following is None:
                return
            cursor = {"after": following}

    def _checked(
        self,
        method: str,
        path: str,
        *,
        accept: str = "*/*",
        more: Mapping[str, str] | None = None,
        tries: int = 1,
        **options: Any,
    ) -> httpx.Response:
        try:
            answer = httpx.request(
                method,
                f"{self._base}/v1{path}",
                headers={**self._headers, "Accept": accept, **(more or {})},
                timeout=TIMEOUT_SECONDS,
                **options,
            )
        except httpx.HTTPError as error:
            if tries > 1:
                time.sleep(RETRY_SECONDS)
                return self._checked(
                    method, path, accept=accept, more=more, tries=tries - 1, **options
                )
            typer.echo(f"The service does not answer ({type(error).__name__}).", err=True)
            raise typer.Exit(1) from None
        if answer.status_code >= 400:
            typer.echo(_words(answer), err=True)
            raise typer.Exit(1)
        return answer


def _key(path: Path | None) -> str:
    if path is not None:
        return path.read_text(encoding="utf-8").strip()
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise typer.BadParameter(f"Give --key-file, or set {KEY_VARIABLE}.")
    return key


def _words(answer: httpx.Response) -> str:
    try:
        return f"{answer.status_code}: {answer.json()['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code}: not an answer of this service."


def show(answer: httpx.Response) -> None:
    """JSON indented, other texts as they are."""
    if "json" in answer.headers.get("content-type", ""):
        typer.echo(json.dumps(answer.json(), indent=1, ensure_ascii=False))
    else:
        sys.stdout.write(answer.text)
