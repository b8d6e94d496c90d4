"""Positive controls count for the code and image that ran them, and for no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.audits import controls
from service.settings import Settings

PASSED = {
    "controls": [{"name": "noise_off", "min_p": 0.0, "steps": 5, "rang_at_step": 1}],
    "correct": [],
    "false_alarms": 0,
}
IMAGE = "sha256:" + "ab" * 32


def settings(directory: Path, image: str = "") -> Settings:
    return Settings(data_dir=directory, image_digest=image)


def test_what_was_run_is_cited_with_what_it_reached(tmp_path: Path) -> None:
    controls.write_controls(settings(tmp_path), PASSED)
    (found,) = controls.controls_of(settings(tmp_path))
    assert (found.name, found.min_p, found.has_tripped) == ("noise_off", 0.0, True)


def test_without_a_run_there_are_none(tmp_path: Path) -> None:
    assert controls.controls_of(settings(tmp_path)) == ()


def test_another_image_has_run_none(tmp_path: Path) -> None:
    controls.write_controls(settings(tmp_path, IMAGE), PASSED)
    assert controls.controls_of(settings(tmp_path)) == ()
    assert len(controls.controls_of(settings(tmp_path, IMAGE))) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"code_sha256": "0" * 64},
        {"image_digest": IMAGE},
        {"format": "rldp-audit-controls/0"},
        {"false_alarms": 1},
        {"controls": [{"name": "noise_off"}]},
    ],
)
def test_a_file_of_other_code_or_with_a_false_alarm_counts_for_nothing(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = controls.write_controls(settings(tmp_path), PASSED)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert controls.controls_of(settings(tmp_path)) == ()


def test_every_module_of_the_core_moves_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = controls.code_digest()
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(controls.dp_core, "__file__", str(tmp_path / "__init__.py"))
    first = controls.code_digest()
    (tmp_path / "noise.py").write_text("x = 1\n")
    assert len({before, first, controls.code_digest()}) == 3
