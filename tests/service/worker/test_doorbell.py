"""Doorbells absent, doubled, reordered; then one through Celery's filesystem broker."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.dispatcher import Dispatcher
from service.jobs.leases import Claim
from service.ledger import service as ledger
from service.settings import Settings
from service.worker import celery_app
from service.worker.processes import child_environment
from service.worker.tasks import Slot, installed_versions
from tests.service.jobs import world as w
from tests.service.ledger import world as lw
from tests.service.worker.children import command
from tests.service.worker.test_supervisor import is_alive, wait_for


def slot(world: lw.World, settings: Settings, kind: str = "train") -> Slot:
    def chosen(claim: Claim) -> list[str]:
        return command(kind, claim.job_id, claim.epoch)

    return Slot(db=world.db, settings=settings, worker_id="wk_a", command=chosen)


class TestSlot:
    def test_a_bell_runs_its_job(self, world: lw.World, settings: Settings) -> None:
        job = w.queue_job(world)
        assert slot(world, settings).work(job) == 1
        assert w.state(world.db, job) == "succeeded"

    def test_one_bell_for_two_jobs_runs_both(self, world: lw.World, settings: Settings) -> None:
        jobs = [w.queue_job(world), w.queue_job(world)]
        assert slot(world, settings).work(jobs[1]) == 2
        assert [w.state(world.db, job) for job in jobs] == ["succeeded"] * 2

    def test_a_doubled_bell_finds_nothing(self, world: lw.World, settings: Settings) -> None:
        job = w.queue_job(world)
        room = slot(world, settings)
        assert room.work(job) == 1
        assert room.work(job) == 0

    def test_a_bell_for_nobody_is_dropped(self, world: lw.World, settings: Settings) -> None:
        assert slot(world, settings).work("ftjob-gone") == 0

    def test_without_any_bell_the_poll_finds_the_job(
        self, world: lw.World, settings: Settings
    ) -> None:
        job = w.queue_job(world)
        room = slot(world, settings)
        thread = threading.Thread(target=room.work_forever)
        thread.start()
        try:
            wait_for(lambda: w.state(world.db, job) == "succeeded")
        finally:
            room.leave(wait_seconds=10)
            thread.join(10)
        assert not thread.is_alive()

    def test_a_slot_that_leaves_hands_its_job_back(
        self, world: lw.World, settings: Settings
    ) -> None:
        job = w.queue_job(world)
        room = slot(world, settings, "stuck")
        thread = threading.Thread(target=room.work, args=(job,))
        thread.start()
        wait_for((settings.data_dir / "started").exists)
        room.leave(wait_seconds=15)
        thread.join(5)
        row = w.row(world.db, job)
        assert (row.state, row.reason_code) == ("recovering", "worker_stopped")

    def test_a_busy_slot_takes_no_second_job(self, world: lw.World, settings: Settings) -> None:
        first = w.queue_job(world)
        room = slot(world, settings, "polite")
        thread = threading.Thread(target=room.work, args=(first,))
        thread.start()
        try:
            wait_for((settings.data_dir / "started").exists)
            second = w.queue_job(world)
            assert room.work(second) == 0
            assert w.state(world.db, second) == "queued"
        finally:
            for job in (first, second):
                with world.db.transaction() as session:
                    w.ask_to_stop(session, job)
            thread.join(20)
        assert not thread.is_alive()

    def test_versions_name_what_decides_a_release(self) -> None:
        assert set(installed_versions()) == {"rldp", "torch", "opacus", "dp-accounting"}


class TestCelery:
    def test_the_settings_of_the_design_hold(self, settings: Settings) -> None:
        conf = celery_app.make_app(settings).conf
        assert conf.task_acks_late is False and conf.task_reject_on_worker_lost is False
        assert conf.worker_prefetch_multiplier == 1
        assert conf.worker_cancel_long_running_tasks_on_connection_loss is False
        assert conf.task_ignore_result is True and conf.result_backend is None
        assert conf.accept_content == ["json"] and conf.worker_send_task_events is False
        assert conf.broker_connection_retry_on_startup is True

    def test_the_broker_folder_is_private(self, settings: Settings) -> None:
        celery_app.make_app(settings)
        assert (settings.data_dir / "broker").stat().st_mode & 0o777 == 0o700

    def test_a_doorbell_carries_an_id_and_nothing_else(self, settings: Settings) -> None:
        celery_app.ring(celery_app.make_app(settings), "ftjob-1")
        (message,) = (settings.data_dir / "broker" / "messages").iterdir()
        body = json.loads(base64.b64decode(json.loads(message.read_bytes())["body"]))
        assert body[:2] == [[], {"job_id": "ftjob-1"}]


@contextmanager
def worker_process(
    settings: Settings, *, poll_seconds: float, kind: str = "train"
) -> Iterator[subprocess.Popen[bytes]]:
    program = textwrap.dedent(
        f"""
        from service.settings import Settings
        from service.worker.celery_app import run_worker
        from tests.service.worker.children import command
        run_worker(Settings(), lambda claim: command("{kind}", claim.job_id, claim.epoch))
        """
    )
    slow = settings.model_copy(update={"poll_seconds": poll_seconds})
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=child_environment(slow, os.environ)
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


class TestEndToEnd:
    def test_a_doorbell_over_the_filesystem_broker_runs_the_job(
        self, world: lw.World, settings: Settings
    ) -> None:
        job = w.queue_job(world)
        app = celery_app.make_app(settings)
        dispatcher = Dispatcher(
            db=world.db, settings=settings, ring=lambda job_id: celery_app.ring(app, job_id)
        )
        with worker_process(settings, poll_seconds=600):
            assert dispatcher.send() == 1
            wait_for(lambda: w.state(world.db, job) == "succeeded")

    def test_without_any_message_the_worker_finds_the_job(
        self, world: lw.World, settings: Settings
    ) -> None:
        job = w.queue_job(world)
        with worker_process(settings, poll_seconds=0.5) as process:
            wait_for(lambda: w.state(world.db, job) == "succeeded")
            assert process.poll() is None
        assert process.returncode is not None

    @pytest.mark.parametrize("by_bell", [True, False])
    def test_a_worker_told_to_leave_hands_its_job_back(
        self, world: lw.World, settings: Settings, by_bell: bool
    ) -> None:
        job = w.queue_job(world)
        if by_bell:
            celery_app.ring(celery_app.make_app(settings), job)
        with worker_process(settings, poll_seconds=600 if by_bell else 0.5, kind="stuck"):
            wait_for((settings.data_dir / "started").exists)
        row = w.row(world.db, job)
        assert (row.state, row.reason_code) == ("recovering", "worker_stopped")
        assert not is_alive(int((settings.data_dir / "started").read_text()))

    @pytest.mark.parametrize("by_bell", [True, False])
    def test_a_worker_told_to_leave_lets_the_window_end_and_uses_no_attempt(
        self, world: lw.World, settings: Settings, by_bell: bool
    ) -> None:
        job = w.queue_job(world)
        if by_bell:
            celery_app.ring(celery_app.make_app(settings), job)
        patient = settings.model_copy(update={"leave_seconds": 20})
        with worker_process(patient, poll_seconds=600 if by_bell else 0.5, kind="leave"):
            wait_for((settings.data_dir / "started").exists)
        row = w.row(world.db, job)
        assert (row.state, row.reason_code) == ("recovering", "worker_stopped")
        assert row.attempt - row.pauses == 0
        with world.db.reading() as session:
            assert ledger.open_window(session, job) is None, "nothing that was paid for is lost"
        with worker_process(settings, poll_seconds=0.5, kind="leave"):
            wait_for(lambda: w.state(world.db, job) == "succeeded")

    @pytest.mark.parametrize("name", ["service.worker.celery_app", "service.dispatcher"])
    def test_parents_start_without_torch(self, name: str) -> None:
        program = f"import {name}, sys; print('torch' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "False"
