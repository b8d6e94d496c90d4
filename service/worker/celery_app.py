"""The Celery application: a doorbell over a broker, and the worker that answers it.

Recovery, priority and fairness live in the database; Celery only wakes a worker early.
Started as a worker process, each pool child holds one `Slot` and also looks into the
database by itself, so that no message is needed for a job to run.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from typing import Any

from celery import Celery
from celery.signals import (
    worker_process_init,
    worker_process_shutdown,
    worker_shutting_down,
)

from service.database import Database
from service.ids import new_id
from service.settings import Settings
from service.traces import open_traces
from service.worker.launch import die_with_parent
from service.worker.tasks import RING, Command, Slot

# On top of what the trainer has to end its window (`leave_seconds`):
HAND_BACK_SECONDS = 2.0
STOP_SECONDS = 6.0  # below the parent's patience (cli/parent.py)

CONFIGURATION: dict[str, Any] = {
    "task_acks_late": False,  # late acknowledgement runs long tasks twice
    "task_reject_on_worker_lost": False,
    "worker_prefetch_multiplier": 1,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "task_ignore_result": True,
    "result_backend": None,
    "accept_content": ["json"],
    "task_serializer": "json",
    "worker_send_task_events": False,
    "worker_enable_remote_control": False,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "worker_soft_shutdown_timeout": 0,  # the slot has its own time to leave
    "worker_hijack_root_logger": False,
    "task_default_queue": "rldp",
}


def make_app(settings: Settings) -> Celery:
    """A Celery application that can ring; `make_worker` adds the answer."""
    app = Celery("rldp", set_as_current=False)
    app.conf.update(CONFIGURATION)
    url = settings.resolved_broker_url
    if url == "filesystem://":
        url = "filesystem://localhost/"  # the library warns about a missing host
    app.conf.broker_url = url
    if url.startswith("filesystem"):
        app.conf.broker_transport_options = _filesystem_options(settings)
    if url.startswith("redis"):
        app.conf.worker_disable_prefetch = True
    return app


def _filesystem_options(settings: Settings) -> dict[str, Any]:
    root = settings.data_dir.resolve() / "broker"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    messages, control = root / "messages", root / "control"
    for folder in (messages, control):
        folder.mkdir(mode=0o700, exist_ok=True)
    return {
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "control_folder": str(control),
        "store_processed": False,
        "polling_interval": 0.25,
    }


def ring(app: Celery, job_id: str) -> None:
    """Sends a doorbell: an id and nothing else."""
    app.send_task(RING, kwargs={"job_id": job_id}, ignore_result=True, retry=False)


def make_worker(settings: Settings, command: Command | None = None) -> Celery:
    """The application with its task and with the slot of each pool child."""
    app = make_app(settings)
    holder: dict[str, Slot] = {}
    parent_pid = os.getpid()

    def answer(job_id: str) -> None:
        holder["slot"].ring(job_id)

    app.task(answer, name=RING)

    def on_child_start(**_: Any) -> None:
        die_with_parent(parent_pid)
        slot = Slot(
            db=Database(settings.resolved_database_url),
            settings=settings,
            worker_id=new_id("wk_"),
            command=command,
            traces=open_traces(settings, "worker"),
        )
        holder["slot"] = slot
        threading.Thread(target=slot.work_forever, name="attempts", daemon=True).start()
        threading.Thread(target=slot.beat_forever, name="heartbeat", daemon=True).start()
        if command is None:  # a stand-in for the trainer has no engine to plant faults in
            threading.Thread(target=slot.plant_when_idle, name="controls", daemon=True).start()

    def on_child_stop(**_: Any) -> None:
        if "slot" in holder:
            holder["slot"].leave(wait_seconds=settings.leave_seconds + HAND_BACK_SECONDS)

    def on_told_to_stop(**_: Any) -> None:
        # Celery's stop now and then waits for ever when a task has just ended. The kernel's
        # alarm ends it then: the slot has had its time, its processes die with this one.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(math.ceil(settings.leave_seconds + STOP_SECONDS))

    worker_shutting_down.connect(on_told_to_stop, weak=False)
    worker_process_init.connect(on_child_start, weak=False)
    worker_process_shutdown.connect(on_child_stop, weak=False)
    return app


def run_worker(settings: Settings, command: Command | None = None) -> None:
    """Runs one worker with one slot until it is told to stop."""
    os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")  # read by Celery: leave, do not wait
    make_worker(settings, command).worker_main(
        [
            "--quiet",
            "worker",
            "--pool=prefork",
            "--concurrency=1",
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
            "--loglevel=WARNING",
            f"--hostname=rldp-{os.getpid()}@localhost",
        ]
    )
