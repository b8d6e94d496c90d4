"""`rldp people`: how a person gets in; who is registered, linked, blocked.

`accept` and `approve` go through the service, from the person's own machine. The others are
for the operator on the host of the database. A person keeps the role they were registered
with; nothing that a provider says gives them another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.remote import DEFAULT_URL, KeyFile, Url

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from service.settings import Settings

app = typer.Typer(
    no_args_is_help=True, help="People: getting in, sign-in at the provider, blocking."
)

Person = Annotated[
    str, typer.Argument(help="A principal id (usr_...), or a role that one person has.")
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where everything is kept. Default: RLDP_DATA_DIR, or .rldp."),
]
User = Annotated[
    str | None, typer.Option(help="Who they are at the provider: its claim RLDP_OIDC_USER_CLAIM.")
]
IdentityId = Annotated[
    str | None, typer.Option("--identity", help="Or the id that the sign-in page showed them.")
]


@app.command("accept")
def accept_invitation(
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token. Default: it is asked for.")
    ] = None,
    signing_key: Annotated[
        Path | None,
        typer.Option(help="Stewards: your signing key, PEM. Made if the file is not there."),
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Accept an invitation: trade the token your admin handed you for your first API key.

    Stewards add --signing-key FILE. The file never leaves your machine: keep it, and keep a
    copy, since every grant and release that you approve is signed with it.
    """
    from service.cli.membership import accept

    text = typer.prompt("Token", hide_input=True) if token_file is None else token_file.read_text()
    told = accept(url, text.strip(), signing_key)
    typer.echo(f"You are {told['id']} ({told['role']}).", err=True)
    if told["public_key"]:
        typer.echo(f"Your public key, for whoever vouches for you: {told['public_key']}", err=True)
    if told["state"] == "awaiting_approval":
        typer.echo(
            "A registered steward has to sign for you first: rldp people approve "
            f"{told['id']} --public-key {told['public_key']} --signing-key THEIR-KEY.pem",
            err=True,
        )
    typer.echo("Your API key, shown once:", err=True)
    typer.echo(told["key"])


@app.command("approve")
def approve_steward(
    person: Annotated[str, typer.Argument(help="The new steward's id, usr_….")],
    public_key: Annotated[
        str, typer.Option(help="Their public key, as they themselves told you, not the service.")
    ],
    signing_key: Annotated[Path, typer.Option(help="Your own signing key, PEM.")],
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
) -> None:
    """Vouch for a new steward: sign their key, and the ledger takes it. Stewards only."""
    from service.cli.ledger_client import LedgerClient
    from service.cli.membership import approve

    told = approve(LedgerClient(url, key_file), person, signing_key, public_key)
    typer.echo(f"{told['id']} ({told['role']}) is {told['state']}.")


@app.command("list")
def list_people(data_dir: DataDir = None) -> None:
    """Show everybody: id, hospital, role, links to the provider, and whether they are in."""
    from service.auth.identities import people_with_links
    from service.membership.invitations import state_of
    from service.tenants.models import Invitation

    with _database(data_dir) as (session, _):
        for person, links in people_with_links(session):
            state = state_of(person, session.get(Invitation, person.id))
            typer.echo(f"{person.id} {person.tenant_id} {person.role} links={links} {state}")


@app.command("link")
def link_person(
    person: Person, user: User = None, identity: IdentityId = None, data_dir: DataDir = None
) -> None:
    """Let somebody sign in with the identity provider, as this person."""
    from service.auth.identities import link
    from service.cli.keys import find_person

    with _database(data_dir) as (session, settings):
        principal = find_person(session, person)
        link(session, principal.id, _identity(settings, user, identity))
        typer.echo(f"They now sign in as {principal.id} ({principal.role}).")


@app.command("unlink")
def unlink_person(user: User = None, identity: IdentityId = None, data_dir: DataDir = None) -> None:
    """Take a link away. Their sessions and tokens end at once; their API keys live on."""
    from service.auth.identities import unlink

    with _database(data_dir) as (session, settings):
        if not unlink(session, _identity(settings, user, identity)):
            raise typer.BadParameter("Nobody is linked to this identity.")
        typer.echo("The link is gone.")


@app.command()
def block(person: Person, data_dir: DataDir = None) -> None:
    """End every key, session and token of a person at once. Their jobs go on."""
    _set_blocked(person, data_dir, True)


@app.command()
def unblock(person: Person, data_dir: DataDir = None) -> None:
    """Let a blocked person in again, with the keys and links they had."""
    _set_blocked(person, data_dir, False)


def _set_blocked(person: str, data_dir: Path | None, is_blocked: bool) -> None:
    from service.cli.keys import find_person
    from service.errors import StateConflict
    from service.membership import people

    with _database(data_dir) as (session, _):
        principal = find_person(session, person)
        try:
            (people.block if is_blocked else people.unblock)(session, principal)
        except StateConflict as conflict:
            raise typer.BadParameter(conflict.message) from None
        typer.echo(f"{principal.id} ({principal.role}) is {'blocked' if is_blocked else 'active'}.")


def _identity(settings: Settings, user: str | None, identity: str | None) -> str:
    """Raises typer.BadParameter unless exactly one of the two names somebody."""
    from service.auth.identities import identity_id, is_identity_id

    if (user is None) == (identity is None):
        raise typer.BadParameter("Name either --user or --identity.")
    if identity is not None:
        if not is_identity_id(identity):
            raise typer.BadParameter("An identity is 64 hexadecimal digits.")
        return identity
    if not settings.oidc_issuer:
        raise typer.BadParameter("RLDP_OIDC_ISSUER is not set, so --user means nobody.")
    return identity_id(settings.oidc_issuer, user or "")


@contextmanager
def _database(data_dir: Path | None) -> Iterator[tuple[Session, Settings]]:
    from service.cli.options import chosen_settings
    from service.database import Database

    settings = chosen_settings(data_dir=data_dir)
    database = Database(settings.resolved_database_url)
    try:
        with database.transaction() as session:
            yield session, settings
    finally:
        database.dispose()
