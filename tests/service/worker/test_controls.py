"""The process that plants faults: started once a worker is idle, and never left behind."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from service.settings import Settings
from service.worker.controls import (
    TRAINER_SECONDS,
    IdleControls,
    are_wanted,
    run_planting,
    trainer_seconds,
)
from service.worker.tasks import Slot
from tests.service.ledger import world as lw
from tests.service.worker.test_supervisor import is_alive, wait_for

SLEEPS = (
    "import os, pathlib, sys, time\n"
    "pathlib.Path(os.environ['RLDP_DATA_DIR'], 'planting').write_text(str(os.getpid()))\n"
    "time.sleep(60)\n"
)


def command(program: str) -> list[str]:
    return [sys.executable, "-c", program]


@pytest.fixture
def wanting(settings: Settings) -> Settings:
    return settings.model_copy(update={"audit_controls": True})


def started(settings: Settings) -> int | None:
    path = settings.data_dir / "planting"
    text = path.read_text() if path.exists() else ""
    return int(text) if text else None


class TestRunPlanting:
    def test_the_exit_code_is_told(self, wanting: Settings) -> None:
        code = run_planting(
            wanting, seconds=20, must_end=lambda: False, command=command("raise SystemExit(7)")
        )
        assert code == 7

    def test_it_ends_at_once_when_it_must(self, wanting: Settings) -> None:
        code = run_planting(
            wanting,
            seconds=60,
            must_end=lambda: started(wanting) is not None,
            command=command(SLEEPS),
        )
        pid = started(wanting)
        assert code is None and pid is not None and not is_alive(pid)

    def test_a_process_that_does_not_give_up_is_killed(self, wanting: Settings) -> None:
        begun = time.monotonic()
        code = run_planting(wanting, seconds=1, must_end=lambda: False, command=command(SLEEPS))
        assert code == -9
        assert time.monotonic() - begun < 15

    def test_a_trainer_waits_less_than_the_stall_watch(self, wanting: Settings) -> None:
        assert trainer_seconds(wanting) == TRAINER_SECONDS
        assert trainer_seconds(wanting.model_copy(update={"stall_seconds": 60})) == 30


class TestWanted:
    @pytest.mark.parametrize(
        "change", [{"audit_controls": False}, {"audit_in_job": False}, {"processes_per_job": 2}]
    )
    def test_not_where_no_audit_can_pass(
        self, wanting: Settings, change: dict[str, object]
    ) -> None:
        assert are_wanted(wanting)
        assert not are_wanted(wanting.model_copy(update=change))

    def test_a_slot_that_wants_none_starts_nothing(
        self, world: lw.World, settings: Settings
    ) -> None:
        assert not settings.audit_controls, "off in tests"
        Slot(db=world.db, settings=settings, worker_id="wk_a").plant_when_idle()
        assert not (settings.data_dir / "audit-controls").exists()


class TestIdleControls:
    def idle(self, settings: Settings, program: str, *, gives_way: bool = False) -> IdleControls:
        return IdleControls(
            settings=settings,
            occupied=threading.Event(),
            stop=threading.Event(),
            command=command(program),
            gives_way=gives_way,
        )

    def test_a_failed_try_is_told_once_and_not_repeated(
        self, wanting: Settings, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.idle(wanting, "raise SystemExit(1)").run()
        assert [record.message for record in caplog.records] == ["positive controls not planted"]

    def test_a_worker_that_leaves_takes_the_process_with_it(self, wanting: Settings) -> None:
        idle = self.idle(wanting, SLEEPS)
        thread = threading.Thread(target=idle.run)
        thread.start()
        wait_for(lambda: started(wanting) is not None)
        idle.stop.set()
        thread.join(15)
        pid = started(wanting)
        assert not thread.is_alive() and pid is not None and not is_alive(pid)

    def test_on_a_gpu_a_job_comes_first_and_it_begins_again(self, wanting: Settings) -> None:
        idle = self.idle(wanting, SLEEPS, gives_way=True)
        thread = threading.Thread(target=idle.run)
        thread.start()
        wait_for(lambda: started(wanting) is not None)
        first = started(wanting)
        idle.occupied.set()
        assert first is not None
        wait_for(lambda: not is_alive(first))
        assert thread.is_alive()
        (Path(wanting.data_dir) / "planting").unlink()
        idle.occupied.clear()
        wait_for(lambda: started(wanting) is not None)
        assert started(wanting) != first
        idle.stop.set()
        thread.join(15)
        assert not thread.is_alive()

    def test_on_a_processor_it_goes_on_beside_a_job(self, wanting: Settings) -> None:
        """At the lowest priority; the process itself asks for it."""
        idle = self.idle(wanting, SLEEPS)
        idle.occupied.set()
        thread = threading.Thread(target=idle.run)
        thread.start()
        wait_for(lambda: started(wanting) is not None)
        assert thread.is_alive()
        idle.stop.set()
        thread.join(15)
