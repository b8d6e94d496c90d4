"""Reads imports from source text, without running anything: who knows whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("dp_core", "controller", "service")


@dataclass(frozen=True, kw_only=True)
class Module:
    """One source file and what it imports when it is loaded."""

    name: str
    path: Path
    imports: frozenset[str]  # absolute names, at module level; a function's imports are lazy
    lazy_imports: frozenset[str]


@cache
def modules() -> dict[str, Module]:
    """Every module of our packages by dotted name."""
    return {m.name: m for package in PACKAGES for m in _read_package(package)}


def _read_package(package: str) -> Iterator[Module]:
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parent = name if is_package else name.rpartition(".")[0]
        yield Module(
            name=name,
            path=path,
            imports=frozenset(_imported(tree, parent, is_lazy=False)),
            lazy_imports=frozenset(_imported(tree, parent, is_lazy=True)),
        )


def _imported(tree: ast.AST, parent: str, *, is_lazy: bool) -> Iterator[str]:
    for node, inside_function in _walk(tree, False):
        if inside_function != is_lazy:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                start = parent.split(".")[: len(parent.split(".")) - node.level + 1]
                base = ".".join([*start, base]).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _walk(node: ast.AST, inside_function: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        if _is_type_checking_block(child):
            continue
        yield child, inside_function
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _walk(child, inside_function or is_function)


def _is_type_checking_block(node: ast.AST) -> bool:
    test = getattr(node, "test", None)
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(test or node)


def ours(module: Module, *, lazy: bool = False) -> set[str]:
    """Names of our own modules that a module imports, parents of a name included."""
    names = module.imports | (module.lazy_imports if lazy else frozenset())
    found = {name for name in names if name in modules()}
    for name in list(found):  # importing a.b.c runs a and a.b first
        parts = name.split(".")
        found |= {".".join(parts[:i]) for i in range(1, len(parts))} & modules().keys()
    return found - {module.name}


def reachable(start: str) -> dict[str, str]:
    """Everything loaded by importing `start`: module -> who imports it (module level only)."""
    seen: dict[str, str] = {start: ""}
    queue = [start, *_parents(start)]
    seen |= dict.fromkeys(queue[1:], start)
    while queue:
        name = queue.pop()
        module = modules().get(name)
        if module is None:
            continue
        for imported in sorted(module.imports | ours(module)):
            if imported not in seen:
                seen[imported] = name
                queue.append(imported)
    return seen


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def chain(seen: dict[str, str], name: str) -> str:
    """The path of imports that led to a module, for a message that can be acted on."""
    steps = [name]
    while seen.get(steps[-1]):
        steps.append(seen[steps[-1]])
    return " <- ".join(steps)
