"""RFC 6962 tree hashes of a log, kept as the roots of its full subtrees (ledger.md 9.1).

All hashes are hex. The frontier lists the roots of the full subtrees from left to right;
there are as many as the size has one-bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

EMPTY = hashlib.sha256().hexdigest()


def node(left: str, right: str) -> str:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + bytes.fromhex(left) + bytes.fromhex(right)).hexdigest()


def grow(frontier: Sequence[str], size: int, leaf: str) -> list[str]:
    """The frontier after one more leaf on a tree of `size` leaves."""
    grown = list(frontier)
    merged = leaf
    while size & 1:  # as in binary addition: every full subtree of that height merges
        merged = node(grown.pop(), merged)
        size >>= 1
    return [*grown, merged]


def root_of(frontier: Sequence[str]) -> str:
    """The tree's root; the hash of nothing for an empty log."""
    if not frontier:
        return EMPTY
    root = frontier[-1]
    for subtree in reversed(frontier[:-1]):
        root = node(subtree, root)
    return root


def root_of_leaves(leaves: Iterable[str]) -> str:
    """The root computed from all leaves."""
    frontier: list[str] = []
    for size, leaf in enumerate(leaves):
        frontier = grow(frontier, size, leaf)
    return root_of(frontier)
