"""RFC 6962 proofs against the vectors of transparency-dev/merkle: 196 of 196 each (T6).

The service and the standalone verifier each have tree code of their own; the suite runs on
both. Where the vectors come from, and under which licence, stands in their file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from service.ledger import merkle
from tests.deploy.test_verify_ledger import verifier

VECTORS = json.loads(
    (Path(__file__).resolve().parents[1] / "vectors" / "rfc6962_merkle.json").read_text()
)
LEAVES = [
    hashlib.sha256(b"\x00" + bytes.fromhex(entry)).hexdigest() for entry in VECTORS["leaf_inputs"]
]
Case = dict[str, Any]
both = pytest.mark.parametrize("tree", [merkle, verifier], ids=["service", "verifier"])


def hexed(text: str | None) -> str:
    return base64.b64decode(text or "").hex()


def path_of(case: Case) -> list[str]:
    return [hexed(sibling) for sibling in case["proof"] or []]


def is_included(tree: ModuleType, case: Case) -> bool:
    held: bool = tree.includes(
        leaf=hexed(case["leafHash"]),
        index=case["leafIdx"],
        size=case["treeSize"],
        path=path_of(case),
        root=hexed(case["root"]),
    )
    return held


def is_extended(tree: ModuleType, case: Case) -> bool:
    held: bool = tree.extends(
        old=case["size1"],
        old_root=hexed(case["root1"]),
        size=case["size2"],
        root=hexed(case["root2"]),
        path=path_of(case),
    )
    return held


CHECKS = {"inclusion": is_included, "consistency": is_extended}


@pytest.mark.parametrize("kind", CHECKS)
def test_the_copy_is_whole(kind: str) -> None:
    cases = VECTORS[kind]
    assert len({case["path"] for case in cases}) == len(cases) == 98
    assert sum(not case["wantErr"] for case in cases) == 6


@both
@pytest.mark.parametrize("kind", CHECKS)
def test_every_proof_is_judged_as_the_vectors_say(kind: str, tree: ModuleType) -> None:
    judged = {case["path"]: CHECKS[kind](tree, case) for case in VECTORS[kind]}
    assert judged == {case["path"]: not case["wantErr"] for case in VECTORS[kind]}


def test_roots_are_those_of_the_vectors() -> None:
    for size, root in enumerate(VECTORS["roots"]):
        assert merkle.root_of_leaves(LEAVES[:size]) == root
        assert merkle.root_at(size, merkle.reader_of(LEAVES)) == root
        assert verifier.merkle_root(LEAVES[:size]) == root
    assert verifier.roots_at(LEAVES, range(1, 9)) == dict(enumerate(VECTORS["roots"][1:], start=1))


def test_our_own_proofs_are_those_of_the_vectors() -> None:
    read = merkle.reader_of(LEAVES)
    known = set(VECTORS["roots"][1:])
    made = {"inclusion": 0, "consistency": 0}
    for case in VECTORS["inclusion"]:
        if not case["wantErr"] and hexed(case["root"]) in known:
            assert merkle.inclusion_path(case["leafIdx"], case["treeSize"], read) == path_of(case)
            made["inclusion"] += 1
    for case in VECTORS["consistency"]:
        if not case["wantErr"] and hexed(case["root2"]) in known:
            assert merkle.consistency_path(case["size1"], case["size2"], read) == path_of(case)
            made["consistency"] += 1
    assert made == {"inclusion": 5, "consistency": 5}
