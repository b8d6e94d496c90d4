"""The README tells the truth: settings, commands, files, snippets."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from openai import OpenAI
from typer.testing import CliRunner

from service.cli import app
from service.jobs.schemas import JobRequest
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


class TestSettingsTable:
    def test_names_every_setting_and_no_other(self) -> None:
        named = re.findall(r"^\| `(RLDP_[A-Z_]+)` \|", README, flags=re.MULTILINE)
        assert named == [f"RLDP_{name.upper()}" for name in Settings.model_fields]

    @pytest.mark.parametrize("name", sorted(Settings.model_fields))
    def test_states_the_default(self, name: str) -> None:
        default = Settings.model_fields[name].default
        row = next(line for line in README.splitlines() if f"`RLDP_{name.upper()}`" in line)
        stated = row.split("|")[2].strip().strip("`")
        if default not in ("", None):  # otherwise words say what is derived
            assert stated == f"{default:g}" if isinstance(default, float) else str(default)


class TestCommands:
    def test_every_rldp_command_exists(self) -> None:
        known = {command.name or command.callback.__name__ for command in app.registered_commands}
        known |= {group.name for group in app.registered_groups}
        shells = "\n".join(_blocks("sh")) + " ".join(re.findall(r"`rldp ([a-z]+)", README))
        used = set(re.findall(r"\brldp ([a-z]+)", shells))
        assert used
        assert used <= known

    @pytest.mark.parametrize("command", [["up"], ["verify"], ["demo"], ["ledger", "export"]])
    def test_it_answers_help(self, command: list[str]) -> None:
        assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0

    def test_every_make_target_exists(self) -> None:
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(re.findall(r"\bmake ([a-z-]+)", README)) - {"not"} <= targets

    @pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
    def test_make_help_lists_every_target(self) -> None:
        done = subprocess.run(
            ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for target in ("demo", "test", "check", "lint", "types", "bench", "clean", "test-faults"):
            assert f"make {target}" in done.stdout


class TestSnippets:
    def test_python_snippets_are_python(self) -> None:
        assert _blocks("python")
        for block in _blocks("python"):
            ast.parse(block)

    def test_the_client_has_every_method_the_snippet_calls(self) -> None:
        client = OpenAI(base_url="http://127.0.0.1:9", api_key="none")
        tree = ast.parse(_blocks("python")[0])
        calls = [ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)]
        paths = [call for call in calls if call.startswith("client.")]
        assert len(paths) == 5
        for path in paths:
            method = client
            for name in path.split(".")[1:]:
                method = getattr(method, name)
            assert inspect.ismethod(method)

    def test_the_request_bodies_are_accepted(self) -> None:
        body = next(re.findall(r"-d '(\{.*\})'", block, re.DOTALL) for block in _blocks("sh")
                    if "-d '" in block)[0]  # fmt: skip
        parsed = JobRequest.model_validate(json.loads(body.replace("'$FILE'", "file-1")))
        assert parsed.privacy.steps_max == 96
        tree = ast.parse(_blocks("python")[0])
        create = next(n for n in ast.walk(tree) if isinstance(n, ast.Call)
                      and ast.unparse(n.func).endswith("create"))  # fmt: skip
        extra = next(k.value for k in create.keywords if k.arg == "extra_body")
        JobRequest.model_validate(
            {"model": "m", "training_file": "f", **ast.literal_eval(ast.unparse(extra))}
        )


def test_every_linked_or_named_file_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    named = re.findall(r"`([a-z_]+/[\w./-]*)`", README)
    assert links
    for place in {*links, *named}:
        assert (ROOT / place).exists() or place.startswith("."), place


def test_the_certainty_in_the_promise_is_right() -> None:
    from math import exp

    assert "ε = 3" in README
    assert f"{100 / (1 + exp(-3)):.1f} %" in README
