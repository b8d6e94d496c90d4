"""Reads the nodes of a log's tree from stored tiles, so that proofs cost a logarithm.

A tile holds 256 neighbouring hashes of height 8*level. Only full tiles are stored, by the
publisher, after the entries stand; what is not in a tile yet is folded from below. A tile
is a copy: fsck compares it with the entries.
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.ledger import merkle
from service.ledger.entries import insert_if_absent
from service.ledger.errors import LedgerBroken
from service.ledger.models import Entry, TreeTile

LEVEL_HEIGHT = 8
WIDTH = 1 << LEVEL_HEIGHT
HASH_CHARS = 64


def node_reader(session: Session, log_id: str) -> merkle.NodeReader:
    """The `NodeReader` of one log."""

    def read(height: int, number: int) -> str:
        level, rest = divmod(height, LEVEL_HEIGHT)
        return merkle.fold(hashes_at(session, log_id, level, number << rest, 1 << rest))

    return read


def hashes_at(session: Session, log_id: str, level: int, first: int, count: int) -> list[str]:
    """`count` neighbouring hashes of height 8*level; all lie in one tile.

    Raises:
        LedgerBroken: the log has no such entries.
    """
    tile, offset = divmod(first, WIDTH)
    stored = session.scalar(
        select(TreeTile.hashes).where(
            TreeTile.log_id == log_id, TreeTile.level == level, TreeTile.number == tile
        )
    )
    if stored is not None:
        return _cut(stored)[offset : offset + count]
    return from_below(session, log_id, level, first, count)


def from_below(session: Session, log_id: str, level: int, first: int, count: int) -> list[str]:
    """The same hashes, from entries or from the tiles one level below.

    Raises:
        LedgerBroken: the log has no such entries.
    """
    if level == 0:
        return _leaves(session, log_id, first, count)
    return [
        merkle.fold(hashes_at(session, log_id, level - 1, number * WIDTH, WIDTH))
        for number in range(first, first + count)
    ]


def fill(session: Session, log_id: str, size: int) -> int:
    """Stores every full tile of the first `size` entries that is missing; how many."""
    made, level, hashes = 0, 0, size
    while hashes >= WIDTH:
        hashes //= WIDTH  # full tiles of this level, and hashes of the next
        for number in range(_stored(session, log_id, level), hashes):
            joined = "".join(hashes_at(session, log_id, level, number * WIDTH, WIDTH))
            row = {"log_id": log_id, "level": level, "number": number, "hashes": joined}
            made += insert_if_absent(session, TreeTile, row)
        level += 1
    return made


def _stored(session: Session, log_id: str, level: int) -> int:
    newest = select(func.max(TreeTile.number)).where(
        TreeTile.log_id == log_id, TreeTile.level == level
    )
    found = session.scalar(newest)
    return 0 if found is None else found + 1


def _leaves(session: Session, log_id: str, first: int, count: int) -> list[str]:
    rows = session.scalars(
        select(Entry.leaf)
        .where(Entry.log_id == log_id, Entry.idx >= first, Entry.idx < first + count)
        .order_by(Entry.idx)
    ).all()
    if len(rows) != count:
        raise LedgerBroken(f"Log {log_id} lacks entries from {first} on.")
    return list(rows)


def _cut(hashes: str) -> list[str]:
    return [hashes[at : at + HASH_CHARS] for at in range(0, len(hashes), HASH_CHARS)]
