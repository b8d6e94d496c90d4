"""`rldp people`: who is registered, who they are at the identity provider, who is blocked.

For the operator on the host of the database. A person keeps the role they were registered
with; nothing that a provider says gives them another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from service.settings import Settings

app = typer.Typer(no_args_is_help=True, help="People: their sign-in at the provider, blocking.")

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


@app.command("list")
def list_people(data_dir: DataDir = None) -> None:
    """Show everybody: id, hospital, role, links to the provider, whether blocked."""
    from service.auth.identities import people_with_links

    with _database(data_dir) as (session, _):
        for person, links in people_with_links(session):
            state = "active" if person.blocked_at is None else "blocked"
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
    from service.database import now_us

    with _database(data_dir) as (session, _):
        principal = find_person(session, person)
        if not is_blocked:
            principal.blocked_at = None
        elif principal.blocked_at is None:
            principal.blocked_at = now_us()
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
