"""Tree hashes and proofs: against the recursive definition and against foreign vectors (T6)."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.ledger import merkle

VECTORS = json.loads(
    (Path(__file__).resolve().parents[2] / "vectors" / "merkle_transparency_dev.json").read_text()
)
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


def in_hex(text: str | None) -> str:
    return base64.b64decode(text or "").hex()


def inclusion_holds(case: dict[str, Any], includes: Any) -> bool:
    return bool(
        includes(
            leaf=in_hex(case["leafHash"]),
            index=case["leafIdx"],
            size=case["treeSize"],
            path=[in_hex(h) for h in case["proof"] or []],
            root=in_hex(case["root"]),
        )
    )


def consistency_holds(case: dict[str, Any], extends: Any) -> bool:
    return bool(
        extends(
            old=case["size1"],
            old_root=in_hex(case["root1"]),
            size=case["size2"],
            root=in_hex(case["root2"]),
            path=[in_hex(h) for h in case["proof"] or []],
        )
    )


class TestForeignVectors:
    """All 196 vectors of transparency-dev/merkle (T6)."""

    def test_the_file_holds_all_of_them(self) -> None:
        assert (len(VECTORS["inclusion"]), len(VECTORS["consistency"])) == (98, 98)

    @pytest.mark.parametrize("case", VECTORS["inclusion"], ids=lambda case: case["name"])
    def test_inclusion(self, case: dict[str, Any]) -> None:
        assert inclusion_holds(case, merkle.includes) != case["wantErr"]

    @pytest.mark.parametrize("case", VECTORS["consistency"], ids=lambda case: case["name"])
    def test_consistency(self, case: dict[str, Any]) -> None:
        assert consistency_holds(case, merkle.extends) != case["wantErr"]
