"""The mutants of privacy.md 17 still say what they would change, and none is missing."""

from __future__ import annotations

import ast

import pytest

from tests.architecture.imports import ROOT
from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutation import Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.id)
def test_every_mutation_applies_once_and_gives_python(mutant: Mutant) -> None:
    for path, text in mutant.changed_files(ROOT).items():
        assert ast.unparse(ast.parse(text)) != ast.unparse(ast.parse(path.read_text("utf-8")))


def test_every_killer_is_written_down() -> None:
    for mutant in MUTANTS:
        assert mutant.killers
        for killer in mutant.killers:
            file, *names = killer.split("[")[0].split("::")
            text = (ROOT / file).read_text("utf-8")
            for name in names:
                assert f"class {name}:" in text or f"def {name}(" in text, killer


def test_all_33_rows_have_a_mutant_and_no_name_is_used_twice() -> None:
    assert {m.row for m in MUTANTS} == {f"M{n}" for n in range(1, 34)}
    assert len({m.id for m in MUTANTS}) == len(MUTANTS)
