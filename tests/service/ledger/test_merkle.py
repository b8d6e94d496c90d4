"""Tree hashes and proofs: against the recursive definition of RFC 6962 (T6)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.ledger import merkle

SIZES = st.integers(1, 300)


def leaves_of(size: int) -> list[str]:
    return [hashlib.sha256(b"\x00" + str(n).encode()).hexdigest() for n in range(size)]


LEAVES = leaves_of(300)
READ = merkle.reader_of(LEAVES)


# The definitions of RFC 6962 2.1, word for word: slow, and written without our module.


def split(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def combine(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def mth(d: list[bytes]) -> bytes:
    if not d:
        return hashlib.sha256(b"").digest()
    if len(d) == 1:
        return d[0]
    k = split(len(d))
    return combine(mth(d[:k]), mth(d[k:]))


def path(m: int, d: list[bytes]) -> list[bytes]:
    if len(d) == 1:
        return []
    k = split(len(d))
    if m < k:
        return [*path(m, d[:k]), mth(d[k:])]
    return [*path(m - k, d[k:]), mth(d[:k])]


def subproof(m: int, d: list[bytes], b: bool) -> list[bytes]:
    if m == len(d):
        return [] if b else [mth(d)]
    k = split(len(d))
    if m <= k:
        return [*subproof(m, d[:k], b), mth(d[k:])]
    return [*subproof(m - k, d[k:], False), mth(d[:k])]


def naive(size: int) -> list[bytes]:
    return [bytes.fromhex(leaf) for leaf in LEAVES[:size]]


class TestAgainstTheDefinition:
    @settings(deadline=None, max_examples=60)
    @given(size=st.integers(0, 300))
    def test_roots_are_equal_in_all_three_ways(self, size: int) -> None:
        expected = mth(naive(size)).hex()
        assert merkle.root_of_leaves(LEAVES[:size]) == expected
        assert merkle.root_at(size, READ) == expected

    @settings(deadline=None, max_examples=100)
    @given(data=st.data(), size=SIZES)
    def test_inclusion_paths_are_equal_and_verify(self, data: st.DataObject, size: int) -> None:
        index = data.draw(st.integers(0, size - 1))
        made = merkle.inclusion_path(index, size, READ)
        assert made == [h.hex() for h in path(index, naive(size))]
        root = merkle.root_at(size, READ)
        assert merkle.includes(leaf=LEAVES[index], index=index, size=size, path=made, root=root)

    @settings(deadline=None, max_examples=100)
    @given(data=st.data(), size=SIZES)
    def test_consistency_paths_are_equal_and_verify(self, data: st.DataObject, size: int) -> None:
        old = data.draw(st.integers(1, size))
        made = merkle.consistency_path(old, size, READ)
        assert made == [h.hex() for h in subproof(old, naive(size), True)]
        assert merkle.extends(
            old=old,
            old_root=merkle.root_at(old, READ),
            size=size,
            root=merkle.root_at(size, READ),
            path=made,
        )

    @settings(deadline=None, max_examples=200)
    @given(data=st.data(), size=st.integers(2, 120))
    def test_a_changed_proof_never_verifies(self, data: st.DataObject, size: int) -> None:
        index = data.draw(st.integers(0, size - 1))
        other = data.draw(st.integers(0, size - 1).filter(lambda n: n != index))
        made, root = merkle.inclusion_path(index, size, READ), merkle.root_at(size, READ)
        facts: dict[str, Any] = {"index": index, "size": size, "path": made, "root": root}
        place = data.draw(st.integers(0, len(made) - 1))
        spoiled = [*made[:place], LEAVES[299], *made[place + 1 :]]
        assert not merkle.includes(leaf=LEAVES[other], **facts)
        assert not merkle.includes(leaf=LEAVES[index], **(facts | {"path": spoiled}))
        assert not merkle.includes(leaf=LEAVES[index], **(facts | {"path": made[:-1]}))
        assert not merkle.includes(leaf=LEAVES[index], **(facts | {"path": [*made, root]}))

    @settings(deadline=None, max_examples=200)
    @given(data=st.data(), size=st.integers(2, 120))
    def test_a_rewritten_past_never_extends(self, data: st.DataObject, size: int) -> None:
        old = data.draw(st.integers(1, size - 1))
        changed = data.draw(st.integers(0, old - 1))
        forged = [*LEAVES[:changed], LEAVES[299], *LEAVES[changed + 1 : size]]
        read = merkle.reader_of(forged)
        facts: dict[str, Any] = {"old": old, "old_root": merkle.root_at(old, READ), "size": size}
        root = merkle.root_at(size, read)
        made = merkle.consistency_path(old, size, read)
        assert not merkle.extends(**facts, root=root, path=made)
        assert not merkle.extends(**facts, root=root, path=merkle.consistency_path(old, size, READ))


class TestEdges:
    def test_the_empty_tree_is_the_hash_of_nothing(self) -> None:
        assert merkle.root_at(0, READ) == merkle.EMPTY == hashlib.sha256().hexdigest()
        assert merkle.root_of([]) == merkle.EMPTY

    def test_a_path_from_the_empty_tree_is_empty_and_proves_nothing(self) -> None:
        root = merkle.root_at(7, READ)
        assert merkle.consistency_path(0, 7, READ) == []
        assert not merkle.extends(old=0, old_root=merkle.EMPTY, size=7, root=root, path=[])

    @pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5)])
    def test_no_path_to_a_leaf_that_is_not_there(self, index: int, size: int) -> None:
        with pytest.raises(merkle.ProofImpossible):
            merkle.inclusion_path(index, size, READ)

    @pytest.mark.parametrize("old", [-1, 6])
    def test_no_path_from_a_size_that_never_was(self, old: int) -> None:
        with pytest.raises(merkle.ProofImpossible):
            merkle.consistency_path(old, 5, READ)


Check = Callable[..., bool]


def bent(path: list[str]) -> Iterator[list[str]]:
    """Every way a path can be wrong by one step."""
    for at in range(len(path)):
        yield [*path[:at], "00" * 32, *path[at + 1 :]]
        yield path[:at] + path[at + 1 :]
    yield [*path, "00" * 32]


def check_inclusions(includes: Check) -> None:
    """The true path of every leaf of every small tree holds, and nothing beside it (T6)."""
    for size in range(1, 18):
        root, leaves = mth(naive(size)).hex(), LEAVES[:size]
        for index in range(size):
            true = [h.hex() for h in path(index, naive(size))]
            facts: dict[str, Any] = {"leaf": leaves[index], "index": index, "size": size}
            assert includes(**facts, path=true, root=root)
            assert not includes(**facts, path=true, root="00" * 32)
            assert not includes(**(facts | {"leaf": LEAVES[size]}), path=true, root=root)
            assert not includes(**(facts | {"index": size}), path=true, root=root)
            for wrong in bent(true):
                assert not includes(**facts, path=wrong, root=root)


def check_consistencies(extends: Check) -> None:
    """The true path between any two small trees holds, and nothing beside it (T6)."""
    for size in range(1, 18):
        root = mth(naive(size)).hex()
        for old in range(1, size + 1):
            true = [h.hex() for h in subproof(old, naive(size), True)]
            facts: dict[str, Any] = {"old": old, "size": size, "root": root}
            before = mth(naive(old)).hex()
            assert extends(**facts, old_root=before, path=true)
            assert not extends(**facts, old_root="00" * 32, path=true)
            for wrong in bent(true):
                assert not extends(**facts, old_root=before, path=wrong)


class TestEveryWayToBeWrong:
    def test_inclusion(self) -> None:
        check_inclusions(merkle.includes)

    def test_consistency(self) -> None:
        check_consistencies(merkle.extends)
