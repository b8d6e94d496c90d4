"""`rldp people accept` and `approve`: a new member's and a steward's own part, at their machine.

Signing keys stay in the files of their owners; the service sees signatures only.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import typer

from service.cli.ledger_client import LedgerClient
from service.keyfiles import SigningKeyUnusable, signing_key
from service.ledger.stewards import steward_text
from service.membership.invitations import person_of_token


def accept(url: str, token: str, signing_key_file: Path | None) -> dict[str, Any]:
    """Gives the token for the first key; makes a steward's signing key if there is none yet.

    Raises:
        typer.BadParameter: it is no token, or the file holds no signing key.
    """
    principal = person_of_token(token)
    if principal is None:
        raise typer.BadParameter("This is no invitation's token: enrol_… as your admin got it.")
    body = {"token": token}
    if signing_key_file is not None:
        try:
            private = signing_key(signing_key_file)
        except SigningKeyUnusable as error:
            raise typer.BadParameter(str(error)) from None
        public = private.public_key().public_bytes_raw().hex()
        proof = private.sign(steward_text(principal=principal, key=public))
        body |= {"public_key": public, "possession": base64.b64encode(proof).decode()}
    told: dict[str, Any] = LedgerClient.without_key(url).post("/invitations/accept", body).json()
    return told


def approve(client: LedgerClient, user: str, key_file: Path, public_key: str) -> dict[str, Any]:
    """Signs for a new steward: for the key that they themselves have told, no other.

    Raises:
        typer.BadParameter: the key is none, or not the one that waits for approval.
    """
    if re.fullmatch(r"[0-9a-f]{64}", public_key) is None:
        raise typer.BadParameter("A public key is 64 hex digits, as its owner's command shows it.")
    person = client.get(f"/users/{user}").json()
    if person["public_key"] != public_key:
        raise typer.BadParameter(
            "The service holds another key for this person. Do not sign; ask them in person."
        )
    try:
        private = signing_key(key_file, make=False)
    except SigningKeyUnusable as error:
        raise typer.BadParameter(str(error)) from None
    text = steward_text(principal=person["id"], key=public_key)
    typer.echo(text.decode(), err=True, nl=False)
    signature = base64.b64encode(private.sign(text)).decode()
    told: dict[str, Any] = client.post(
        f"/users/{person['id']}/approval", {"signature": signature}
    ).json()
    return told
