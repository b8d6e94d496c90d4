"""Makes API keys on the host of the database, for people who are registered already."""

from __future__ import annotations

from collections.abc import Sequence

import typer
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.auth.keys import issue_key
from service.auth.scopes import SCOPES
from service.database import Database
from service.settings import Settings
from service.tenants.models import ROLES, Principal


def create_key(settings: Settings, *, person: str, days: int, scopes: Sequence[str] = ()) -> None:
    """Makes a key and shows it, once.

    Raises:
        typer.BadParameter: nobody, or more than one person, is meant; or a scope is none.
    """
    if not SCOPES.issuperset(scopes):
        raise typer.BadParameter(f"Scopes are: {', '.join(sorted(SCOPES))}.")
    database = Database(settings.resolved_database_url)
    try:
        with database.transaction() as session:
            principal = find_person(session, person)
            issued = issue_key(session, principal.id, lifetime_days=days, scopes=scopes or None)
            role = principal.role
    finally:
        database.dispose()
    typer.echo(f"Key of {issued.principal_id} ({role}), for {days} days, shown once:", err=True)
    typer.echo(issued.text)


def find_person(session: Session, person: str) -> Principal:
    """Whoever is meant by an id or a role. Raises typer.BadParameter unless it is one person."""
    if person in ROLES:
        statement = select(Principal).where(Principal.role == person).order_by(Principal.id)
    else:
        statement = select(Principal).where(Principal.id == person)
    found = session.scalars(statement).all()
    if len(found) == 1:
        return found[0]
    if not found:
        raise typer.BadParameter("Nobody is registered under this id or role.")
    several = ", ".join(principal.id for principal in found)
    raise typer.BadParameter(f"Several people have this role; name one: {several}.")
