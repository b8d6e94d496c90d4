"""What endpoints ask for: a transaction, a read-only session, the caller, the settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from service.auth.subject import Subject, current_subject, require_role
from service.database import Database
from service.ledger.disclosures import Vault
from service.ledger.publisher import Publisher, make_publisher
from service.settings import Settings


def get_database(request: Request) -> Database:
    """For endpoints that need more than one transaction, or none while a body streams."""
    database: Database = request.app.state.database
    return database


def get_settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def get_session(database: Annotated[Database, Depends(get_database)]) -> Iterator[Session]:
    """One writing transaction for the request: commits on success, rolls back on any error."""
    with database.transaction() as session:
        yield session


def get_reading_session(
    database: Annotated[Database, Depends(get_database)],
) -> Iterator[Session]:
    """A read-only session, open until the answer is sent (it may be a stream)."""
    with database.reading() as session:
        yield session


def get_publisher(request: Request) -> Publisher:
    """Signs checkpoints, receipts and certificates; its keys are loaded at first use."""
    state = request.app.state
    if getattr(state, "publisher", None) is None:
        state.publisher = make_publisher(state.settings, state.database)
    publisher: Publisher = state.publisher
    return publisher


def get_vault(settings: Annotated[Settings, Depends(get_settings)]) -> Vault:
    """Where personal values lie; its key is read at first use."""
    return Vault(settings.keys_dir, make=settings.environment == "embedded")


DatabaseDep = Annotated[Database, Depends(get_database)]
PublisherDep = Annotated[Publisher, Depends(get_publisher)]
VaultDep = Annotated[Vault, Depends(get_vault)]
SettingsDep = Annotated[Settings, Depends(get_settings)]
# Scope "function": the commit comes before the answer, so that no caller is told of an
# effect that a failing commit then takes back.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]
ReadDep = Annotated[Session, Depends(get_reading_session)]
SubjectDep = Annotated[Subject, Depends(current_subject)]
StewardDep = Annotated[Subject, Depends(require_role("steward"))]
