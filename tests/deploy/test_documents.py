"""What deploy/ tells people exists: commands, options, make targets, files, measured figures."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from service.cli import app
from tests.benchmarks import year
from tests.deploy.parts import DEPLOY, compose

DOCUMENTS = sorted(DEPLOY.glob("*.md"))
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in DOCUMENTS}


@pytest.mark.parametrize("name", TEXTS)
def test_every_rldp_command_exists(name: str) -> None:
    spoken = re.findall(r"(?<!-n )\brldp ((?:[a-z][a-z-]*(?: |$|`))+)", TEXTS[name], re.MULTILINE)
    services = compose()["services"]
    ours = [s for s, told in services.items() if told["image"].startswith("rldp/")]
    run = rf"docker compose run [^\n`]*?\b(?:{'|'.join(ours)}) ([a-z][^\n`]*)"
    spoken += re.findall(run, TEXTS[name])
    for words in spoken:
        command: Any = typer.main.get_command(app)
        for word in shlex.split(words.replace("`", " ").replace("'", "")):
            if not hasattr(command, "commands") or word.startswith("-"):
                break
            assert word in command.commands, f"{name}: rldp {words}"
            command = command.commands[word]


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_and_target_exists(name: str) -> None:
    makefile = (DEPLOY.parent / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", TEXTS[name])) <= targets
    for place in re.findall(
        r"`((?!build/)[\w.-]+/[\w./-]*\.(?:py|sql|md|json|service|yaml))`", TEXTS[name]
    ):
        roots = (DEPLOY, DEPLOY.parent, DEPLOY.parent / "service")
        assert any((root / place).exists() for root in roots), f"{name}: {place}"


def test_the_runbook_names_alerts_services_and_alone_what_is_true() -> None:
    text = TEXTS["runbook.md"]
    profiles = {p for s in compose()["services"].values() for p in s.get("profiles", ())}
    assert set(re.findall(r"--profile ([a-z-]+)", text)) <= profiles
    assert set(re.findall(r"RLDP_[A-Z_]+", text)) <= {
        f"RLDP_{field.upper()}" for field in _settings()
    }
    assert (DEPLOY / "systemd" / "rldp.target").exists()


def _settings() -> list[str]:
    from service.settings import Settings

    return list(Settings.model_fields)


def test_the_licence_of_the_package_is_named_where_images_say_it() -> None:
    label = 'org.opencontainers.image.licenses="Apache-2.0"'
    assert label in Path(DEPLOY / "images" / "Containerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("windows", [12, 100])
def test_the_capacity_sheet_is_what_the_command_prints(windows: int) -> None:
    result = json.loads((DEPLOY / "capacity.json").read_text(encoding="utf-8"))
    assert year.sheet(result, windows=windows) in TEXTS["capacity.md"]


def test_the_capacity_sheet_states_the_measured_ratios() -> None:
    result = json.loads((DEPLOY / "capacity.json").read_text(encoding="utf-8"))["measured"]
    rows = re.findall(
        r"^\| ([a-z ]+) \| (\d+) \| (\d+) \| (\d\.\d\d) \| (.*) \|$", TEXTS["capacity.md"], re.M
    )
    told = {float(ratio) for _, _, _, ratio, _ in rows}
    assert told == {row["ratio"] for row in result["operations"].values()}
    for name, _, _, ratio, verdict in rows:
        assert verdict.startswith("yes") == (float(ratio) <= year.GROWTH_BAR), name
    assert f"{result['bytes_an_entry']:,} bytes" in TEXTS["capacity.md"]
