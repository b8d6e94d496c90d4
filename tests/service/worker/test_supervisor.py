"""The supervisor with stand-ins for the trainer: how each end is judged, and that it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import update

from service.database import now_us
from service.jobs import leases, steering
from service.jobs.leases import Claim
from service.jobs.lifecycle import State
from service.jobs.models import Job
from service.settings import Settings
from service.worker import exit_codes, processes
from service.worker.supervisor import Supervisor
from tests.service.jobs import world as w
from tests.service.jobs.test_service import subject_of
from tests.service.ledger import world as lw
from tests.service.worker.children import command

SOON = 20.0


def supervisor(world: lw.World, settings: Settings, kind: str, claim: Claim) -> Supervisor:
    return Supervisor(
        db=world.db,
        settings=settings,
        worker_id="wk_a",
        claim=claim,
        command=command(kind, claim.job_id, claim.epoch),
        poll_seconds=0.1,
    )


def supervise(world: lw.World, settings: Settings, kind: str) -> tuple[str, State | None]:
    claim = w.claimed_job(world)
    return claim.job_id, supervisor(world, settings, kind, claim).run()


def wait_for(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not fact():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] not in "ZX"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


class TestEnds:
    def test_a_trainer_that_finishes_leaves_a_finished_job(
        self, world: lw.World, settings: Settings
    ) -> None:
        job, state = supervise(world, settings, "train")
        assert state is State.SUCCEEDED
        assert w.history(world.db, job) == ["queued", "starting", "running", "succeeded"]

    @pytest.mark.parametrize(
        ("kind", "state", "reason"),
        [
            ("exit-1", "recovering", "trainer_crashed"),
            ("exit-77", "recovering", "trainer_crashed"),
            ("exit-0", "recovering", "trainer_crashed"),  # says done, the row says otherwise
            ("exit-10", "recovering", "lease_expired"),
            ("exit-20", "recovering", "out_of_memory"),
            ("exit-30", "recovering", "ledger_unreachable"),
            ("exit-21", "failed", "data_unreadable"),
            ("exit-22", "failed", "model_refused"),
            ("exit-23", "failed", "self_check_failed"),
            ("exit-25", "failed", "audit_failed"),
            ("exit-12", "recovering", "trainer_crashed"),  # nobody asked for a pause
            ("exit-31", "failed", "ledger_refused"),
            ("killed", "recovering", "trainer_killed"),
        ],
    )
    def test_each_exit_code_has_its_meaning(
        self, world: lw.World, settings: Settings, kind: str, state: str, reason: str
    ) -> None:
        job, left = supervise(world, settings, kind)
        row = w.row(world.db, job)
        assert (left, row.state, row.reason_code) == (State(state), state, reason)

    def test_every_code_is_an_end_or_a_failure(self) -> None:
        ends = {"DONE", "FENCED_OUT", "BUDGET_STOP", "PAUSED"}
        assert {code.name for code in exit_codes.ExitCode} == ends | {
            code.name for code in exit_codes.FAILURES
        }

    def test_a_lost_job_is_left_to_its_new_owner(
        self, world: lw.World, settings: Settings, pool: ThreadPoolExecutor
    ) -> None:
        claim = w.claimed_job(world)
        running = pool.submit(supervisor(world, settings, "stuck", claim).run)
        wait_for((settings.data_dir / "started").exists)
        with world.db.transaction() as session:
            session.execute(update(Job).values(epoch=7, attempt=7, lease_owner="wk_b"))
        assert running.result(SOON) is None
        row = w.row(world.db, claim.job_id)
        assert (row.epoch, row.lease_owner, row.state) == (7, "wk_b", "running")


class TestStopping:
    def _running(
        self, world: lw.World, settings: Settings, kind: str, pool: ThreadPoolExecutor
    ) -> tuple[str, Future[State | None]]:
        claim = w.claimed_job(world)
        running = pool.submit(supervisor(world, settings, kind, claim).run)
        wait_for((settings.data_dir / "started").exists)
        return claim.job_id, running

    def _cancel(self, world: lw.World, job: str) -> None:
        with world.db.transaction() as session:
            w.ask_to_cancel(session, job)

    def test_a_polite_trainer_is_cancelled_between_steps(
        self, world: lw.World, settings: Settings, pool: ThreadPoolExecutor
    ) -> None:
        job, running = self._running(world, settings, "polite", pool)
        self._cancel(world, job)
        assert running.result(SOON) is State.CANCELLED
        assert w.entry_types(world.db, job)[-1] == "settle"

    @pytest.mark.parametrize("kind", ["pause", "charge-on"])
    def test_a_pause_leaves_a_paused_job_that_nobody_holds(
        self, world: lw.World, settings: Settings, pool: ThreadPoolExecutor, kind: str
    ) -> None:
        job, running = self._running(world, settings, kind, pool)
        wait_for(lambda: w.state(world.db, job) == "running")
        self._pause(world, job)
        assert running.result(SOON) is State.PAUSED
        row = w.row(world.db, job)
        assert (row.state, row.lease_owner, row.pauses) == ("paused", None, 1)
        assert not is_alive(int((settings.data_dir / "started").read_text()))

    def test_a_trainer_that_stalls_while_pausing_is_paused(
        self, world: lw.World, settings: Settings, pool: ThreadPoolExecutor
    ) -> None:
        job, running = self._running(world, settings, "stuck", pool)
        self._pause(world, job)
        with world.db.transaction() as session:
            session.execute(update(Job).values(progress_at=now_us() - 1000 * w.SECOND))
        assert running.result(SOON) is State.PAUSED
        row = w.row(world.db, job)
        assert (row.pauses, row.last_failure_code) == (0, "trainer_stalled")

    def _pause(self, world: lw.World, job: str) -> None:
        with world.db.transaction() as session:
            steering.pause_job(session, subject_of(world), job)

    def test_a_stuck_trainer_and_its_helpers_are_killed_within_seconds(
        self, world: lw.World, settings: Settings, pool: ThreadPoolExecutor
    ) -> None:
        job, running = self._running(world, settings, "stuck", pool)
        pids = [int((settings.data_dir / name).read_text()) for name in ("started", "helper")]
        asked = time.monotonic()
        self._cancel(world, job)
        assert running.result(15) is State.CANCELLED
        assert time.monotonic() - asked < 15
        assert not any(is_alive(pid) for pid in pids)

    def test_it_is_never_cancelled_while_a_process_lives(
        self,
        world: lw.World,
        settings: Settings,
        pool: ThreadPoolExecutor,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        job, running = self._running(world, settings, "stuck", pool)
        pid = int((settings.data_dir / "started").read_text())
        seen: list[bool] = []
        real = leases.end_without_adapter

        def watched(*args: object, **kwargs: object) -> None:
            seen.append(is_alive(pid))
            real(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(leases, "end_without_adapter", watched)
        self._cancel(world, job)
        assert running.result(SOON) is State.CANCELLED
        assert seen == [False]

    def test_an_expired_lease_ends_the_attempt(
        self, world: lw.World, settings: Settings, pool: ThreadPoolExecutor
    ) -> None:
        job, running = self._running(world, settings, "stuck", pool)
        w.expire_lease(world.db, job)
        assert running.result(SOON) is State.RECOVERING
        assert w.row(world.db, job).reason_code == "lease_expired"

    def test_a_stall_ends_the_attempt(
        self, world: lw.World, settings: Settings, pool: ThreadPoolExecutor
    ) -> None:
        job, running = self._running(world, settings, "stuck", pool)
        with world.db.transaction() as session:
            long_ago = now_us() - (settings.stall_seconds + 5) * w.SECOND
            session.execute(update(Job).values(progress_at=long_ago))
        assert running.result(SOON) is State.RECOVERING
        assert w.row(world.db, job).reason_code == "trainer_stalled"

    def test_a_worker_that_is_stopped_hands_the_job_back(
        self, world: lw.World, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        claim = w.claimed_job(world)
        watcher = supervisor(world, settings, "stuck", claim)

        def interrupted(_process: object, _note: object) -> None:
            wait_for((settings.data_dir / "started").exists)
            raise SystemExit

        monkeypatch.setattr(watcher, "_watch", interrupted)
        with pytest.raises(SystemExit):
            watcher.run()
        assert w.row(world.db, claim.job_id).reason_code == "worker_stopped"
        assert not is_alive(int((settings.data_dir / "started").read_text()))


class TestProcess:
    def test_it_leads_a_group_of_its_own_with_an_allowed_environment(
        self, world: lw.World, settings: Settings
    ) -> None:
        supervise(world, settings, "tell")
        pid, group, parent = (settings.data_dir / "group").read_text().split()
        assert pid == group and int(parent) == os.getpid()
        names = (settings.data_dir / "environment").read_text().splitlines()
        assert "SECRET_OF_THE_SHELL" not in names
        assert {"RLDP_DATABASE_URL", "RLDP_LEASE_SECONDS", "RLDP_WORKER_ID"} <= set(names)
        for name in names:
            prefixes = (*processes.ALLOWED_PREFIXES, "RLDP_")
            allowed = name in processes.ALLOWED or name.startswith(prefixes)
            assert allowed, name

    def test_its_output_reaches_nobody(
        self, world: lw.World, settings: Settings, capfd: pytest.CaptureFixture[str]
    ) -> None:
        supervise(world, settings, "tell")
        assert "patient" not in "".join(capfd.readouterr())

    def test_it_dies_with_its_supervisor(self, tmp_path: Path) -> None:
        """The supervisor gets SIGKILL, so no code of it can clean up."""
        program = textwrap.dedent(
            """
            import os, sys, time
            from service.worker.processes import start_tied
            child = start_tied(
                [sys.executable, "-c", "import time; time.sleep(300)"],
                environment=os.environ, quiet=True,
            )
            print(child.pid, flush=True)
            time.sleep(300)
            """
        )
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            assert is_alive(child)
            time.sleep(0.5)  # past the start of the launcher
            parent.send_signal(signal.SIGKILL)
            parent.wait(SOON)
            wait_for(lambda: not is_alive(child))

    def test_nothing_starts_for_a_parent_that_is_gone(self) -> None:
        launcher = processes.launch.__file__
        done = subprocess.run(
            [sys.executable, "-I", "-S", launcher, "1", sys.executable, "-c", "print('ran')"],
            capture_output=True,
            text=True,
            timeout=SOON,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")

    def test_threads_that_start_children_keep_them_alive_while_they_live(
        self, tmp_path: Path
    ) -> None:
        """The death signal follows the thread; a supervisor stays in the one it started in."""
        held = threading.Event()
        pids: list[int] = []

        def thread() -> None:
            child = processes.start_tied(
                [sys.executable, "-c", "import time; time.sleep(300)"],
                environment=os.environ,
                quiet=True,
            )
            pids.append(child.pid)
            held.wait(SOON)
            processes.kill_group(child)

        worker = threading.Thread(target=thread)
        worker.start()
        wait_for(lambda: bool(pids))
        time.sleep(0.5)
        assert is_alive(pids[0])
        held.set()
        worker.join(SOON)
        assert processes.group_is_empty(pids[0])
