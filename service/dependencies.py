"""What endpoints ask for: a transaction, a read-only session, the caller, the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy.orm import Session

from service.auth.subject import Subject, current_subject, require_role
from service.database import Database
from service.ledger.disclosures import Vault
from service.ledger.publisher import Publisher, make_publisher
from service.one_thread import UnitOfWork, lent
from service.sealing.keyring import Keyring
from service.settings import Settings

# What only looks something up is a coroutine: it costs no way to a thread and back.


async def get_database(request: Request) -> Database:
    """For endpoints that need more than one transaction, or none while a body streams."""
    database: Database = request.app.state.database
    return database


async def get_settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def get_turn(request: Request) -> AsyncIterator[None]:
    """Lets so many requests at the database at once as its pool can serve to their end.

    The others wait here without a thread. Were they let in, their open sessions would hold
    every connection while the threads that could end them wait for one.
    """
    async with request.app.state.turns:
        yield


# Scope "function": everything ends before the answer is sent, so that no slow reader of a
# file holds a turn or a connection. A commit comes before the answer too: no caller is told
# of an effect that a failing commit then takes back.
TurnDep = Annotated[None, Depends(get_turn, scope="function")]


async def get_session(
    database: Annotated[Database, Depends(get_database)], _turn: TurnDep
) -> AsyncIterator[Session]:
    """One writing transaction for the request: commits on success, rolls back on any error."""
    async with lent(UnitOfWork(database.writer, writes=True)) as unit:
        yield unit


async def get_reading_session(
    database: Annotated[Database, Depends(get_database)], _turn: TurnDep
) -> AsyncIterator[Session]:
    """A read-only session, open until the endpoint has made its answer."""
    async with lent(UnitOfWork(database.reader, writes=False)) as unit:
        yield unit


async def get_publisher(request: Request) -> Publisher:
    """Signs checkpoints, receipts and certificates; its keys are loaded at first use."""
    state = request.app.state
    if getattr(state, "publisher", None) is None:
        state.publisher = await run_in_threadpool(make_publisher, state.settings, state.database)
    publisher: Publisher = state.publisher
    return publisher


async def get_vault(settings: Annotated[Settings, Depends(get_settings)]) -> Vault:
    """Where personal values lie; its key is read at first use."""
    return Vault(settings.keys_dir, make=settings.environment == "embedded")


def get_keyring(settings: Annotated[Settings, Depends(get_settings)]) -> Keyring:
    """Keys of stored files; the deployment's key is read at use."""
    return Keyring.of(settings)


DatabaseDep = Annotated[Database, Depends(get_database)]
PublisherDep = Annotated[Publisher, Depends(get_publisher)]
VaultDep = Annotated[Vault, Depends(get_vault)]
KeyringDep = Annotated[Keyring, Depends(get_keyring)]
SettingsDep = Annotated[Settings, Depends(get_settings)]
SessionDep = Annotated[Session, Depends(get_session, scope="function")]
ReadDep = Annotated[Session, Depends(get_reading_session, scope="function")]
SubjectDep = Annotated[Subject, Depends(current_subject)]
StewardDep = Annotated[Subject, Depends(require_role("steward"))]
