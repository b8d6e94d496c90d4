"""A worker as `rldp worker` starts it, whose trainer pays for windows and sleeps in them.

    python -m tests.deploy.fake_worker                       the worker
    python -m tests.deploy.fake_worker --job ID --epoch N    its trainer, one attempt

Everything but the arithmetic of training is real: claim, lease, fence, charge before each
window, resume by what the ledger says. `test_killed_worker.py` kills the real trainer.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from dp_core.errors import JournalUnavailable, StaleAttempt
from dp_core.events import Component
from dp_core.plan import RunPlan
from dp_core.ports import ChunkCharge
from service.database import Database
from service.jobs.runtime import ArtifactFile, Claim, finish, load_work, renew_lease
from service.settings import Settings
from service.worker.celery_app import run_worker
from service.worker.exit_codes import ExitCode
from service.worker.journal import LedgerJournal
from service.worker.processes import leave_note_of

WINDOW_SECONDS = float(os.environ.get("RLDP_TEST_WINDOW_SECONDS", "1.0"))
EXECUTED = os.environ.get("RLDP_TEST_EXECUTED")  # a folder: what every trainer drew, by job
EMPTY_SHA256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of {}


def command(claim: Claim) -> list[str]:
    words = ["-m", "tests.deploy.fake_worker", "--job", claim.job_id, "--epoch", str(claim.epoch)]
    return [sys.executable, *words]


def note_drawn(job_id: str, epoch: int, window: int, steps: int) -> None:
    """Says that a window's noise is drawn now, where no kill can take it back."""
    if EXECUTED is None:
        return
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    descriptor = os.open(Path(EXECUTED) / job_id, flags, 0o600)
    os.write(descriptor, f"{epoch} {window} {steps}\n".encode())
    os.close(descriptor)


def train(job_id: str, epoch: int) -> ExitCode:
    """Pays for the windows that the ledger does not know yet, one after the other."""
    db = Database(Settings().resolved_database_url)
    work = load_work(db, job_id, epoch)
    plan = RunPlan.from_dict(work.plan)
    journal = LedgerJournal(db, job_id=job_id, epoch=epoch)
    level = plan.noise_levels[-1]
    leave_note = leave_note_of(os.environ)
    position = journal.position()
    while position.steps_started < plan.steps_planned:
        permit = journal.open_chunk(
            ChunkCharge(
                plan_digest=plan.digest(),
                attempt=epoch,
                chunk_index=position.next_chunk,
                first_step=position.steps_started,
                steps=min(plan.steps_per_chunk, plan.steps_planned - position.steps_started),
                q=plan.sampling_probability,
                noise_multiplier=level,
                components=(Component(id="0.q_proj.A", sensitivity="1", std=level),),
                policy_digest="ab" * 32,
            )
        )
        note_drawn(job_id, epoch, permit.chunk_index, permit.steps)
        time.sleep(WINDOW_SECONDS)
        if not renew_lease(db, job_id, epoch, work.worker_id):
            return ExitCode.FENCED_OUT
        journal.close_chunk(permit, permit.steps)
        position = journal.position()
        if leave_note is not None and leave_note.exists():
            return ExitCode.PAUSED
    path = Path(work.job_dir) / f"adapter-{epoch}" / "adapter_config.json"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_text("{}", encoding="utf-8")
    adapter = ArtifactFile(name=path.name, path=str(path), sha256=EMPTY_SHA256, bytes=2)
    finish(db, job_id, epoch, final_state="succeeded", artifacts=[adapter], certificate=None)
    return ExitCode.DONE


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job")
    parser.add_argument("--epoch", type=int, default=0)
    options = parser.parse_args()
    if options.job is None:
        run_worker(Settings(), command)
        return 0
    try:
        return train(options.job, options.epoch)
    except StaleAttempt:
        return ExitCode.FENCED_OUT
    except JournalUnavailable:
        return ExitCode.LEDGER_UNREACHABLE


if __name__ == "__main__":
    code = main()
    if "--job" in sys.argv:
        os._exit(code)  # as the real trainer; the worker ends in order and leaves no file behind
