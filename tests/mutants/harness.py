"""Runs named tests on a copy of the sources, each time in a process of its own.

The processes are forked from one that has loaded the libraries and none of our code: a
mutant then costs its tests, and not half a minute of imports before them.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.mutants.mutation import Mutant

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("dp_core", "controller", "tests", "pyproject.toml")
OURS = ("dp_core", "controller", "service", "tests")
LIBRARIES = ("torch", "transformers", "peft", "opacus.optimizers", "dp_accounting.pld",
             "scipy.stats", "safetensors.torch")  # fmt: skip
SECONDS_MAX = 900
# A mutation that is no valid Python, or names what is not there, says nothing about a test.
BROKEN_CODE = ("NameError", "ImportError", "ModuleNotFoundError", "SyntaxError",
               "AttributeError", "UnboundLocalError", "IndentationError")  # fmt: skip

Verdict = Literal["passed", "failed", "broken"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the tests said: the first that failed and why, if one did."""

    verdict: Verdict
    failed_test: str
    reason: str
    seconds: float


class _FirstFailure:
    """A pytest plugin: keeps the first failed report."""

    def __init__(self) -> None:
        self.test, self.reason = "", ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.test:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.test = report.nodeid
            self.reason = (crash.message if crash else str(report.longrepr)).splitlines()[0][:200]


def load_libraries() -> None:
    """Once, before the first fork: nothing of ours, whose code is the copy's, and no plugin of
    pytest, which wants to load those itself."""
    for name in LIBRARIES:
        importlib.import_module(name)
    # Classes that transformers loads on first use.
    transformers: Any = importlib.import_module("transformers")
    _ = transformers.GPT2LMHeadModel, transformers.LlamaForCausalLM


def copy_sources(folder: Path) -> Path:
    """The sources in `folder`/copy, and the development data where tests look for them."""
    copy = folder / "copy"
    copy.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        else:
            shutil.copy2(ROOT / name, copy / name)
    shared = ROOT.parent / "shared"
    if shared.is_dir():
        (folder / "shared").symlink_to(shared.resolve(), target_is_directory=True)
    return copy


def run_tests(copy: Path, killers: Sequence[str]) -> Run:
    """The tests on the copy as it stands, to the first failure."""
    started = time.monotonic()
    context = multiprocessing.get_context("fork")
    answer = copy.parent / "answer.json"
    answer.unlink(missing_ok=True)
    process = context.Process(target=_child, args=(copy, tuple(killers), answer))
    process.start()
    process.join(SECONDS_MAX)
    if process.is_alive():
        process.kill()
        process.join()
    seconds = time.monotonic() - started
    if not answer.exists():
        return Run(verdict="broken", failed_test="", reason="no answer", seconds=seconds)
    code, test, reason = json.loads(answer.read_text("utf-8"))
    verdict: Verdict = {0: "passed", 1: "failed"}.get(code, "broken")  # type: ignore[assignment]
    if verdict == "failed" and reason.split(":")[0].split(".")[-1] in BROKEN_CODE:
        verdict = "broken"
    return Run(verdict=verdict, failed_test=test, reason=reason, seconds=seconds)


def _child(copy: Path, killers: Sequence[str], answer: Path) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] in OURS]:
        del sys.modules[name]
    os.chdir(copy)
    sys.path[:] = [str(copy), *(p for p in sys.path if p and Path(p).resolve() != ROOT)]
    sys.dont_write_bytecode = True  # a file changed twice in a second keeps its old bytecode
    output = os.open(copy.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # One counterexample is enough; looking for the smallest takes longer than the test.
    hypothesis = importlib.import_module("hypothesis")
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", phases=phases, database=None)
    hypothesis.settings.load_profile("mutants")
    first = _FirstFailure()
    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=1", "-m", ""]
    # Plugins of pytest that the libraries have loaded already: their asserts are not ours.
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    code = pytest.main([*options, *killers], plugins=[first])
    answer.write_text(json.dumps([int(code), first.test, first.reason]), "utf-8")


def judge(copy: Path, mutant: Mutant) -> Run:
    """The mutant's killers on the mutated copy, which is as before afterwards."""
    changed = mutant.changed_files(copy)
    before = {path: path.read_text("utf-8") for path in changed}
    for path, text in changed.items():
        path.write_text(text, "utf-8")
    try:
        return run_tests(copy, mutant.killers)
    finally:
        for path, text in before.items():
            path.write_text(text, "utf-8")
