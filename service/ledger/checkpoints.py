"""Signs size and root of each log, and enters them in the one log that witnesses watch.

Guarantee: of each log, sizes of checkpoints strictly grow, there is one root per size, and
none is signed unless it extends the one before (I10). A tenant's checkpoint stands in the
system log as `tenant.checkpoint`, so that witnesses see one root for all tenants and no
hospital another's entries (ledger.md 9.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import String, cast, func, select
from sqlalchemy.orm import Session

from service.database import now_us
from service.ledger import merkle, notes, tiles
from service.ledger.entries import ORIGIN_HOST, SYSTEM, Draft, append, insert_if_absent, open_log
from service.ledger.errors import KeySuperseded, LogShrunk
from service.ledger.keys import LedgerKeys
from service.ledger.models import Cosignature, Entry, LogHead, SignedCheckpoint
from service.tenants.models import SYSTEM_TENANT, Tenant


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where a log ends, read in one look."""

    log_id: str
    origin: str
    size: int
    root: str


def newest(session: Session, log_id: str, *, up_to: int | None = None) -> SignedCheckpoint | None:
    """The largest checkpoint of a log, of at most `up_to` entries."""
    statement = select(SignedCheckpoint).where(SignedCheckpoint.log_id == log_id)
    if up_to is not None:
        statement = statement.where(SignedCheckpoint.size <= up_to)
    return session.scalar(statement.order_by(SignedCheckpoint.size.desc()).limit(1))


def covering(session: Session, log_id: str, idx: int) -> SignedCheckpoint | None:
    """The smallest checkpoint that holds entry `idx`."""
    statement = select(SignedCheckpoint).where(
        SignedCheckpoint.log_id == log_id, SignedCheckpoint.size > idx
    )
    return session.scalar(statement.order_by(SignedCheckpoint.size).limit(1))


def system_log(session: Session) -> str | None:
    """The system log in use: the first, or the one that the newest recovery has opened."""
    return next(iter(system_logs(session)), None)


def system_logs(session: Session) -> Sequence[str]:
    """Every system log, the one in use first; each recovery has begun one."""
    logs = select(LogHead.log_id).where(LogHead.tenant_id == SYSTEM_TENANT)
    return session.scalars(logs.order_by(LogHead.log_id.desc())).all()


def system_log_over(session: Session, signed: SignedCheckpoint) -> str:
    """The system log that names a log's checkpoint. `system_idx` is a place in that one."""
    assert signed.system_idx is not None, "only the system log's own checkpoints have none"
    return session.scalars(
        select(Entry.log_id)
        .join(LogHead, LogHead.log_id == Entry.log_id)
        .where(LogHead.tenant_id == SYSTEM_TENANT, Entry.idx == signed.system_idx)
        .where(Entry.idem == f"{signed.log_id}/{signed.size}")
    ).one()


def newest_named(session: Session, log_id: str, system: str, below: int) -> int | None:
    """Size of a log's newest checkpoint that stands in this system log below an index."""
    is_named = select(Entry.idx).where(
        Entry.log_id == system,
        Entry.idx == SignedCheckpoint.system_idx,
        Entry.idem == SignedCheckpoint.log_id + "/" + cast(SignedCheckpoint.size, String),
    )
    return session.scalar(
        select(SignedCheckpoint.size)
        .where(SignedCheckpoint.log_id == log_id, SignedCheckpoint.system_idx < below)
        .where(is_named.exists())
        .order_by(SignedCheckpoint.size.desc())
        .limit(1)
    )


def system_name(keys: LedgerKeys, recovery: int = 0) -> str:
    """The first key in the name keeps two deployments apart before one witness.

    After the nth recovery the log begins anew under another name, because no witness may
    ever sign a second continuation of the lost one.
    """
    name = f"{SYSTEM_TENANT}/{keys.log_chain[0][:16]}"
    return f"{name}/{recovery:04d}" if recovery else name


def system_origin(keys: LedgerKeys, recovery: int = 0) -> str:
    """The origin under which witnesses know this deployment's system log."""
    return f"{ORIGIN_HOST}/{system_name(keys, recovery)}"


def present_origin(session: Session, keys: LedgerKeys) -> str:
    """The origin of the system log in use, or of the one that the first turn will open."""
    system = system_log(session)
    return system_origin(keys) if system is None else session.get_one(LogHead, system).origin


def next_system_log(session: Session, keys: LedgerKeys) -> None:
    """Begins the system log that follows a recovery."""
    logs = select(func.count()).select_from(LogHead).where(LogHead.tenant_id == SYSTEM_TENANT)
    open_system_log(session, system_name(keys, session.scalar(logs) or 0))


def open_system_log(session: Session, log_id: str) -> None:
    """Begins a system log under its tenant."""
    insert_if_absent(session, Tenant, {"id": SYSTEM_TENANT, "created_at": now_us()})
    open_log(session, tenant_id=SYSTEM_TENANT, log_id=log_id)


def publish(session: Session, keys: LedgerKeys, *, only: str | None = None) -> list[str]:
    """Signs a checkpoint of each log that has grown, or of one; the logs signed.

    The caller owns the transaction. Publishers work one after the other: the first lock is
    the head of the system log, which no other writer takes.

    Raises:
        LogShrunk: a log no longer extends its last checkpoint; nothing was signed.
        KeySuperseded: another key signs now; nothing was signed.
    """
    system = locked_system_log(session, keys)
    if any(_is_entered(session, log, rotated_key(keys.log_public)) for log in system_logs(session)):
        raise KeySuperseded
    signed = []
    for log_id in _logs(session, only):
        made = _sign(session, keys, head_of(session, log_id))
        if made is not None:
            made.system_idx = _enter(session, system, made)
            session.add(made)
            signed.append(log_id)
    session.flush()
    made = _sign(session, keys, head_of(session, system))
    if made is not None:
        session.add(made)
        session.flush()
    return signed


def rotated_key(public: str) -> str:
    """The `idem` of the entry that ends a log key."""
    return f"{public}/rotated"


def _is_entered(session: Session, log_id: str, idem: str) -> bool:
    wanted = select(Entry.idx).where(Entry.log_id == log_id, Entry.idem == idem)
    return session.scalar(wanted) is not None


def locked_system_log(session: Session, keys: LedgerKeys) -> str:
    """The system log, opened at first use; its head is locked until the transaction ends."""
    found = system_log(session)
    if found is None:
        found = system_name(keys)
        open_system_log(session, found)
    lock = select(LogHead.log_id).where(LogHead.log_id == found).with_for_update()
    return session.execute(lock).scalar_one()


def _logs(session: Session, only: str | None) -> list[str]:
    statement = (
        select(LogHead.log_id).where(LogHead.tenant_id != SYSTEM_TENANT).order_by(LogHead.log_id)
    )
    if only is not None:
        statement = statement.where(LogHead.log_id == only)
    return list(session.scalars(statement))


def head_of(session: Session, log_id: str) -> Head:
    row = session.execute(
        select(LogHead.origin, LogHead.size, LogHead.frontier).where(LogHead.log_id == log_id)
    ).one()
    root = merkle.root_of(row.frontier.split())
    return Head(log_id=log_id, origin=row.origin, size=row.size, root=root)


def _sign(session: Session, keys: LedgerKeys, head: Head) -> SignedCheckpoint | None:
    before = newest(session, head.log_id)
    if before is None and head.size == 0:
        return None
    tiles.fill(session, head.log_id, head.size)
    if before is not None:
        _check_extends(session, head, before)
        if before.size == head.size:
            return None
    note = keys.sign_checkpoint(
        notes.Checkpoint(origin=head.origin, size=head.size, root=head.root)
    )
    return SignedCheckpoint(
        log_id=head.log_id,
        size=head.size,
        root=head.root,
        note=note.full,
        system_idx=None,
        created_at=now_us(),
    )


def _check_extends(session: Session, head: Head, before: SignedCheckpoint) -> None:
    if before.size > head.size:
        raise LogShrunk(log_id=head.log_id, size=head.size, seen_size=before.size)
    read = tiles.node_reader(session, head.log_id)
    same_past = merkle.root_at(before.size, read) == before.root
    if not same_past or merkle.root_at(head.size, read) != head.root:
        raise LogShrunk(log_id=head.log_id, size=head.size, seen_size=before.size)


def _enter(session: Session, system: str, made: SignedCheckpoint) -> int:
    draft = Draft(
        type="tenant.checkpoint",
        idem=f"{made.log_id}/{made.size}",
        actor=SYSTEM,
        data={"log": made.log_id, "root": made.root, "size": made.size},
    )
    return append(session, system, draft).idx


def full_note(session: Session, checkpoint: SignedCheckpoint) -> str:
    """The note with every cosignature that stands under it."""
    lines = session.scalars(
        select(Cosignature.line)
        .where(Cosignature.log_id == checkpoint.log_id, Cosignature.size == checkpoint.size)
        .order_by(Cosignature.witness)
    )
    return checkpoint.note + "".join(lines)
