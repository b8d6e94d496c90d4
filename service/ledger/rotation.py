"""A log's keys change in the open: `key.rotated`, signed by old and new key (ledger.md 18.4).

The order of a rotation: `prepare` makes the next key and a statement signed by both; witnesses
and auditors pin the next key by it; `activate` refuses until enough witnesses sign for the
next key, enters `key.rotated` in every log, then moves the file. Checkpoints that hold the
entry are signed by the new key. A process that still holds the old one signs nothing.
A receipt key needs no pinning: the log's key vouches for it in the log itself (10.4).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.database import Database
from service.ledger import checkpoints, merkle, notes, tiles
from service.ledger.checkpoints import rotated_key
from service.ledger.entries import SYSTEM, Draft, append
from service.ledger.errors import KeysNotPinned
from service.ledger.keys import LedgerKeys
from service.ledger.models import LogHead
from service.ledger.witnesses import Post, Witness, WitnessUnreachable, cosign

Role = Literal["log", "receipt"]


def statement(keys: LedgerKeys, new: Ed25519PrivateKey, origin: str) -> notes.Note:
    """The coming change of the log's key as a note of two signatures, for witnesses.

    `origin` is that of the system log in use: a recovery has given it another name.
    """
    text = notes.rotation_text(origin=origin, role="log", old=keys.log_public, new=public_hex(new))
    both = [notes.sign(text, origin, key).signatures[0] for key in (keys.log, new)]
    return notes.Note(text=text, signatures=tuple(both))


def public_hex(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def pinned_by(
    db: Database, witnesses: Sequence[Witness], origin: str, new: Ed25519PrivateKey, post: Post
) -> set[str]:
    """The witnesses that cosign the newest checkpoint when only the next key has signed it."""
    with db.reading() as session:
        system = checkpoints.system_log(session)
        newest = None if system is None else checkpoints.newest(session, system)
    if system is None or newest is None:
        return set()
    told = notes.Checkpoint(origin=origin, size=newest.size, root=newest.root)

    def prove(old: int, size: int) -> list[str]:
        with db.reading() as session:
            return merkle.consistency_path(old, size, tiles.node_reader(session, system))

    found = set()
    for witness in witnesses:
        note = notes.sign(told.text, origin, new).full
        try:
            cosign(
                witness,
                log_id=system,
                checkpoint=told,
                note=note,
                known_size=newest.size,
                prove=prove,
                post=post,
            )
        except WitnessUnreachable:
            continue
        found.add(witness.key.name)
    return found


def require_pinned(names: set[str], quorum: int) -> None:
    """Raises KeysNotPinned when fewer witnesses than the quorum know the next key."""
    if len(names) < quorum:
        raise KeysNotPinned(known=len(names), quorum=quorum)


def enter_log_key(session: Session, keys: LedgerKeys, new: Ed25519PrivateKey) -> int:
    """Enters the change in every log, under one transaction; in how many logs.

    The receipt key is certified anew by the new key. The same again changes nothing.
    """
    system = checkpoints.locked_system_log(session, keys)
    logs = _all_logs(session, system)
    renewed = keys.followed_by(new)
    for log_id in logs:
        _enter(session, log_id, keys, role="log", old=keys.log_public, new=new)
        _enter(session, log_id, renewed, role="receipt", old=None, new=keys.receipt)
    return len(logs)


def enter_receipt_key(session: Session, keys: LedgerKeys, new: Ed25519PrivateKey) -> int:
    """Certifies a new receipt key by the log's key, in every log; in how many."""
    logs = _all_logs(session, checkpoints.locked_system_log(session, keys))
    for log_id in logs:
        _enter(session, log_id, keys, role="receipt", old=keys.receipt_public, new=new)
    return len(logs)


def _all_logs(session: Session, system: str) -> list[str]:
    others = select(LogHead.log_id).where(LogHead.log_id != system).order_by(LogHead.log_id)
    return [system, *session.scalars(others)]


def _enter(
    session: Session,
    log_id: str,
    authority: LedgerKeys,
    *,
    role: Role,
    old: str | None,
    new: Ed25519PrivateKey,
) -> None:
    origin = checkpoints.present_origin(session, authority)
    text = notes.rotation_text(origin=origin, role=role, old=old, new=public_hex(new)).encode()
    data = {
        "authority": authority.log_public,
        "authority_signature": _signature(authority.log, text),
        "new": public_hex(new),
        "new_signature": _signature(new, text),
        "old": old,
        "origin": origin,
        "role": role,
    }
    idem = f"{public_hex(new)}/certified/{authority.log_public[:16]}"
    if role == "log":
        idem = rotated_key(authority.log_public)
    append(session, log_id, Draft(type="key.rotated", idem=idem, actor=SYSTEM, data=data))


def _signature(key: Ed25519PrivateKey, text: bytes) -> str:
    return base64.b64encode(key.sign(text)).decode()
