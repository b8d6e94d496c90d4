"""Modules fit in a head, functions on a screen, and files name no machine."""

from __future__ import annotations

import ast
import re

import pytest

from tests.architecture.imports import ROOT, modules

LINES_CEILING = 700
LINES_USUAL_MAX = 450
MODULES_ABOVE_USUAL_MAX = 3
FUNCTION_LINES_MAX = 70
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".html", ".css", ".js", ".mako", ".ini", ".yml"}


def _lines(name: str) -> int:
    return len(modules()[name].path.read_text(encoding="utf-8").splitlines())


def test_no_module_passes_the_ceiling() -> None:
    assert not [name for name in modules() if _lines(name) > LINES_CEILING]


def test_long_modules_are_rare() -> None:
    long = [name for name in modules() if _lines(name) > LINES_USUAL_MAX]
    assert len(long) <= MODULES_ABOVE_USUAL_MAX, long


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{name}.{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for name, module in modules().items()
        for node in ast.walk(ast.parse(module.path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert not long


@pytest.mark.parametrize("name", sorted(modules()))
def test_every_module_says_what_it_gives(name: str) -> None:
    docstring = ast.get_docstring(ast.parse(modules()[name].path.read_text(encoding="utf-8")))
    assert docstring, f"{name} has no docstring"


def test_no_file_names_a_place_of_one_machine() -> None:
    home = re.compile(r"(?<![\w.])/(?:work|tmp|home|root|Users)/\w")
    places = ("dp_core", "controller", "service", "migrations", "deploy", "tests", ".ci")
    files = [p for place in places for p in (ROOT / place).rglob("*") if p.suffix in TEXT_SUFFIXES]
    files += [ROOT / name for name in ("README.md", "CHANGELOG.md", "Makefile", "pyproject.toml")]
    assert len(files) > 20
    named = [str(p.relative_to(ROOT)) for p in files if home.search(p.read_text(encoding="utf-8"))]
    assert not named
