"""Finds the stand-alone verifier and runs it in an interpreter of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

PLACE = Path("deploy") / "verifier" / "verify_ledger.py"


def verifier_path() -> Path:
    """The verifier's file beside the installed packages; it is never imported.

    Raises:
        typer.BadParameter: this installation has none.
    """
    found = importlib.util.find_spec("service")
    assert found is not None and found.origin is not None, "this is the service"
    path = Path(found.origin).parent.parent / PLACE
    if not path.is_file():
        raise typer.BadParameter(f"This installation lacks {PLACE}; take it from the release.")
    return path


def run_verifier(arguments: Sequence[str]) -> int:
    """Passes everything through and returns the verifier's exit code."""
    command = [sys.executable, str(verifier_path()), *arguments]
    return subprocess.run(command, check=False).returncode
