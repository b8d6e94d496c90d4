"""RFC 6962 tree hashes and proofs of a log (ledger.md 9.1; RFC 6962 2.1, RFC 9162 2.1.3-2.1.4).

All hashes are hex. The frontier lists the roots of the full subtrees from left to right;
there are as many as the size has one-bits. Proofs read full subtrees through a `NodeReader`,
so that their cost grows with the logarithm of the log when it can serve high nodes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

EMPTY = hashlib.sha256().hexdigest()

# (height, number) -> root of the full subtree over leaves number*2^height ... +2^height.
NodeReader = Callable[[int, int], str]


class ProofImpossible(ValueError):
    """The tree has no such leaf, or no such earlier size."""


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


def reader_of(leaves: Sequence[str]) -> NodeReader:
    """Reads every node from all leaves; for small trees."""

    def read(height: int, number: int) -> str:
        return fold(leaves[number << height : (number + 1) << height])

    return read


def fold(hashes: Sequence[str]) -> str:
    """The root over a power of two of neighbouring nodes of one height."""
    assert hashes and len(hashes) & (len(hashes) - 1) == 0, "a full subtree"
    level = list(hashes)
    while len(level) > 1:
        level = [node(level[i], level[i + 1]) for i in range(0, len(level), 2)]
    return level[0]


def root_at(size: int, read: NodeReader) -> str:
    """The root of the first `size` leaves."""
    return EMPTY if size == 0 else _range_root(0, size, read)


def inclusion_path(index: int, size: int, read: NodeReader) -> list[str]:
    """PATH(index, D[size]): siblings from the leaf to the root.

    Raises:
        ProofImpossible: the tree has no such leaf.
    """
    if not 0 <= index < size:
        raise ProofImpossible(f"A tree of {size} leaves has no leaf {index}.")
    start, end, path = 0, size, list[str]()
    while end - start > 1:
        split = start + _split(end - start)
        if index < split:
            path.append(_range_root(split, end, read))
            end = split
        else:
            path.append(_range_root(start, split, read))
            start = split
    return path[::-1]


def consistency_path(old: int, size: int, read: NodeReader) -> list[str]:
    """PROOF(old, D[size]): that the tree of `size` leaves begins with that of `old`.

    Empty for equal sizes, and for `old` 0 as C2SP tlog-witness has it.

    Raises:
        ProofImpossible: `old` is larger than the tree.
    """
    if not 0 <= old <= size:
        raise ProofImpossible(f"A tree of {size} leaves had never {old}.")
    if old in (0, size):
        return []
    start, end, path, is_left_edge = 0, size, list[str](), True
    while old != end:
        split = start + _split(end - start)
        if old <= split:
            path.append(_range_root(split, end, read))
            end = split
        else:
            path.append(_range_root(start, split, read))
            start, is_left_edge = split, False
    if not is_left_edge:  # else the verifier knows this subtree: it is the old root
        path.append(_range_root(start, end, read))
    return path[::-1]


def includes(*, leaf: str, index: int, size: int, path: Sequence[str], root: str) -> bool:
    """Whether the path proves the leaf at `index` in the tree of that size and root."""
    if not 0 <= index < size or len(leaf) != len(EMPTY):
        return False
    at, last, found = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return False
        if at & 1 or at == last:
            found = node(sibling, found)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            found = node(found, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and found == root


def extends(*, old: int, old_root: str, size: int, root: str, path: Sequence[str]) -> bool:
    """Whether the path proves that the tree (size, root) begins with (old, old_root).

    False for `old` 0: that every tree extends the empty one needs no proof and proves nothing.
    """
    if not 0 < old <= size:
        return False
    if old == size:
        return not path and old_root == root
    hashes = [old_root, *path] if old & (old - 1) == 0 else list(path)
    if not hashes:
        return False
    at, last = old - 1, size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    earlier = later = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            earlier, later = node(sibling, earlier), node(sibling, later)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            later = node(later, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and (earlier, later) == (old_root, root)


def _split(width: int) -> int:
    """The largest power of two below `width`."""
    return 1 << ((width - 1).bit_length() - 1)


def _range_root(start: int, end: int, read: NodeReader) -> str:
    """MTH(D[start:end]); `start` is a multiple of the next power of two, as splits make it."""
    width = end - start
    if width & (width - 1) == 0:
        height = width.bit_length() - 1
        return read(height, start >> height)
    split = start + _split(width)
    return node(_range_root(start, split, read), _range_root(split, end, read))
