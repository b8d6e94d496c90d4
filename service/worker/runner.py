"""The trainer: `python -m service.worker.runner --job ID --epoch N`, one attempt of one job.

Composes model, records, policy, journal and stores, calls `dp_core.training`, and writes
the result under its epoch. Says how it ended by an exit code of a closed table; no text
of an exception leaves the process, since it may hold data.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from sqlalchemy.exc import DBAPIError
from transformers.utils import logging as transformers_logging

from controller.factory import make_policy
from dp_core.artifact import adapter_files
from dp_core.certificate import job_claim
from dp_core.distributed import from_environment
from dp_core.errors import (
    CheckpointMismatch,
    JournalError,
    JournalUnavailable,
    PlanError,
    RankLost,
    RanksDiffer,
    RecordsUnreadable,
    SelfCheckFailed,
    StaleAttempt,
    UnsupportedError,
)
from dp_core.events import canonical_digest
from dp_core.noise import make_noise_source, require_private
from dp_core.plan import RunPlan
from dp_core.ranks import SINGLE, Ranks
from dp_core.second_opinion import prv_epsilon_upper
from dp_core.training import PrivateTraining, TrainingResult
from service.artifacts.service import label_of
from service.audits.controls import controls_of
from service.database import Database
from service.jobs.errors import FencedOut
from service.jobs.keys import AttemptKeys, JobFiles, load_keys
from service.jobs.leases import hold_of
from service.jobs.lifecycle import State
from service.jobs.runtime import (
    ArtifactFile,
    Work,
    finish,
    load_work,
    note_progress,
    renew_lease,
)
from service.sealing.errors import DiskFull, KeyUnavailable, SealError
from service.sealing.keyring import Keyring
from service.settings import Settings
from service.worker.audit import (
    AuditFailed,
    KeptAudit,
    audit_before_data,
    code_version,
    keep_run_audit,
)
from service.worker.checkpoints import DirectoryCheckpoints
from service.worker.exit_codes import ExitCode
from service.worker.follower import JOB_ORDER, follow
from service.worker.inputs import Inputs, ModelMissing, adapted_model, performance_of, read_blocks
from service.worker.journal import LedgerJournal
from service.worker.planting import device_class, have_controls
from service.worker.processes import leave_note_of
from service.worker.progress import JobProgress
from service.worker.run_audit import RunAudit, open_run_audit

VERSIONED = ("torch", "opacus", "transformers", "peft", "stable-baselines3", "dp-accounting")
CRASHED = 1
PLANTING = (
    "All steps are done. Known faults are planted in a copy of the engine first, to see that the "
    "audit finds them: once for this release, about a minute."
)
OUTCOME_STATES = {"completed": "succeeded", "budget_stopped": "budget_stopped"}


class LeaseKeeper(threading.Thread):
    """Renews the lease on a connection of its own; ends the process when it is lost.

    A process that could not renew for three quarters of the lease kills itself, so that
    it is gone before another attempt may start (service.md 9.2).
    """

    def __init__(self, settings: Settings, work: Work) -> None:
        super().__init__(name="lease", daemon=True)
        self._db = Database(settings.resolved_database_url)
        self._work = work

    def run(self) -> None:
        lease = self._work.lease_seconds
        renewed = time.monotonic()
        while True:  # at once: loading the interpreter may have used most of the first lease
            try:
                work = self._work
                if not renew_lease(self._db, work.job_id, work.epoch, work.worker_id):
                    os._exit(ExitCode.FENCED_OUT)
                renewed = time.monotonic()
            except DBAPIError:
                if time.monotonic() - renewed > lease * 0.75:
                    os._exit(ExitCode.FENCED_OUT)
            time.sleep(lease / 4)


def run_attempt(settings: Settings, *, job_id: str, epoch: int, ranks: Ranks = SINGLE) -> ExitCode:
    """Runs one attempt to its end and returns how it ended.

    With several ranks this is rank 0: it alone asks ledger and database, and what the
    others need comes from it.
    """
    db = Database(settings.resolved_database_url)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    work = load_work(db, job_id, epoch)
    LeaseKeeper(settings, work).start()
    keys = load_keys(db, Keyring.of(settings), job_id, epoch)
    inputs = _inputs(work, keys)
    ranks.tell(JOB_ORDER, inputs.to_document())
    plan, performance = inputs.plan, performance_of(settings)
    noise_source = make_noise_source(plan.noise_source)
    require_private(noise_source)
    model, tokenizer = adapted_model(inputs, performance)
    before = audit_before_data(db, work, plan, model, performance, settings.image_digest or None)
    # The units of an audit are drawn beside the patients, which other ranks know nothing of.
    attacks_run = settings.audit_in_job and ranks.world_size == 1
    run_audit = (
        open_run_audit(db, work, plan, model, tokenizer, with_text=settings.audit_text_canaries)
        if attacks_run
        else None
    )
    blocks = read_blocks(inputs, tokenizer)
    if run_audit is not None:
        blocks = run_audit.with_canaries(blocks)
    progress = JobProgress(
        db, job_id=job_id, epoch=epoch, stop=stop, leave_note=leave_note_of(os.environ)
    )
    training = PrivateTraining(
        plan=plan,
        model=model,
        blocks=blocks,
        make_policy=lambda telemetry: make_policy(
            plan.controller_type,
            groups=telemetry,
            seed=plan.seed,
            chunks_planned=plan.chunks_planned,
        ),
        journal=LedgerJournal(db, job_id=job_id, epoch=epoch),
        checkpoints=DirectoryCheckpoints(
            db, job_id=job_id, epoch=epoch, job_dir=Path(work.job_dir), files=keys.files
        ),
        progress=progress,
        noise_source=noise_source,
        performance=performance,
        ranks=ranks,
        audit=None if run_audit is None else run_audit.steps,
    )
    if hold_of(db, job_id).state is State.PAUSING:  # while we loaded: nothing is paid yet
        return ExitCode.PAUSED
    result = training.run()
    if result.outcome == "cancelled":
        return ExitCode.CANCELLED
    if result.outcome == "paused":
        return ExitCode.PAUSED
    if result.steps_finished == 0:
        return ExitCode.NO_CHECKPOINT
    if run_audit is not None and not have_controls(
        settings,
        must_end=lambda: progress.stop_requested() is not None,
        say=lambda: note_progress(db, job_id, epoch, PLANTING),
    ):  # the last window is saved: whoever goes on has no step to repeat
        return ExitCode.CANCELLED if stop.is_set() else ExitCode.PAUSED
    audit = _finish_audit(settings, db, work, training, run_audit, before)
    adapter = _seal_adapter(work, training.model, keys.files)
    return _publish(db, work, plan, training, result, adapter, audit)


def _finish_audit(
    settings: Settings,
    db: Database,
    work: Work,
    training: PrivateTraining,
    run_audit: RunAudit | None,
    before: KeptAudit,
) -> KeptAudit:
    if run_audit is None:
        return before
    made = run_audit.finish(
        work,
        training.model,
        performance_of(settings),
        steps_started=training.journal.position().steps_started,
        controls=controls_of(settings, device_class()),
        code_commit=code_version(),
        image_digest=settings.image_digest or None,
    )
    return keep_run_audit(db, work, made, before)


def _inputs(work: Work, keys: AttemptKeys) -> Inputs:
    return Inputs(
        plan=RunPlan.from_dict(work.plan),
        model_dir=Path(work.model_dir),
        rows=keys.rows,
        dataset_sha256=work.dataset_sha256,
        split_key=work.split_key,
    )


def _publish(
    db: Database,
    work: Work,
    plan: RunPlan,
    training: PrivateTraining,
    result: TrainingResult,
    adapter: list[ArtifactFile],
    audit: KeptAudit,
) -> ExitCode:
    """Certificate, settle and final state in one transaction."""
    position = training.journal.position()
    certificate = job_claim(
        plan,
        steps_started=position.steps_started,
        steps_finished=result.steps_finished,
        outcome=result.outcome,
        layout_digest=canonical_digest(
            {"ids": list(training.layout.ids), "sizes": list(training.layout.sizes)}
        ),
        groups=len(training.layout),
        noise_source=plan.noise_source,
        policy=training.policy.name,
        policy_digest=training.policy.digest(),
        second_opinion=(
            prv_epsilon_upper(plan.training_events(), plan.delta)
            if plan.mode == "fixed_sigma"
            else None
        ),
        versions={name: importlib.metadata.version(name) for name in VERSIONED},
        validation_before=result.first_validation_loss,
        validation_after=result.last_validation_loss,
    )
    finish(
        db,
        work.job_id,
        work.epoch,
        final_state=OUTCOME_STATES[result.outcome],
        artifacts=[*adapter, *(_artifact(path, path.read_bytes()) for path in audit.files)],
        certificate=certificate,
        audit=audit.found if audit.found.revealed_seed is not None else None,
    )
    return ExitCode.DONE if result.outcome == "completed" else ExitCode.BUDGET_STOP


def _seal_adapter(work: Work, model: Any, files: JobFiles) -> list[ArtifactFile]:
    """Nobody has released it yet: it lies sealed until two stewards do."""
    directory = Path(work.job_dir) / f"adapter-{work.epoch}"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = []
    for name, content in adapter_files(model, base_model_name=work.model).items():
        files.write(directory / name, content, label=label_of(name))
        made.append(_artifact(directory / name, content))
    return made


def _artifact(path: Path, content: bytes) -> ArtifactFile:
    return ArtifactFile(
        name=path.name,
        path=str(path),
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
    )


def exit_code_of(error: BaseException) -> ExitCode | None:
    """The closed table from what went wrong to what is said; None: an unknown crash."""
    if isinstance(error, FencedOut | StaleAttempt):
        return ExitCode.FENCED_OUT
    if isinstance(error, JournalUnavailable | DBAPIError):
        return ExitCode.LEDGER_UNREACHABLE
    if isinstance(error, JournalError | PlanError):
        return ExitCode.LEDGER_REFUSED
    if isinstance(error, KeyUnavailable):
        return ExitCode.KEY_UNAVAILABLE
    if isinstance(error, ModelMissing):
        return ExitCode.MODEL_MISSING
    if isinstance(error, DiskFull):
        return ExitCode.DISK_FULL
    if isinstance(error, RecordsUnreadable | CheckpointMismatch | SealError):
        return ExitCode.DATA_UNREADABLE
    if isinstance(error, RankLost):
        return ExitCode.RANK_LOST
    if isinstance(error, RanksDiffer):
        return ExitCode.RANKS_DIFFER
    if isinstance(error, SelfCheckFailed):
        return ExitCode.SELF_CHECK_FAILED
    if isinstance(error, AuditFailed):
        return ExitCode.AUDIT_FAILED
    if isinstance(error, UnsupportedError | OSError):
        return ExitCode.MODEL_REFUSED
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return ExitCode.OUT_OF_MEMORY
    return None


def main() -> NoReturn:
    """Entry point of the trainer process; of each rank, where torchrun starts several."""
    parser = argparse.ArgumentParser(description="Run one attempt of one fine-tuning job.")
    parser.add_argument("--job", default="", help="job id, ftjob-...; read by rank 0 alone")
    parser.add_argument("--epoch", default=0, type=int, help="the claim's epoch")
    told = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        ranks, settings = from_environment(), Settings()
        if ranks.rank == 0:
            code = run_attempt(settings, job_id=told.job, epoch=told.epoch, ranks=ranks)
        else:
            follow(settings, ranks)
            code = ExitCode.DONE
    except Exception as error:
        # The type's name is ours or a library's, never data; the text stays in here.
        print(f"attempt ended by {type(error).__name__}", file=sys.stderr, flush=True)
        os._exit(exit_code_of(error) or CRASHED)
    # os._exit: a lease thread in a database call must not delay the end.
    os._exit(code)


if __name__ == "__main__":
    main()
