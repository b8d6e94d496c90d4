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
import secrets
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
from dp_core.artifact import save_adapter
from dp_core.base_model import load_base
from dp_core.certificate import job_claim
from dp_core.errors import (
    CheckpointMismatch,
    JournalError,
    JournalUnavailable,
    PlanError,
    RecordsUnreadable,
    SelfCheckFailed,
    StaleAttempt,
    UnsupportedError,
)
from dp_core.events import canonical_digest
from dp_core.lora import attach_adapters, clip_groups
from dp_core.noise import make_noise_source, require_private
from dp_core.plan import Performance, RunPlan
from dp_core.records import Blocks, load_blocks
from dp_core.second_opinion import prv_epsilon_upper
from dp_core.selfcheck import check_engine
from dp_core.training import PrivateTraining, TrainingResult
from service.database import Database
from service.jobs.errors import FencedOut
from service.jobs.runtime import ArtifactFile, Work, finish, load_work, renew_lease
from service.settings import Settings
from service.worker.checkpoints import DirectoryCheckpoints
from service.worker.exit_codes import ExitCode
from service.worker.journal import LedgerJournal
from service.worker.progress import JobProgress

VERSIONED = ("torch", "opacus", "transformers", "peft", "stable-baselines3", "dp-accounting")
CRASHED = 1
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
        while True:
            time.sleep(lease / 4)
            try:
                work = self._work
                if not renew_lease(self._db, work.job_id, work.epoch, work.worker_id):
                    os._exit(ExitCode.FENCED_OUT)
                renewed = time.monotonic()
            except DBAPIError:
                if time.monotonic() - renewed > lease * 0.75:
                    os._exit(ExitCode.FENCED_OUT)


def run_attempt(settings: Settings, *, job_id: str, epoch: int) -> ExitCode:
    """Runs one attempt to its end and returns how it ended."""
    db = Database(settings.resolved_database_url)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    work = load_work(db, job_id, epoch)
    LeaseKeeper(settings, work).start()
    plan = RunPlan.from_dict(work.plan)
    performance = performance_of(settings)
    noise_source = make_noise_source(plan.noise_source)
    require_private(noise_source)
    model, tokenizer = _model(work, plan, performance)
    blocks = _blocks(work, plan, tokenizer)
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
            db, job_id=job_id, epoch=epoch, job_dir=Path(work.job_dir)
        ),
        progress=JobProgress(db, job_id=job_id, epoch=epoch, stop=stop),
        noise_source=noise_source,
        performance=performance,
    )
    result = training.run()
    if result.outcome == "cancelled":
        return ExitCode.CANCELLED
    if result.steps_finished == 0:
        return ExitCode.NO_CHECKPOINT
    return _publish(db, work, plan, training, result)


def performance_of(settings: Settings) -> Performance:
    """What the operator set for speed and memory; beyond rounding no release depends on it."""
    return Performance(
        device="cuda" if torch.cuda.is_available() else "cpu",
        patients_per_microbatch=settings.microbatch_patients,
        base_dtype=settings.base_dtype,
        checkpointing=settings.checkpointing,
        autocast=settings.autocast,
    )


def _model(work: Work, plan: RunPlan, performance: Performance) -> tuple[Any, Any]:
    """The adapted model, proven on public rows before any private row is read."""
    base, tokenizer = load_base(
        Path(work.model_dir), performance, expected_digest=plan.base_model_digest
    )
    vocabulary = int(base.config.vocab_size)
    model = attach_adapters(base, plan.adapter, seed=plan.seed, performance=performance).to(
        performance.device
    )
    check_engine(
        model,
        clip_groups(model, plan.clipping.grouping),
        vocabulary=vocabulary,
        seed=secrets.randbelow(2**31),
        performance=performance,
    )
    return model, tokenizer


def _blocks(work: Work, plan: RunPlan, tokenizer: Any) -> Blocks:
    return load_blocks(
        Path(work.dataset_path),
        expected_sha256=work.dataset_sha256,
        tokenizer=tokenizer,
        tokens_per_row=plan.tokens_per_row,
        split_key=work.split_key,
        validation_fraction=plan.validation.fraction if plan.validation else None,
    )


def _publish(
    db: Database, work: Work, plan: RunPlan, training: PrivateTraining, result: TrainingResult
) -> ExitCode:
    """Writes adapter files, then certificate, settle and final state in one transaction."""
    directory = Path(work.job_dir) / f"adapter-{work.epoch}"
    paths = save_adapter(training.model, directory, base_model_name=work.model)
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
            prv_epsilon_upper([plan.training_event()], plan.delta)
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
        artifacts=[_artifact(path) for path in paths],
        certificate=certificate,
    )
    return ExitCode.DONE if result.outcome == "completed" else ExitCode.BUDGET_STOP


def _artifact(path: Path) -> ArtifactFile:
    content = path.read_bytes()
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
    if isinstance(error, RecordsUnreadable | CheckpointMismatch):
        return ExitCode.DATA_UNREADABLE
    if isinstance(error, SelfCheckFailed):
        return ExitCode.SELF_CHECK_FAILED
    if isinstance(error, UnsupportedError | OSError):
        return ExitCode.MODEL_REFUSED
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return ExitCode.OUT_OF_MEMORY
    return None


def main() -> NoReturn:
    """Entry point of the trainer process."""
    parser = argparse.ArgumentParser(description="Run one attempt of one fine-tuning job.")
    parser.add_argument("--job", required=True, help="job id, ftjob-...")
    parser.add_argument("--epoch", required=True, type=int, help="the claim's epoch")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        code = run_attempt(Settings(), job_id=arguments.job, epoch=arguments.epoch)
    except Exception as error:
        # The type's name is ours or a library's, never data; the text stays in here.
        print(f"attempt ended by {type(error).__name__}", file=sys.stderr, flush=True)
        os._exit(exit_code_of(error) or CRASHED)
    # os._exit: a lease thread in a database call must not delay the end.
    os._exit(code)


if __name__ == "__main__":
    main()
