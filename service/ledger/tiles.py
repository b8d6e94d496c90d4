"""Reads the nodes of a log's tree from stored tiles, so that proofs cost a logarithm.

A tile holds 256 neighbouring hashes of height 8*level, and after them their root, so that the
level above is read without folding what lies below. Only full tiles are stored, by the
publisher, after the entries stand; what is not in a tile yet comes from below: at most 255
leaves and, on each level, 255 roots. A tile is a copy: fsck compares it with the entries.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.ledger import merkle
from service.ledger.entries import insert_if_absent
from service.ledger.errors import LedgerBroken
from service.ledger.models import Entry, TreeTile

LEVEL_HEIGHT = 8
WIDTH = 1 << LEVEL_HEIGHT
HASH_CHARS = 64


class TileReader:
    """The `merkle.NodeReader` of one log during one transaction; it asks for each tile once."""

    def __init__(self, session: Session, log_id: str) -> None:
        self._session, self._log_id = session, log_id
        self._held: dict[tuple[int, int], list[str]] = {}

    def __call__(self, height: int, number: int) -> str:
        """The root of a full subtree.

        Raises:
            LedgerBroken: the log has no such entries.
        """
        level, rest = divmod(height, LEVEL_HEIGHT)
        return merkle.fold(self.hashes(level, number << rest, 1 << rest))

    def hashes(self, level: int, first: int, count: int) -> list[str]:
        """`count` neighbouring hashes of height 8*level; all lie in one tile.

        Raises:
            LedgerBroken: the log has no such entries.
        """
        number, offset = divmod(first, WIDTH)
        held = self._held.get((level, number), [])
        if len(held) < offset + count:
            held = self._stored(level, number) or self.below(level, number, offset + count)
            self._held[level, number] = held
        return held[offset : offset + count]

    def below(self, level: int, number: int, count: int) -> list[str]:
        """The first `count` hashes of a tile, or more, from entries or the tiles below it.

        Raises:
            LedgerBroken: the log has no such entries.
        """
        if level == 0:
            return self._leaves(number * WIDTH, count)
        roots = self._roots(level - 1, number * WIDTH)
        for missing in range(number * WIDTH + len(roots), number * WIDTH + count):
            roots.append(merkle.fold(self.hashes(level - 1, missing * WIDTH, WIDTH)))
        return roots

    def _stored(self, level: int, number: int) -> list[str]:
        found = self._session.scalar(
            select(TreeTile.hashes).where(
                TreeTile.log_id == self._log_id,
                TreeTile.level == level,
                TreeTile.number == number,
            )
        )
        return [] if found is None else _cut(found)[:WIDTH]

    def _roots(self, level: int, first: int) -> list[str]:
        """Roots of stored tiles from `first` on, up to a gap or the end of a tile above."""
        rows = self._session.execute(
            select(TreeTile.number, func.substr(TreeTile.hashes, WIDTH * HASH_CHARS + 1))
            .where(
                TreeTile.log_id == self._log_id,
                TreeTile.level == level,
                TreeTile.number >= first,
                TreeTile.number < first + WIDTH,
            )
            .order_by(TreeTile.number)
        )
        roots: list[str] = []
        for number, root in rows:
            if number != first + len(roots):
                break
            # an older release stored tiles without their root
            roots.append(root or merkle.fold(self._stored(level, number)))
        return roots

    def _leaves(self, first: int, count: int) -> list[str]:
        rows = self._session.scalars(
            select(Entry.leaf)
            .where(Entry.log_id == self._log_id, Entry.idx >= first, Entry.idx < first + WIDTH)
            .order_by(Entry.idx)
        ).all()
        if len(rows) < count:
            raise LedgerBroken(f"Log {self._log_id} lacks entries from {first} on.")
        return list(rows)


def node_reader(session: Session, log_id: str) -> TileReader:
    """The `NodeReader` of one log."""
    return TileReader(session, log_id)


def content(hashes: Sequence[str]) -> str:
    """A full tile as it is stored: its hashes, then their root."""
    return "".join([*hashes, merkle.fold(hashes)])


def is_copy(stored: str, hashes: Sequence[str]) -> bool:
    """Whether a stored tile holds these hashes, with their root or, as once, without."""
    return stored in (content(hashes), "".join(hashes))


def fill(session: Session, log_id: str, size: int) -> int:
    """Stores every full tile of the first `size` entries that is missing; how many."""
    made, level, hashes = 0, 0, size
    while hashes >= WIDTH:
        hashes //= WIDTH  # full tiles of this level, and hashes of the next
        for number in range(_stored(session, log_id, level), hashes):
            full = TileReader(session, log_id).below(level, number, WIDTH)
            row = {"log_id": log_id, "level": level, "number": number, "hashes": content(full)}
            made += insert_if_absent(session, TreeTile, row)
        level += 1
    return made


def _stored(session: Session, log_id: str, level: int) -> int:
    newest = select(func.max(TreeTile.number)).where(
        TreeTile.log_id == log_id, TreeTile.level == level
    )
    found = session.scalar(newest)
    return 0 if found is None else found + 1


def _cut(hashes: str) -> list[str]:
    return [hashes[at : at + HASH_CHARS] for at in range(0, len(hashes), HASH_CHARS)]
