"""What an attempt may do to its job: claim it, read its work, report, and end it.

This is the whole seam between the trainer and its job. Each function is one transaction
under the attempt's epoch and a live lease (`leases`), except `fence`, which is the first
statement of the journal's own transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from dp_core.events import decimal_of
from service.artifacts import service as artifact_store
from service.artifacts.service import ArtifactFile
from service.audits import service as audits
from service.audits.service import FoundAudit
from service.certificates.service import build_certificate
from service.database import Database
from service.datasets.models import DatasetVersion
from service.ids import new_id
from service.jobs.errors import StateConflict
from service.jobs.leases import (
    Claim,
    cancel_requested,
    claim,
    fail_attempt,
    fence,
    mine,
    renew_lease,
    require_changed,
    require_mine,
)
from service.jobs.lifecycle import FINISHING, LEASED, WITH_ADAPTER, Reason, State
from service.jobs.models import Job, JobCheckpoint, JobMetric
from service.jobs.transitions import add_event, change_state, clock_us, locked_job
from service.ledger import service as ledger
from service.ledger.service import Commitment
from service.metrics import require_declared
from service.populations.models import Population
from service.webhooks import events as webhook_events

__all__ = [
    "ArtifactFile",
    "CheckpointRow",
    "Claim",
    "Metric",
    "Work",
    "cancel_requested",
    "claim",
    "commit_audit",
    "fail_attempt",
    "fence",
    "finish",
    "latest_checkpoint",
    "load_work",
    "note_progress",
    "record_audit",
    "record_checkpoint",
    "record_evaluation",
    "record_step",
    "record_window",
    "renew_lease",
]


_AUDIT_TITLES = {"T1": "Audit before training", "T2": "Audit of the training itself"}
EVENT_FIELDS = ("report_sha256", "self_test", "self_test_min_p", "steps", "tier", "verdict")


@dataclass(frozen=True, kw_only=True)
class Work:
    """Everything a trainer needs to know. `split_key` is secret and stays in its process."""

    job_id: str
    tenant_id: str
    worker_id: str
    epoch: int
    lease_seconds: int
    plan: dict[str, Any]
    plan_digest: str
    model: str
    model_dir: str
    dataset_version: str
    dataset_sha256: str
    population_id: str
    split_key: bytes = field(repr=False)
    job_dir: str


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One point of a declared series; `group` is "" for the whole job."""

    name: str
    group: str = ""
    step: int
    value_text: str  # a finite decimal


@dataclass(frozen=True, kw_only=True)
class CheckpointRow:
    """A committed checkpoint."""

    step: int
    window: int
    epoch: int
    directory: str
    sha256: str


def load_work(db: Database, job_id: str, epoch: int) -> Work:
    """The work of a claimed job.

    Raises:
        FencedOut: the attempt no longer owns the job.
    """
    with db.transaction() as session:
        job = locked_job(session, job_id)
        require_mine(job, epoch, clock_us(session))
        assert job.lease_owner is not None
        version = session.get_one(DatasetVersion, job.dataset_version_id)
        population = session.get_one(Population, job.population_id)
        return Work(
            job_id=job.id,
            tenant_id=job.tenant_id,
            worker_id=job.lease_owner,
            epoch=epoch,
            lease_seconds=job.lease_seconds,
            plan=json.loads(job.plan),
            plan_digest=job.plan_digest,
            model=job.model,
            model_dir=job.model_dir,
            dataset_version=version.id,
            dataset_sha256=version.sha256,
            population_id=job.population_id,
            split_key=population.split_key,
            job_dir=job.job_dir,
        )


def record_audit(db: Database, job_id: str, epoch: int, found: FoundAudit) -> None:
    """Keeps what the attempt's audit found, with a line in the job's history.

    A fault disputes the job in the ledger and alerts, in the same transaction.

    Raises:
        FencedOut: the attempt no longer owns the job.
    """
    with db.transaction() as session:
        now = clock_us(session)
        job = locked_job(session, job_id)
        require_mine(job, epoch, now)
        job.progress_at = now
        _note_audit(session, job, epoch, found, now)


def _note_audit(session: Session, job: Job, epoch: int, found: FoundAudit, now: int) -> None:
    audits.add(session, tenant_id=job.tenant_id, job_id=job.id, epoch=epoch, found=found, now=now)
    summary, has_failed = found.summary, found.verdict == "FAIL"
    report_sha256 = str(summary["report_sha256"])
    if found.revealed_seed is not None:
        ledger.reveal_audit(
            session,
            job_id=job.id,
            epoch=epoch,
            seed=found.revealed_seed,
            report_sha256=report_sha256,
            verdict=found.verdict,
        )
    if has_failed:
        ledger.record_incident(session, job_id=job.id, epoch=epoch, report_sha256=report_sha256)
        alert = {"state": "incident", "reason_code": Reason.AUDIT_FAILED.value, "job_id": job.id}
        webhook_events.emit(session, job.tenant_id, "ledger.alert", alert)
    add_event(
        session,
        job.id,
        now=now,
        level="error" if has_failed else "info",
        message=f"{_AUDIT_TITLES[str(summary['tier'])]}: {audits.headline(summary)}.",
        data={"audit": {name: summary[name] for name in EVENT_FIELDS}},
    )


def commit_audit(db: Database, job_id: str, epoch: int, made: Commitment) -> None:
    """Enters the coins' commitment of the job's own audit, before its first charge.

    Raises:
        FencedOut: the attempt no longer owns the job.
    """
    with db.transaction() as session:
        require_mine(locked_job(session, job_id), epoch, clock_us(session))
        ledger.commit_audit(session, job_id=job_id, epoch=epoch, made=made)


def note_progress(db: Database, job_id: str, epoch: int, message: str) -> None:
    """Tells what an attempt does between steps, and that it has not stalled.

    Raises:
        FencedOut: the attempt no longer owns the job.
    """
    with db.transaction() as session:
        now = clock_us(session)
        require_changed(
            session, mine(job_id, epoch, LEASED, now).values(progress_at=now), job_id, epoch
        )
        add_event(session, job_id, now=now, message=message, data={})


def record_step(db: Database, job_id: str, epoch: int, step: int) -> State:
    """Notes that a step is finished; feeds the stall watch. Returns the job's state.

    Raises:
        FencedOut: the attempt no longer owns the job.
    """
    with db.transaction() as session:
        now = clock_us(session)
        statement = mine(job_id, epoch, LEASED, now).values(step=step, progress_at=now)
        return require_changed(session, statement, job_id, epoch)


def record_window(
    db: Database,
    job_id: str,
    epoch: int,
    *,
    step: int,
    window: int,
    metrics: Sequence[Metric],
    event_message: str,
    event_data: Mapping[str, Any],
) -> State:
    """Stores the public and released figures of a finished window, all or nothing.

    Returns the job's state: `pausing` asks the trainer to open no other window.

    Raises:
        FencedOut: the attempt no longer owns the job.
        UndeclaredMetric: a name without a declaration.
        PlanInvalid: a value is not a finite decimal.
    """
    with db.transaction() as session:
        now = clock_us(session)
        statement = mine(job_id, epoch, LEASED, now).values(
            step=step, window_no=window + 1, progress_at=now
        )
        state = require_changed(session, statement, job_id, epoch)
        _store_metrics(session, job_id, epoch, metrics)
        add_event(session, job_id, now=now, type="metrics", message=event_message, data=event_data)
        return state


def record_evaluation(
    db: Database, job_id: str, epoch: int, *, step: int, loss: str, std: str, reference: str
) -> None:
    """Stores a released hold-out loss beside the ledger entry that paid for it.

    Raises: as `record_window`.
    """
    with db.transaction() as session:
        now = clock_us(session)
        require_changed(
            session, mine(job_id, epoch, LEASED, now).values(progress_at=now), job_id, epoch
        )
        point = Metric(name="validation_loss_noised", step=step, value_text=loss)
        _store_metrics(session, job_id, epoch, [point])
        add_event(
            session,
            job_id,
            now=now,
            type="metrics",
            message=f"Hold-out loss at step {step}: {loss} (standard error {std}).",
            data={
                "noise_std": std,
                "reference": reference,
                "step": step,
                "validation_loss_noised": loss,
            },
        )


def record_checkpoint(
    db: Database, job_id: str, epoch: int, *, step: int, window: int, directory: str, sha256: str
) -> None:
    """Commits a checkpoint: from now on a later attempt resumes from it.

    Raises:
        FencedOut: the attempt no longer owns the job.
    """
    with db.transaction() as session:
        now = clock_us(session)
        require_changed(
            session, mine(job_id, epoch, LEASED, now).values(progress_at=now), job_id, epoch
        )
        session.add(
            JobCheckpoint(
                id=new_id("ftckpt_"),
                job_id=job_id,
                epoch=epoch,
                step=step,
                window=window,
                directory=directory,
                sha256=sha256,
                epsilon_so_far=_epsilon_so_far(session, job_id),
                created_at=now,
            )
        )


def latest_checkpoint(db: Database, job_id: str) -> CheckpointRow | None:
    """The newest committed checkpoint of any attempt."""
    with db.reading() as session:
        row = session.scalar(
            select(JobCheckpoint)
            .where(JobCheckpoint.job_id == job_id)
            .order_by(JobCheckpoint.seq.desc())
            .limit(1)
        )
        if row is None:
            return None
        return CheckpointRow(
            step=row.step,
            window=row.window,
            epoch=row.epoch,
            directory=row.directory,
            sha256=row.sha256,
        )


def finish(
    db: Database,
    job_id: str,
    epoch: int,
    *,
    final_state: str,
    artifacts: Sequence[ArtifactFile],
    certificate: Mapping[str, Any] | None,
    reason_code: str | None = None,
    audit: FoundAudit | None = None,
) -> None:
    """Ends a job with its adapter: artefact rows, certificate, state and settle together.

    `audit` of the job's own steps is noted, and its coins revealed, in the same transaction.

    `certificate` is the trainer's claim (`dp_core.certificate.job_claim`); the evidence is
    added here from the ledger. None for a seeded test run, which gets no certificate.
    Asked again after a lost reply, nothing changes. A cancelled or failed end is not the
    trainer's to write: its process must be gone first (`fail_attempt`).

    Raises:
        FencedOut: the attempt no longer owns the job.
        StateConflict: the lifecycle knows no such change.
    """
    wanted = State(final_state)
    if wanted not in WITH_ADAPTER:
        raise StateConflict(state=State.RUNNING, wanted=wanted)
    digests = {file.name: file.sha256 for file in artifacts}
    with db.transaction() as session:
        now = clock_us(session)
        job = locked_job(session, job_id)
        if job.state == wanted and job.epoch == epoch:
            return
        # One that found every step done has only started: the fence lets it run first.
        fence(session, job_id, epoch, states=FINISHING)
        change_state(session, job, wanted, now=now, reason=_ending(wanted, reason_code))
        artifact_store.add(
            session, tenant_id=job.tenant_id, job_id=job_id, files=artifacts, now=now
        )
        if audit is not None:
            _note_audit(session, job, epoch, audit, now)
        digest = None
        if certificate is not None:
            digest = build_certificate(
                session,
                job_id=job_id,
                plan=json.loads(job.plan),
                claim=certificate,
                artifact_digests=digests,
            ).digest
        ledger.settle(
            session,
            job_id=job_id,
            final_state=wanted.value,
            artifact_digests=digests,
            certificate_digest=digest,
        )


def _ending(final_state: State, reason_code: str | None) -> Reason:
    if reason_code is not None:
        return Reason(reason_code)
    return Reason.TARGET_REACHED if final_state is State.SUCCEEDED else Reason.BUDGET_USED


def _store_metrics(session: Session, job_id: str, epoch: int, metrics: Sequence[Metric]) -> None:
    make = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    for metric in metrics:
        require_declared(metric.name)
        decimal_of(metric.value_text, field=metric.name)
        statement = make(JobMetric).values(
            job_id=job_id,
            name=metric.name,
            group_id=metric.group,
            step=metric.step,
            epoch=epoch,
            value=metric.value_text,
        )
        session.execute(
            statement.on_conflict_do_update(
                index_elements=["job_id", "name", "group_id", "step"],
                set_={"epoch": epoch, "value": metric.value_text},
            )
        )


def _epsilon_so_far(session: Session, job_id: str) -> str:
    blocks = ledger.job_statement(session, job_id)["blocks"]
    so_far: str = next(b for b in blocks if b["block"] == "train")["epsilon_so_far"]["value"]
    return so_far
