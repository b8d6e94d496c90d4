"""Accounts of a population: balances that can never be overdrawn (ledger.md 4, 8.2).

Guarantee: a debit is one conditional update; 0 changed rows means nothing moved. The
table's CHECK is the second wall. Rows are touched in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import CursorResult, insert, select, update
from sqlalchemy.orm import Session

from service.ledger.entries import Movement
from service.ledger.errors import LedgerBroken
from service.ledger.models import Account
from service.populations.models import Population

AMOUNT_MAX = 2**62


class Overdrawn(Exception):
    """An account holds less than the debit. Inside this package only."""

    def __init__(self, account: str, available_pico: int) -> None:
        self.account = account
        self.available_pico = available_pico
        super().__init__(account)


def name_of(block: str, kind: str, job_id: str | None = None) -> str:
    """The account's name in postings; the train block carries no prefix (ledger.md 7.3)."""
    bare = kind if job_id is None else f"{kind}:{job_id}"
    return bare if block == "train" else f"{block}/{bare}"


def account_of(name: str) -> tuple[str, str]:
    """(block, kind) of an account name; the inverse of `name_of`."""
    block, slash, rest = name.partition("/")
    bare = rest if slash else name
    return (block if slash else "train"), bare.partition(":")[0]


def open_accounts(session: Session, population: Population) -> None:
    """Makes the standing accounts of each block, so that every row exists before its use."""
    for block in population.blocks:
        for kind in ("issuance", "budget", "spent"):
            _open(session, population.id, block, kind, None)


def open_escrow(session: Session, population_id: str, block: str, job_id: str) -> None:
    _open(session, population_id, block, "escrow", job_id)


def _open(session: Session, population_id: str, block: str, kind: str, job_id: str | None) -> None:
    name = name_of(block, kind, job_id)
    session.execute(
        insert(Account).values(
            id=f"{population_id}/{name}",
            population_id=population_id,
            block=block,
            kind=kind,
            job_id=job_id,
            name=name,
            balance_pico=0,
            version=0,
        )
    )


def lock(session: Session, population_id: str, names: Iterable[str]) -> None:
    """Holds the rows until commit (PostgreSQL; on SQLite the transaction already does)."""
    ids = sorted(f"{population_id}/{name}" for name in names)
    session.execute(
        select(Account.id).where(Account.id.in_(ids)).order_by(Account.id).with_for_update()
    ).all()


def balance(session: Session, population_id: str, name: str) -> int:
    found = session.scalar(
        select(Account.balance_pico).where(Account.id == f"{population_id}/{name}")
    )
    if found is None:
        raise LedgerBroken(f"Account {population_id}/{name} does not exist.")
    return found


def move(session: Session, population_id: str, movements: Iterable[Movement]) -> None:
    """Applies the movements of one entry.

    Raises:
        Overdrawn: an account other than issuance would fall below 0; the caller must let
            the transaction roll back.
    """
    for movement in sorted(movements, key=lambda m: m.account):
        if movement.amount_pico:
            _move_one(session, population_id, movement)


def _move_one(session: Session, population_id: str, movement: Movement) -> None:
    amount = movement.amount_pico
    if abs(amount) > AMOUNT_MAX:
        raise Overdrawn(movement.account, 0)
    statement = (
        update(Account)
        .where(Account.id == f"{population_id}/{movement.account}")
        .values(balance_pico=Account.balance_pico + amount, version=Account.version + 1)
    )
    if amount < 0:
        statement = statement.where(
            (Account.balance_pico >= -amount) | (Account.kind == "issuance")
        )
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    if result.rowcount != 1:
        raise Overdrawn(movement.account, balance(session, population_id, movement.account))
