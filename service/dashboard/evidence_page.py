"""What the auditor's further pages show: refusals, proofs between checkpoints, who read what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.dashboard.ledger_page import visible_head
from service.dashboard.overview import populations_of
from service.ledger import access, checkpoints, evidence, merkle, receipts, repository
from service.ledger.audit_endpoints import refusal_to_dict
from service.ledger.errors import LedgerNotFound
from service.ledger.models import Entry, LogHead, SignedCheckpoint
from service.ledger.standing import Standing, standing_of

PAGE_ROWS = 50
CHECKPOINTS_SHOWN = 30


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some lines of a list, newest first; `following` is the cursor of the next page."""

    rows: tuple[dict[str, Any], ...]
    before: str
    following: str | None
    codes: dict[str, str]  # names of populations by their id


@dataclass(frozen=True, kw_only=True)
class Signed:
    """One checkpoint, and whether it was found to extend the one before it just now."""

    checkpoint: SignedCheckpoint
    extends: bool | None  # None: the first one shown with nothing before it
    is_witnessed: bool


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A proof recomputed here, with what is needed to repeat it elsewhere."""

    title: str
    holds: bool
    lines: tuple[tuple[str, str], ...]
    path: tuple[str, ...]
    note: str
    tlog: str = ""


@dataclass(frozen=True, kw_only=True)
class ProofsPage:
    head: LogHead
    standing: Standing
    signed: tuple[Signed, ...]
    asked: dict[str, str]
    proof: Proof | None
    problem: str


def refusals_page(session: Session, subject: Subject, before: str) -> Rows:
    """Reservations that did not fit, with their numbers. Each was refused at no cost."""
    visible = repository.visible_entries(subject.tenant_id).where(Entry.type == "reserve.refused")
    return _page(session, subject, visible, before, refusal_to_dict)


def access_page(session: Session, subject: Subject, before: str) -> Rows:
    """Reads of ledger and personal details. The reader's own read is on the next page load."""
    visible = access.visible_reads(subject.tenant_id)
    return _page(session, subject, visible, before, access.read_to_dict)


def _page(
    session: Session,
    subject: Subject,
    visible: Select[Any],
    before: str,
    show: Callable[[Entry], dict[str, Any]],
) -> Rows:
    log_id, _, idx = before.rpartition("#")
    if log_id and idx.isdecimal() and len(idx) < 16:
        visible = visible.where(
            (Entry.log_id < log_id) | ((Entry.log_id == log_id) & (Entry.idx < int(idx)))
        )
    newest = visible.order_by(None).order_by(Entry.log_id.desc(), Entry.idx.desc())
    found = list(session.scalars(newest.limit(PAGE_ROWS + 1)))
    rows = tuple(show(entry) for entry in found[:PAGE_ROWS])
    return Rows(
        rows=rows,
        before=before if log_id else "",
        following=rows[-1]["id"] if len(found) > PAGE_ROWS else None,
        codes={one.id: one.code for one in populations_of(session, subject)},
    )


def proofs_page(
    session: Session, subject: Subject, *, old: str, new: str, entry: str
) -> ProofsPage:
    """The checkpoints of the tenant's log, and one proof if it was asked for.

    Raises:
        LedgerNotFound: the tenant has no log yet.
    """
    head = visible_head(session, subject, None)
    standing = standing_of(session, head.log_id)
    proof, problem = None, ""
    try:
        if entry:
            proof = _inclusion(session, head, _number(entry))
        elif old or new:
            proof = _consistency(session, head, _number(old), _number(new))
    except LedgerNotFound:
        problem = (
            "No such proof: choose two checkpoints of the list, the older one first, or an "
            "entry that a signed checkpoint covers."
        )
    return ProofsPage(
        head=head,
        standing=standing,
        signed=_signed(session, head, standing),
        asked={"from": old, "to": new, "entry": entry},
        proof=proof,
        problem=problem,
    )


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise LedgerNotFound("checkpoint")
    return int(text)


def _signed(session: Session, head: LogHead, standing: Standing) -> tuple[Signed, ...]:
    newest_first = (
        select(SignedCheckpoint)
        .where(SignedCheckpoint.log_id == head.log_id)
        .order_by(SignedCheckpoint.size.desc())
        .limit(CHECKPOINTS_SHOWN + 1)
    )
    found = list(session.scalars(newest_first))
    pairs = zip(found, [*found[1:], None], strict=True)
    return tuple(
        Signed(
            checkpoint=one,
            extends=None if older is None else _extends(session, older, one)[0],
            is_witnessed=one.size <= standing.published,
        )
        for one, older in list(pairs)[:CHECKPOINTS_SHOWN]
    )


def _extends(
    session: Session, old: SignedCheckpoint, new: SignedCheckpoint
) -> tuple[bool, list[str]]:
    path = evidence.path_between(session, new.log_id, old.size, new.size)["path"]
    holds = merkle.extends(old=old.size, old_root=old.root, size=new.size, root=new.root, path=path)
    return holds, path


def _consistency(session: Session, head: LogHead, old_size: int, new_size: int) -> Proof:
    old = evidence.exact(session, head.log_id, old_size)
    new = evidence.exact(session, head.log_id, new_size)
    if old.size > new.size:
        raise LedgerNotFound("checkpoint")
    holds, path = _extends(session, old, new)
    return Proof(
        title=f"The log of {new.size} entries extends the log of {old.size}",
        holds=holds,
        lines=((f"root at {old.size}", old.root), (f"root at {new.size}", new.root)),
        path=tuple(path),
        note=checkpoints.full_note(session, new),
    )


def _inclusion(session: Session, head: LogHead, idx: int) -> Proof:
    entry = session.get(Entry, (head.log_id, idx))
    signed = checkpoints.covering(session, head.log_id, idx)
    if entry is None or signed is None:
        raise LedgerNotFound("entry")
    path = evidence.inclusion(session, head.log_id, idx, signed.size)
    return Proof(
        title=f"Entry {idx} ({entry.type}) stands in the log of {signed.size} entries",
        holds=merkle.includes(
            leaf=entry.leaf, index=idx, size=signed.size, path=path, root=signed.root
        ),
        lines=(("leaf", entry.leaf), (f"root at {signed.size}", signed.root)),
        path=tuple(path),
        note=checkpoints.full_note(session, signed),
        tlog=receipts.proof_of(session, signed, idx),
    )
