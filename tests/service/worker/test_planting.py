"""Faults are planted once, by one process, in bounded time; what came of it is kept or told."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from dp_core.audit.report import REQUIRED_CONTROLS
from service.audits import controls
from service.settings import Settings
from service.worker import planting
from service.worker.controls import TRAINER_SECONDS
from tests.service.audits.test_controls import CPU, PASSED


@pytest.fixture
def wanting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(planting, "device_class", lambda: CPU)
    return Settings(data_dir=tmp_path, audit_controls=True)


class Asked:
    """In place of the child process: what it was asked for, and what it does."""

    def __init__(self, code: int | None, settings: Settings | None = None) -> None:
        self.code, self.settings = code, settings
        self.seconds: list[int] = []

    def __call__(self, settings: Settings, *, seconds: int, must_end: Any) -> int | None:
        self.seconds.append(seconds)
        if self.settings is not None:
            controls.write_controls(self.settings, CPU, PASSED)
        return self.code


class TestBeforeAVerdict:
    def have(self, settings: Settings, monkeypatch: pytest.MonkeyPatch, asked: Asked) -> Any:
        said: list[int] = []
        monkeypatch.setattr(planting, "run_planting", asked)
        found = planting.have_controls(settings, must_end=lambda: False, say=lambda: said.append(1))
        return found, len(said)

    def test_they_are_planted_and_the_wait_is_told(
        self, wanting: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = Asked(0, wanting)
        assert self.have(wanting, monkeypatch, asked) == (True, 1)
        assert asked.seconds == [TRAINER_SECONDS]
        assert self.have(wanting, monkeypatch, asked) == (True, 0)
        assert len(asked.seconds) == 1, "once for all jobs"

    def test_after_a_failed_try_no_job_waits_again(
        self, wanting: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = Asked(-signal.SIGKILL)
        assert self.have(wanting, monkeypatch, asked) == (True, 1)
        assert self.have(wanting, monkeypatch, asked) == (True, 0)
        assert controls.failed_lately(wanting, CPU)

    def test_a_cancel_during_the_wait_ends_the_attempt(
        self, wanting: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.have(wanting, monkeypatch, Asked(None)) == (False, 1)
        assert not controls.failed_lately(wanting, CPU), "the next job tries again"

    def test_turned_off_nothing_is_planted(
        self, wanting: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = Asked(0)
        off = wanting.model_copy(update={"audit_controls": False})
        assert self.have(off, monkeypatch, asked) == (True, 0)
        assert asked.seconds == []


class TestTheProcess:
    @pytest.fixture(autouse=True)
    def alarms(self) -> Any:
        before = signal.getsignal(signal.SIGALRM)
        yield
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

    def test_a_record_of_another_is_enough(
        self, wanting: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        controls.write_controls(wanting, CPU, PASSED)
        monkeypatch.setattr(planting, "plant", lambda _: pytest.fail("planted again"))
        assert planting._planted_once(wanting, 20) == 0

    def test_an_accident_is_noted_by_its_kind_alone(
        self, wanting: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def crash(_: Settings) -> None:
            raise MemoryError("SECRET")

        monkeypatch.setattr(planting, "plant", crash)
        assert planting._planted_once(wanting, 20) == 1
        (noted,) = (wanting.data_dir / "audit-controls").glob("*.failed.json")
        assert json.loads(noted.read_text())["why"] == "MemoryError"
        assert "SECRET" not in noted.read_text()

    def test_out_of_time_is_noted(self, wanting: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(planting, "plant", lambda _: time.sleep(30))
        assert planting._planted_once(wanting, 1) == 1
        assert controls.failed_lately(wanting, CPU)

    def test_two_processes_plant_once(self, wanting: Settings) -> None:
        context = multiprocessing.get_context("fork")
        both = [context.Process(target=_counted, args=(wanting,)) for _ in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join(30)
        assert [process.exitcode for process in both] == [0, 0]
        assert (wanting.data_dir / "count").read_text() == "1"

    def test_out_of_time_behind_another_is_nobodys_failure(
        self, wanting: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        context = multiprocessing.get_context("fork")
        held = context.Event()
        holder = context.Process(target=_holds, args=(wanting, held))
        holder.start()
        try:
            assert held.wait(20)
            assert planting._planted_once(wanting, 1) == 1
            assert not controls.failed_lately(wanting, CPU)
        finally:
            holder.kill()
            holder.join()


def _counted(settings: Settings) -> None:
    def plant(_: Settings) -> None:
        with (settings.data_dir / "count").open("a") as target:
            target.write("1")
        time.sleep(0.5)
        controls.write_controls(settings, CPU, PASSED)

    planting.plant = plant  # type: ignore[assignment]
    raise SystemExit(planting._planted_once(settings, 20))


def _holds(settings: Settings, held: Any) -> None:
    with controls.only_one(settings, CPU):
        held.set()
        time.sleep(60)


@pytest.mark.ci
def test_the_real_faults_are_all_found_and_the_correct_engine_is_silent(wanting: Settings) -> None:
    """About 40 s of one core: what a worker does before its first verdict."""
    told: list[str] = []
    planted = planting.plant(wanting, lambda result, _: told.append(result.name))
    assert (planted.missing, planted.false_alarms) == ((), 0)
    found = {control.name for control in controls.controls_of(wanting, CPU) if control.has_tripped}
    assert set(REQUIRED_CONTROLS) < found and len(found) == 10
    assert told[-1] == "correct"
