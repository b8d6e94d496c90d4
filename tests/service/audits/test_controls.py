"""Positive controls count for the code, image and device that ran them, and for no other."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from dp_core.audit.report import CORRECT_ENGINE
from service.audits import controls
from service.audits.control_faults import ControlFault, control_faults
from service.settings import Settings

PASSED = {
    "controls": [{"name": "noise_off", "min_p": 0.0, "steps": 5, "rang_at_step": 1}],
    "correct": [{"name": "correct", "min_p": 0.4, "steps": 60, "rang_at_step": None}],
    "false_alarms": 0,
    "missing": [],
}
IMAGE = "sha256:" + "ab" * 32
CPU, GPU = "cpu", "cuda-sm90"


def settings(directory: Path, image: str = "") -> Settings:
    return Settings(data_dir=directory, image_digest=image)


def test_what_was_run_is_cited_with_what_it_reached(tmp_path: Path) -> None:
    controls.write_controls(settings(tmp_path), CPU, PASSED)
    (found,) = controls.controls_of(settings(tmp_path), CPU)
    assert (found.name, found.min_p, found.has_tripped) == ("noise_off", 0.0, True)
    assert controls.has_record(settings(tmp_path), CPU)


def test_without_a_run_there_are_none(tmp_path: Path) -> None:
    assert controls.controls_of(settings(tmp_path), CPU) == ()
    assert not controls.has_record(settings(tmp_path), CPU)


@pytest.mark.parametrize(("image", "device"), [(IMAGE, CPU), ("", GPU)])
def test_another_image_or_device_has_run_none(tmp_path: Path, image: str, device: str) -> None:
    controls.write_controls(settings(tmp_path), CPU, PASSED)
    other = settings(tmp_path, image)
    assert controls.controls_of(other, device) == ()
    controls.write_controls(other, device, PASSED)
    assert len(controls.controls_of(other, device)) == 1
    assert len(controls.controls_of(settings(tmp_path), CPU)) == 1


def test_a_ring_without_a_fault_is_cited_and_is_no_fault_found(tmp_path: Path) -> None:
    rang = [{"name": "correct", "min_p": p, "steps": 60, "rang_at_step": 2} for p in (0.3, 1e-8)]
    controls.write_controls(settings(tmp_path), CPU, PASSED | {"correct": rang, "false_alarms": 1})
    found = controls.controls_of(settings(tmp_path), CPU)[-1]
    assert (found.name, found.min_p) == (CORRECT_ENGINE, 1e-8)
    assert found.is_false_alarm and not found.has_tripped


@pytest.mark.parametrize(
    "change",
    [
        {"code_sha256": "0" * 64},
        {"image_digest": IMAGE},
        {"device": GPU},
        {"format": "rldp-audit-controls/1"},
        {"false_alarms": 1, "correct": []},
        {"controls": [{"name": "noise_off"}]},
    ],
)
def test_a_file_of_other_code_or_cut_off_counts_for_nothing(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = controls.write_controls(settings(tmp_path), CPU, PASSED)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert controls.controls_of(settings(tmp_path), CPU) == ()


def test_every_module_of_the_core_moves_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = controls.code_digest()
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(controls.dp_core, "__file__", str(tmp_path / "__init__.py"))
    first = controls.code_digest()
    (tmp_path / "noise.py").write_text("x = 1\n")
    assert len({before, first, controls.code_digest()}) == 3


class TestFailedTry:
    def test_it_is_not_repeated_for_an_hour(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = settings(tmp_path)
        assert not controls.failed_lately(asked, CPU)
        controls.note_failure(asked, CPU, "timed_out")
        assert controls.failed_lately(asked, CPU)
        assert not controls.failed_lately(asked, GPU)
        later = time.time() + controls.RETRY_SECONDS + 1
        monkeypatch.setattr(controls.time, "time", lambda: later)
        assert not controls.failed_lately(asked, CPU)

    def test_a_record_ends_it(self, tmp_path: Path) -> None:
        controls.note_failure(settings(tmp_path), CPU, "killed")
        assert not controls.has_record(settings(tmp_path), CPU)
        controls.write_controls(settings(tmp_path), CPU, PASSED)
        assert not controls.failed_lately(settings(tmp_path), CPU)
        assert control_faults(tmp_path) == ()


class TestFaultsToTell:
    """What API and dispatcher read, without the audit's code."""

    def test_a_folder_without_records_or_with_good_ones_is_silent(self, tmp_path: Path) -> None:
        assert control_faults(tmp_path) == ()
        controls.write_controls(settings(tmp_path), CPU, PASSED)
        assert control_faults(tmp_path) == ()

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"missing": ["noise_off"]}, ControlFault(device=CPU, missing=("noise_off",))),
            ({"false_alarms": 1}, ControlFault(device=CPU, is_false_alarm=True)),
        ],
    )
    def test_what_was_missed_is_named(
        self, tmp_path: Path, change: dict[str, Any], told: ControlFault
    ) -> None:
        controls.write_controls(settings(tmp_path), CPU, PASSED | change)
        assert control_faults(tmp_path) == (told,)

    def test_a_try_without_an_end_is_told_by_its_kind(self, tmp_path: Path) -> None:
        controls.note_failure(settings(tmp_path), GPU, "OutOfMemoryError")
        assert control_faults(tmp_path) == (ControlFault(device=GPU, why="OutOfMemoryError"),)

    def test_only_the_record_in_use_counts(self, tmp_path: Path) -> None:
        """The release before failed; after a way back it is in use again, and fails again."""
        bad = controls.write_controls(settings(tmp_path), CPU, PASSED | {"missing": ["noise_off"]})
        old = bad.rename(bad.with_name("0123456789abcdef-no-image-cpu.json"))
        os.utime(old, (1, 1))
        good = controls.write_controls(settings(tmp_path), CPU, PASSED)
        os.utime(good, (2, 2))
        assert control_faults(tmp_path) == ()
        os.utime(old, (3, 3))
        assert len(control_faults(tmp_path)) == 1
        assert controls.has_record(settings(tmp_path), CPU)  # a worker of the good one starts
        assert control_faults(tmp_path) == ()

    def test_what_cannot_be_read_is_passed_over(self, tmp_path: Path) -> None:
        path = controls.write_controls(settings(tmp_path), CPU, PASSED)
        path.write_text("[1")
        path.with_name("x.json").write_text("[]")
        assert control_faults(tmp_path) == ()
