"""Appends facts to a tenant's log as canonical, hash-chained entries (ledger.md 6-8).

Guarantee: the bytes are built once, stored, hashed and exported as they are; `prev` is
the leaf before; the same `idem` with equal content gives the stored receipt and writes
nothing. The caller owns the transaction; `log_head` is locked here, after every other
row, and held for the insert alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, bindparam, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from dp_core.events import canonical_json
from service import rows
from service.database import now_us
from service.ledger import merkle
from service.ledger.entry_types import is_known
from service.ledger.errors import IdempotencyConflict, LedgerBroken
from service.ledger.models import Entry, LogHead, Posting
from service.tenants.models import Principal

ORIGIN_HOST = "rldp.local"
NO_LEAF = "0" * 64
BODY_BYTES_MAX = 64 * 1024
SYSTEM = "system"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """Where an entry stands. `reference` is what released values are shown beside."""

    log: str
    idx: int
    leaf: str
    ts: str  # the entry's minute

    @property
    def reference(self) -> str:
        return f"{self.log}#{self.idx}"

    def to_dict(self) -> dict[str, Any]:
        return {"log": self.log, "idx": self.idx, "leaf": self.leaf}


@dataclass(frozen=True, kw_only=True)
class Movement:
    """One posting: the account's name within the population, and a signed amount."""

    account: str
    amount_pico: int


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What a caller wants to enter; index, time and chain are added at the append."""

    type: str
    idem: str
    actor: str
    data: Mapping[str, Any]
    population_id: str | None = None
    job_id: str | None = None
    movements: Sequence[Movement] = ()
    v: int = 1  # schema number of the type

    def post(self) -> list[list[str]]:
        ordered = sorted(self.movements, key=lambda movement: movement.account)
        return [[m.account, str(m.amount_pico)] for m in ordered if m.amount_pico]


def leaf_of(body: bytes) -> str:
    """RFC 6962 leaf hash of a body, in hex."""
    return hashlib.sha256(b"\x00" + body).hexdigest()


def body_of(draft: Draft, *, log_id: str, idx: int, prev: str, ts: str) -> bytes:
    """The canonical bytes of an entry (ledger.md 7.1)."""
    body = canonical_json(
        {
            "actor": draft.actor,
            "data": dict(draft.data),
            "idem": draft.idem,
            "idx": idx,
            "log": log_id,
            "pop": draft.population_id,
            "post": draft.post(),
            "prev": prev,
            "ts": ts,
            "type": draft.type,
            "v": draft.v,
        }
    )
    if len(body) > BODY_BYTES_MAX:
        raise LedgerBroken(f"An entry of type {draft.type} has {len(body)} bytes.")
    return body


def log_of(session: Session, tenant_id: str) -> str:
    """The tenant's ledger: one log for its life, opened at first use and named after that year.

    Why it is never sealed stands in README.md.

    The stewards known at that moment are entered with their public keys; the key of a later
    one comes with the approval of one of them (`stewards.register`).
    """
    found = session.scalar(newest_log(tenant_id))
    return found if found is not None else open_ledger(session, tenant_id)


def newest_log(tenant_id: str) -> Select[str]:
    """The name of the tenant's ledger, if it is open."""
    return (
        select(LogHead.log_id)
        .where(LogHead.log_id.startswith(f"{tenant_id}/", autoescape=True))
        .order_by(LogHead.log_id.desc())
        .limit(1)
    )


def open_log(session: Session, *, tenant_id: str, log_id: str) -> bool:
    """Begins a log with `log.opened`; False if it stands already."""
    origin = f"{ORIGIN_HOST}/{log_id}"
    head = {
        "log_id": log_id,
        "tenant_id": tenant_id,
        "origin": origin,
        "size": 0,
        "last_leaf": NO_LEAF,
        "last_ts": this_minute(),
        "frontier": "",
    }
    if not insert_if_absent(session, LogHead, head):
        return False  # another transaction opened it while we waited
    opened = Draft(type="log.opened", idem="open", actor=SYSTEM, data={"origin": origin})
    append(session, log_id, opened)
    return True


def open_ledger(session: Session, tenant_id: str) -> str:
    """Opens it, see `log_of`."""
    log_id = f"{tenant_id}/{this_minute()[:4]}"
    if not open_log(session, tenant_id=tenant_id, log_id=log_id):
        return log_id
    founders = (
        select(Principal)
        .where(Principal.tenant_id == tenant_id, Principal.role == "steward")
        .where(Principal.public_key.is_not(None), Principal.blocked_at.is_(None))
        .order_by(Principal.id)
    )
    for steward in session.scalars(founders):
        data = {"key": steward.public_key, "principal": steward.id, "role": "steward"}
        append(
            session,
            log_id,
            Draft(
                type="principal.registered",
                idem=f"{steward.id}/registered",
                actor=SYSTEM,
                data=data,
            ),
        )
    return log_id


def insert_if_absent(session: Session, table: Any, values: Mapping[str, Any]) -> bool:
    """Inserts unless the key stands already; tells whether it inserted."""
    dialect = session.get_bind().dialect.name
    make = sqlite.insert if dialect == "sqlite" else postgresql.insert
    # rowcount is not defined for every driver; the returned key is.
    key = next(iter(table.__table__.primary_key.columns))
    statement = make(table).values(**values).on_conflict_do_nothing().returning(key)
    return session.execute(statement).first() is not None


# One statement each, made once: an append is the hottest path, and building statements
# costs more than the database takes to run them.
_TURN = text("SELECT pg_advisory_xact_lock(hashtextextended(:log, 0))")
_LOCK_HEAD = (
    select(LogHead.size, LogHead.last_leaf, LogHead.last_ts, LogHead.frontier)
    .where(LogHead.log_id == bindparam("log"))
    .with_for_update()
)
_OF_IDEM = select(Entry.idx, Entry.leaf, Entry.body).where(
    Entry.log_id == bindparam("log"), Entry.idem == bindparam("key")
)
_MOVE_HEAD = (
    update(LogHead.metadata.tables["log_head"])
    .where(LogHead.log_id == bindparam("log"), LogHead.size == bindparam("old_size"))
    .values(
        size=bindparam("new_size"),
        last_leaf=bindparam("new_leaf"),
        last_ts=bindparam("new_ts"),
        frontier=bindparam("new_frontier"),
    )
)


def take_turn(session: Session, log_id: str) -> None:
    """Queues for the log, first come, first served; held to the end of the transaction.

    Account rows and the head are locked only by who holds the turn, so writers of one log
    cannot deadlock over them. Without it the rows would serialise writers as well, but in no
    order: PostgreSQL lets a late comer overtake those that wait for an older version of a
    row. On SQLite a writing transaction is alone anyway.
    """
    if session.get_bind().dialect.name != "postgresql" or log_id in _turns(session):
        return
    session.connection().execute(_TURN, {"log": log_id})
    if not session.in_nested_transaction():  # a savepoint's rollback would give it back
        _turns(session).add(log_id)


def _turns(session: Session) -> set[str]:
    """Logs whose turn the open transaction holds already."""
    transaction = session.get_transaction()
    held: tuple[Any, set[str]] = session.info.get("rldp_turns", (None, set()))
    if transaction is None or held[0] is not transaction:
        held = session.info["rldp_turns"] = (transaction, set())
    return held[1]


def find_receipt(session: Session, log_id: str, draft: Draft) -> Receipt | None:
    """The receipt of an earlier append under the same `idem`.

    Raises:
        IdempotencyConflict: it had another type, data or postings.
    """
    stored = session.connection().execute(_OF_IDEM, {"log": log_id, "key": draft.idem}).first()
    if stored is None:
        return None
    body = json.loads(stored.body)
    same = (
        body["type"] == draft.type
        and canonical_json(body["data"]) == canonical_json(dict(draft.data))
        and body["post"] == draft.post()
        and body["pop"] == draft.population_id
    )
    if not same:
        raise IdempotencyConflict(log_id=log_id, idem=draft.idem)
    return Receipt(log=log_id, idx=stored.idx, leaf=stored.leaf, ts=body["ts"])


def append(session: Session, log_id: str, draft: Draft, *, is_new: bool = False) -> Receipt:
    """Writes entry and postings and moves the head. Balances are the caller's business.

    `is_new`: the caller has found no receipt of the draft in this transaction's own turn.

    Raises:
        IdempotencyConflict: the key stands with other content.
        LedgerBroken: no such entry type, or postings that do not balance.
    """
    if not is_known(draft.type, draft.v):
        raise LedgerBroken(f"{draft.type} of version {draft.v} is no entry type.")
    session.flush()
    take_turn(session, log_id)
    head = session.connection().execute(_LOCK_HEAD, {"log": log_id}).one()
    repeated = None if is_new else find_receipt(session, log_id, draft)
    if repeated is not None:
        return repeated
    _check_movements(draft)
    ts = max(this_minute(), head.last_ts)  # a clock going back repeats the minute
    body = body_of(draft, log_id=log_id, idx=head.size, prev=head.last_leaf, ts=ts)
    receipt = Receipt(log=log_id, idx=head.size, leaf=leaf_of(body), ts=ts)
    frontier = " ".join(merkle.grow(head.frontier.split(), head.size, receipt.leaf))
    moved = rows.add_and_update(
        session,
        [(Entry, [_row(draft, body, receipt)]), (Posting, _postings(draft, receipt))],
        _MOVE_HEAD,
        {
            "log": log_id,
            "old_size": head.size,
            "new_size": head.size + 1,
            "new_leaf": receipt.leaf,
            "new_ts": ts,
            "new_frontier": frontier,
        },
    )
    if moved != 1:
        raise LedgerBroken(f"The head of {log_id} moved under its own lock.")
    return receipt


def _row(draft: Draft, body: bytes, receipt: Receipt) -> dict[str, Any]:
    return {
        "log_id": receipt.log,
        "idx": receipt.idx,
        "type": draft.type,
        "ts": receipt.ts,
        "actor": draft.actor,
        "population_id": draft.population_id,
        "job_id": draft.job_id,
        "idem": draft.idem,
        "body": body.decode(),
        "leaf": receipt.leaf,
    }


def _postings(draft: Draft, receipt: Receipt) -> list[dict[str, Any]]:
    return [
        {
            "log_id": receipt.log,
            "idx": receipt.idx,
            "account_id": f"{draft.population_id}/{movement.account}",
            "amount_pico": movement.amount_pico,
        }
        for movement in draft.movements
        if movement.amount_pico
    ]


def _check_movements(draft: Draft) -> None:
    if sum(movement.amount_pico for movement in draft.movements):
        raise LedgerBroken(f"The postings of {draft.idem} do not sum to 0.")
    names = [movement.account for movement in draft.movements]
    if len(set(names)) != len(names):
        raise LedgerBroken(f"{draft.idem} posts twice to one account.")


def this_minute() -> str:
    """Now, as entries show times: finer ones would tell more than they may (ledger.md 6.1)."""
    return datetime.fromtimestamp(now_us() // 60_000_000 * 60, UTC).strftime("%Y-%m-%dT%H:%MZ")
