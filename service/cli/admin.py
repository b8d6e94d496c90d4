"""`rldp admin`: who belongs to the hospital, over the API and with the admin's own key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.remote import DEFAULT_URL, KeyFile, Url

app = typer.Typer(no_args_is_help=True, help="Invite and block people; take in hospitals.")
UserId = Annotated[str, typer.Argument(help="Their id, usr_….")]


@app.command("users")
def list_users(url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Everybody of your hospital, newest first, one JSON line each."""
    _list("/users", url, key_file)


@app.command("invite")
def invite(
    role: Annotated[str, typer.Argument(help="submitter, steward, auditor or admin; for good.")],
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """Make a new member and print the token with which they get their first key.

    The token is shown this once and is good for three days. A further steward also needs the
    signature of one who stands in the ledger: you cannot make a steward alone.
    """
    made = _post("/users", {"role": role}, url, key_file)
    typer.echo(f"{made['id']} ({role}) is invited. They run: rldp people accept", err=True)
    typer.echo(made["token"])


@app.command("block")
def block(user: UserId, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """End every key, session and token of a person, or withdraw their invitation. Jobs go on."""
    _tell_state(_post(f"/users/{user}/block", {}, url, key_file))


@app.command("unblock")
def unblock(user: UserId, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Let a blocked person in again, with the keys they had."""
    _tell_state(_post(f"/users/{user}/unblock", {}, url, key_file))


@app.command("hospitals")
def list_hospitals(url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Your hospital; for admins of the first one, all of them. One JSON line each."""
    _list("/tenants", url, key_file)


@app.command("add-hospital")
def add_hospital(url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Take in a further hospital and print the token of its first admin.

    Only admins of the first hospital may. You see nothing of what the new one does.
    """
    made = _post("/tenants", {}, url, key_file)
    typer.echo(f"{made['id']} is there. Its admin, {made['admin']}, runs:", err=True)
    typer.echo("rldp people accept", err=True)
    typer.echo(made["token"])


def _list(path: str, url: str, key_file: Path | None) -> None:
    from service.cli.ledger_client import LedgerClient

    for row in LedgerClient(url, key_file).rows(path):
        typer.echo(json.dumps(row, ensure_ascii=False))


def _post(path: str, body: dict[str, str], url: str, key_file: Path | None) -> dict[str, Any]:
    from service.cli.ledger_client import LedgerClient

    # No repeat under one key after a lost answer: the token would not be told again.
    answer = LedgerClient(url, key_file).post(path, body)
    told: dict[str, Any] = answer.json()
    return told


def _tell_state(user: dict[str, Any]) -> None:
    typer.echo(f"{user['id']} ({user['role']}) is {user['state']}.")
