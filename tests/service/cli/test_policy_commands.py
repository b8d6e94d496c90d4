"""`rldp policy`: what its user sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["policy", *arguments])
    return done.exit_code, done.output + (done.stderr or "")


def test_show_prints_the_card_of_the_shipped_policy() -> None:
    code, text = run("show")
    assert code == 0
    card = json.loads(text)
    assert card["command"].startswith("rldp policy pretrain")
    assert card["suite"]["text"].startswith("none")
    assert card["evaluation"]["mean"] < 0  # it is shipped because it helped on unseen tasks


def test_export_gives_a_copy_that_can_be_shown_and_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "copy"
    code, text = run("export", "--out", str(out))
    assert code == 0
    shown, card = run("show", "--policy", str(out))
    assert shown == 0
    assert json.loads(card)["digest"] in text
    code, text = run("export", "--out", str(out))
    assert code != 0
    assert "empty" in text
    assert "Traceback" not in text


def test_a_damaged_policy_is_one_plain_line(tmp_path: Path) -> None:
    out = tmp_path / "copy"
    run("export", "--out", str(out))
    data = bytearray((out / "policy.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "policy.safetensors").write_bytes(bytes(data))
    code, text = run("evaluate", "--policy", str(out), "--tasks", "2")
    assert code != 0
    assert "digest" in text
    assert "Traceback" not in text


@pytest.mark.ci
def test_pretrain_writes_a_policy_and_says_what_it_is_worth(tmp_path: Path) -> None:
    out = tmp_path / "made"
    code, text = run("pretrain", "--out", str(out), "--windows", "2", "--tasks", "2")
    assert code == 0, text
    assert "final loss minus the reference plan's" in text
    assert json.loads((out / "card.json").read_text())["training"]["windows_run"] == 2
