"""Tiny stand-ins for the trainer: `python children.py KIND --job ID --epoch N`.

They use the same seam as the real one and need no torch. `RLDP_DATABASE_URL` and
`RLDP_DATA_DIR` come from the supervisor, as for the real one.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from service.database import Database
from service.jobs import runtime
from service.jobs.errors import FencedOut
from service.ledger import service as ledger
from service.settings import Settings
from service.worker.processes import leave_note_of
from tests.service.ledger import world as lw


def note(name: str, text: object) -> None:
    """Leaves a fact where the test finds it."""
    (Settings().data_dir / name).write_text(str(text))


def charge(db: Database, job: str, epoch: int, steps: int = 10) -> int:
    with db.transaction() as session:
        runtime.fence(session, job, epoch)
        number = ledger.position(session, job_id=job, epoch=epoch).next_chunk
        window = lw.window(number, epoch=epoch, steps=steps)
        ledger.charge_window(session, job_id=job, epoch=epoch, charge=window)
    return number


def train(db: Database, job: str, epoch: int) -> int:
    """One window, then the end with an adapter."""
    charge(db, job, epoch)
    runtime.record_window(
        db,
        job,
        epoch,
        step=10,
        window=0,
        metrics=[runtime.Metric(name="loss_noised", step=10, value_text="2.5")],
        event_message="Window 0 done.",
        event_data={"step": 10},
    )
    path = Settings().data_dir / "adapter_config.json"
    path.write_text("{}")
    file = runtime.ArtifactFile(
        name=path.name,
        path=str(path),
        bytes=2,
        sha256="44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    )
    runtime.finish(db, job, epoch, final_state="succeeded", artifacts=[file], certificate=None)
    return 0


def wait_politely(db: Database, job: str, epoch: int) -> int:
    """A long run that stops between steps when asked to."""
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    charge(db, job, epoch)
    note("started", os.getpid())
    while not stopped:
        time.sleep(0.05)
        runtime.renew_lease(db, job, epoch, os.environ["RLDP_WORKER_ID"])
    return 13


def pause(db: Database, job: str, epoch: int) -> int:
    """One window that ends once a pause is asked for, with its checkpoint."""
    charge(db, job, epoch)
    note("started", os.getpid())
    while runtime.record_step(db, job, epoch, 1) != "pausing":
        time.sleep(0.05)
    runtime.record_checkpoint(db, job, epoch, step=10, window=0, directory="d", sha256="0" * 64)
    return 12


def leave(db: Database, job: str, epoch: int) -> int:
    """One window that ends once the worker leaves, with its checkpoint; a second run ends well."""
    if epoch > 1:
        return train(db, job, epoch)
    charge(db, job, epoch)
    note("started", os.getpid())
    leave_note = leave_note_of(os.environ)
    assert leave_note is not None
    while not leave_note.exists():
        time.sleep(0.05)
    with db.transaction() as session:
        runtime.fence(session, job, epoch)
        ledger.finish_window(session, job_id=job, epoch=epoch, window=0, steps_run=10)
    runtime.record_checkpoint(db, job, epoch, step=10, window=0, directory="d", sha256="0" * 64)
    return 12


def charge_on(db: Database, job: str, epoch: int) -> int:
    """Charges window after window, for 10 s; a pause that comes in between shuts it out."""
    note("started", os.getpid())
    try:
        while True:
            number = charge(db, job, epoch, steps=1)
            with db.transaction() as session:
                ledger.finish_window(session, job_id=job, epoch=epoch, window=number, steps_run=1)
            time.sleep(0.25)
    except FencedOut:
        return 10


def stick(db: Database, job: str, epoch: int) -> int:
    """Stuck in a kernel with a helper process of its own: deaf to everything but SIGKILL."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    charge(db, job, epoch)
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    note("helper", helper.pid)
    note("started", os.getpid())
    while True:
        time.sleep(1)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("--job", required=True)
    parser.add_argument("--epoch", required=True, type=int)
    arguments = parser.parse_args()
    kind, job, epoch = arguments.kind, arguments.job, arguments.epoch
    if kind.startswith("exit-"):
        return int(kind.removeprefix("exit-"))
    if kind == "tell":
        note("environment", "\n".join(sorted(os.environ)))
        note("group", f"{os.getpid()} {os.getpgid(0)} {os.getppid()}")
        print("a note about a patient", flush=True)
        return 1
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    db = Database(Settings().resolved_database_url)
    kinds = {
        "train": train,
        "polite": wait_politely,
        "pause": pause,
        "leave": leave,
        "charge-on": charge_on,
        "stuck": stick,
    }
    return kinds[kind](db, job, epoch)


def command(kind: str, job: str, epoch: int) -> list[str]:
    return [sys.executable, str(Path(__file__)), kind, "--job", job, "--epoch", str(epoch)]


if __name__ == "__main__":
    sys.exit(main())
