"""`rldp ledger sign`: a steward's decision signed where their key lies, without a server."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import typer

from service.keyfiles import SigningKeyUnusable, signing_key
from service.ledger.approvals import signing_text


def print_signature(key: Path, *, origin: str, leaf: str, decision: str) -> None:
    """Prints the base64 signature of exactly the text of ledger.md 16.3, and shows that text.

    Raises:
        typer.BadParameter: the key or a part of the text is unusable.
    """
    if decision not in ("approve", "reject"):
        raise typer.BadParameter("Decide with approve or reject.")
    if re.fullmatch(r"[0-9a-f]{64}", leaf) is None:
        raise typer.BadParameter("The leaf is 64 hex digits, as the proposal shows it.")
    try:
        private = signing_key(key, make=False)
    except SigningKeyUnusable as error:
        raise typer.BadParameter(str(error)) from None
    text = signing_text(origin=origin, leaf=leaf, decision=decision)
    typer.echo(text.decode(), err=True, nl=False)
    typer.echo(base64.b64encode(private.sign(text)).decode())
