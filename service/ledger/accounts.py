"""Accounts of a population: balances that can never be overdrawn (ledger.md 4, 8.2).

Guarantee: a debit is one conditional update; 0 changed rows means nothing moved. The
table's CHECK is the second wall. Rows are touched in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import BigInteger, bindparam, func, select, update
from sqlalchemy.orm import Session

from service import rows
from service.ledger.entries import Movement, take_turn
from service.ledger.errors import LedgerBroken
from service.ledger.models import Account
from service.populations.models import Population

AMOUNT_MAX = 2**62


# made once: these run in every charge, under the lock of the row
_CREDIT = (
    update(Account.metadata.tables["account"])
    .where(Account.id == bindparam("account"))
    .values(
        balance_pico=Account.balance_pico + bindparam("amount", type_=BigInteger),
        version=Account.version + 1,
    )
)
_HOLD = (
    select(Account.id, Account.balance_pico)
    .where(Account.id.in_(bindparam("accounts", expanding=True)))
    .order_by(Account.id)
    .with_for_update()
)
_DEBIT = _CREDIT.where(
    (Account.balance_pico + bindparam("amount", type_=BigInteger) >= 0)
    | (Account.kind == "issuance")
)


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


def fill_escrows(
    session: Session, population_id: str, job_id: str, amounts: Mapping[str, int]
) -> None:
    """Opens a job's escrow in each block and moves the block's amount there from its budget.

    Raises: as `move`; the caller has taken the log's turn by `lock`.
    """
    escrows = [
        _row(population_id, block, "escrow", job_id)
        | {"balance_pico": amount, "version": int(amount > 0)}
        for block, amount in amounts.items()
    ]
    rows.add(session, (Account, escrows))
    for block, amount in sorted(amounts.items()):
        if amount:
            budget = Movement(account=name_of(block, "budget"), amount_pico=-amount)
            _move_one(session, population_id, budget)


def _open(session: Session, population_id: str, block: str, kind: str, job_id: str | None) -> None:
    rows.add(session, (Account, [_row(population_id, block, kind, job_id)]))


def _row(population_id: str, block: str, kind: str, job_id: str | None) -> dict[str, Any]:
    name = name_of(block, kind, job_id)
    return {
        "id": f"{population_id}/{name}",
        "population_id": population_id,
        "block": block,
        "kind": kind,
        "job_id": job_id,
        "name": name,
        "balance_pico": 0,
        "version": 0,
    }


def lock(session: Session, log_id: str, population_id: str, names: Sequence[str]) -> list[int]:
    """Holds the rows until commit, and tells the balance of each, in the order of `names`.

    PostgreSQL locks them; on SQLite the transaction already does.
    """
    take_turn(session, log_id)
    ids = [f"{population_id}/{name}" for name in names]
    held = session.connection().execute(_HOLD, {"accounts": ids})
    found = {row.id: row.balance_pico for row in held}
    for account in ids:
        if account not in found:
            raise LedgerBroken(f"Account {account} does not exist.")
    return [found[account] for account in ids]


def balance(session: Session, population_id: str, name: str) -> int:
    found = session.scalar(
        select(Account.balance_pico).where(Account.id == f"{population_id}/{name}")
    )
    if found is None:
        raise LedgerBroken(f"Account {population_id}/{name} does not exist.")
    return found


def move(session: Session, log_id: str, population_id: str, movements: Iterable[Movement]) -> None:
    """Applies the movements of one entry, in this transaction's turn on the log.

    Raises:
        Overdrawn: an account other than issuance would fall below 0; the caller must let
            the transaction roll back.
    """
    take_turn(session, log_id)
    for movement in sorted(movements, key=lambda m: m.account):
        if movement.amount_pico:
            _move_one(session, population_id, movement)


def _move_one(session: Session, population_id: str, movement: Movement) -> None:
    amount = movement.amount_pico
    if abs(amount) > AMOUNT_MAX:
        raise Overdrawn(movement.account, 0)
    values = {"account": f"{population_id}/{movement.account}", "amount": amount}
    moved = session.connection().execute(_CREDIT if amount > 0 else _DEBIT, values)
    if moved.rowcount != 1:
        raise Overdrawn(movement.account, balance(session, population_id, movement.account))


def used_ratios(
    session: Session, population_ids: Sequence[str] | None = None
) -> dict[tuple[str, str], float]:
    """Held and spent over the limit by (population, block); what was never granted has none."""
    owner = (Account.population_id, Account.block)
    asked = select(*owner, Account.kind, func.sum(Account.balance_pico)).group_by(
        *owner, Account.kind
    )
    if population_ids is not None:
        asked = asked.where(Account.population_id.in_(population_ids))
    sums: dict[tuple[str, str], dict[str, int]] = {}
    for population, block, kind, total in session.execute(asked):
        sums.setdefault((population, block), {})[kind] = int(total)
    return {
        place: (of.get("escrow", 0) + of.get("spent", 0)) / -of["issuance"]
        for place, of in sorted(sums.items())
        if of.get("issuance", 0) < 0
    }
