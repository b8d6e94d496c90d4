"""What needs a person now: each alert with its cause and what to do about it.

Read from rows at the moment of asking; no alert is stored, so it ends with its cause. What a
person said about one is (`acknowledgements`).
Alerts on the ledger, workers, broker and disk are of the whole installation; those on jobs and
budgets are of the reader's hospital.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from service import row_fence
from service.audits.control_faults import control_faults
from service.audits.models import JobAudit
from service.auth.subject import Subject
from service.database import clock_us
from service.jobs.lifecycle import CLAIMABLE, LEASED, STATES, TERMINAL, Reason
from service.jobs.models import Job, Outbox
from service.jobs.repository import visible_jobs
from service.jobs.steering import DAY
from service.jobs.transitions import SECOND
from service.ledger import accounts, guard
from service.operations.fleet import Fleet
from service.populations.service import visible_populations

DEAF_SECONDS = 3600  # a silent worker is news for an hour, then history
STUCK_SECONDS = 600
UNREAPED_SECONDS = 120
UNSENT_SECONDS = 60
AUDIT_DAYS = 7
BUDGET_SHARE = 0.8
BUDGET_DEGREES = (0.9, 0.95, 0.99)  # each one is news again
DISK_SHARE = 0.1
DISK_DEGREES = (0.05, 0.02, 0.01)
NAMED_MAX = 5
Level = Literal["error", "warn"]
LIVE = STATES - TERMINAL


@dataclass(frozen=True, kw_only=True)
class Acknowledged:
    """Who knows of an alert; `by` is a person's id, `at` in microseconds."""

    by: str
    at: int
    note: str | None


@dataclass(frozen=True, kw_only=True)
class Alert:
    """`subject` is an id or code that a link can lead to; empty for the whole installation.

    Two alerts are the same one as long as code, subject and `about` are: `about` tells
    episodes of one subject apart (which silence of a worker, which attempt of a job), where
    rows tell them. `degree` grows as the same one gets worse.
    """

    code: str
    level: Level
    subject: str
    cause: str
    advice: str
    about: str = ""
    degree: int = 0
    acknowledged: Acknowledged | None = None

    @property
    def id(self) -> str:
        """The same in every process, as long as the cause stands."""
        told = "\0".join((self.code, self.subject, self.about)).encode()
        return f"alert_{hashlib.sha256(told).hexdigest()[:32]}"


def alerts_of(session: Session, subject: Subject, fleet: Fleet, data_dir: Path) -> list[Alert]:
    """Errors first."""
    now = clock_us(session)
    found = [
        *_of_ledger(session),
        *_of_workers(fleet),
        *_of_queue(session, fleet, now),
        *_of_leases(session, subject, now),
        *_of_attempts(session, subject),
        *_of_audits(session, subject, now),
        *_of_controls(data_dir),
        *_of_budgets(session, subject),
        *_of_outbox(session, now),
        *_of_disk(data_dir),
    ]
    return sorted(found, key=lambda alert: alert.level != "error")


def alert_answer(alert: Alert) -> dict[str, Any]:
    """As the API shows it. Times in Unix seconds."""
    shown = asdict(alert)
    del shown["about"], shown["degree"]
    if alert.acknowledged is not None:
        shown["acknowledged"]["at"] //= SECOND
    return {"id": alert.id, **shown}


def _degree(is_worse: Iterable[bool]) -> int:
    """How many of the steps beyond the first threshold were passed."""
    return sum(is_worse)


def _of_ledger(session: Session) -> Iterator[Alert]:
    told = guard.state(session)
    if told["state"] == "halted":
        yield Alert(
            code="ledger_halted",
            level="error",
            subject="",
            cause=f"The ledger is halted ({told['reason']}): nothing is reserved or charged.",
            advice="Run rldp ledger anomalies. Restore the newest backup, or let two stewards "
            "settle the loss: rldp ledger recover.",
            about=str(told["reason"]),
        )
    elif told["state"] == "stale":
        yield Alert(
            code="witness_stale",
            level="error",
            subject="",
            cause=f"Fewer than {told['quorum']} witnesses have signed for "
            f"{told['quorum_age_seconds'] // 60} minutes: nothing new is reserved.",
            advice="Look at the witnesses and the way to them. Running jobs go on.",
        )


def _of_workers(fleet: Fleet) -> Iterator[Alert]:
    for line in fleet.workers:
        if line.standing == "deaf" and line.heard_seconds < DEAF_SECONDS:
            yield Alert(
                code="worker_deaf",
                level="warn",
                subject=line.worker.id,
                cause=f"A worker on {line.worker.device} was last heard of "
                f"{line.heard_seconds} s ago and said no goodbye.",
                advice="Look at its host. Its job goes to another worker when its lease ends.",
                about=str(line.worker.heard_at),
            )


def _of_queue(session: Session, fleet: Fleet, now: int) -> Iterator[Alert]:
    """Claimable for ten minutes, though nothing is busy with others' jobs."""
    due = case((Job.not_before > Job.state_at, Job.not_before), else_=Job.state_at)
    with row_fence.lifted(session):
        oldest = session.scalar(
            select(func.min(due)).where(Job.state.in_(CLAIMABLE), Job.not_before <= now)
        )
    if oldest is None or now - oldest < STUCK_SECONDS * SECOND:
        return
    if fleet.takers > fleet.idle:
        return  # some work, none is free: that is a queue, not a fault
    minutes = (now - oldest) // SECOND // 60
    cause = f"{fleet.idle} workers are free" if fleet.idle else "no worker takes jobs"
    yield Alert(
        code="queue_stuck",
        level="error",
        subject="",
        cause=f"A job has waited for {minutes} minutes while {cause}.",
        advice="Start a worker (rldp up, or one more replica), or see why the free ones do not "
        "look: their log names the cause.",
    )


def _of_leases(session: Session, subject: Subject, now: int) -> Iterator[Alert]:
    over = visible_jobs(subject).where(
        Job.state.in_(LEASED), Job.lease_expires_at < now - UNREAPED_SECONDS * SECOND
    )
    for job in session.scalars(over.order_by(Job.lease_expires_at).limit(NAMED_MAX)):
        yield Alert(
            code="lease_unreaped",
            level="error",
            subject=job.id,
            cause="Its worker's lease ended over two minutes ago and nobody took the job back.",
            advice="The dispatcher does that: see whether one runs.",
            about=str(job.epoch),
        )


def _of_attempts(session: Session, subject: Subject) -> Iterator[Alert]:
    """Live jobs whose last attempt was lost with its worker, or that failed twice."""
    lost = visible_jobs(subject).where(Job.state.in_(LIVE), Job.last_failure_code.is_not(None))
    for job in session.scalars(lost.order_by(Job.state_at.desc()).limit(NAMED_MAX)):
        # The attempt that runs is no failure yet; neither is one that a pause ended.
        failed = job.attempt - job.pauses - (job.state in LEASED)
        if failed >= 2:
            yield Alert(
                code="failed_twice",
                level="error",
                subject=job.id,
                cause=f"{failed} attempts of it ended badly, the last one by "
                f"{job.last_failure_code}.",
                advice="Open the job, and see the advice for this reason under Failures.",
                degree=failed,
            )
        elif job.last_failure_code == Reason.LEASE_EXPIRED:
            yield Alert(
                code="lease_lost",
                level="warn",
                subject=job.id,
                cause="Its worker was not heard of in time; another attempt takes over.",
                advice="Look at that worker's load, and at its way to the database.",
                about=str(job.attempt - (job.state in LEASED)),
            )


def _of_audits(session: Session, subject: Subject, now: int) -> Iterator[Alert]:
    failed = (
        select(JobAudit.job_id)
        .join(Job, Job.id == JobAudit.job_id)
        .where(
            JobAudit.tenant_id == subject.tenant_id,
            JobAudit.verdict == "FAIL",
            JobAudit.created_at > now - AUDIT_DAYS * DAY,
        )
        .order_by(JobAudit.created_at.desc())
        .limit(NAMED_MAX)
    )
    for job_id, attempts in Counter(session.scalars(failed)).items():
        yield Alert(
            code="audit_failed",
            level="error",
            subject=job_id,
            cause="The attack on this job's own noise succeeded. The attempt charged nothing.",
            advice="Drain its worker and keep the machine as it is; rldp audit JOB tries again.",
            degree=attempts,
        )


def _of_controls(data_dir: Path) -> Iterator[Alert]:
    """A self-test that nobody has seen ring: whatever it says, no audit passes."""
    for fault in control_faults(data_dir)[:NAMED_MAX]:
        if fault.why:
            yield Alert(
                code="controls_not_run",
                level="warn",
                subject="",
                cause=f"Known faults could not be planted on {fault.device} ({fault.why}), so that "
                "every job's audit is INCONCLUSIVE.",
                advice="Run rldp audit --controls on such a worker: it says what is in the way. "
                "Workers try again after an hour.",
                about=fault.device,
            )
            continue
        told = (
            "It did not find: " + ", ".join(fault.missing)
            if fault.missing
            else "It rang on the engine without a fault"
        )
        yield Alert(
            code="controls_failed",
            level="error",
            subject="",
            cause=f"The audit's own alarm does not work on {fault.device}. {told}. No audit "
            "passes there.",
            advice="Do not rely on audits of this release. Run rldp audit --controls on such a "
            "worker once more; if it fails again, go back to the release before.",
            about=fault.device,
            degree=len(fault.missing),
        )


def _of_budgets(session: Session, subject: Subject) -> Iterator[Alert]:
    codes = {
        population.id: population.code
        for population in session.scalars(visible_populations(subject.tenant_id))
    }
    for (population, block), share in accounts.used_ratios(session, sorted(codes)).items():
        if share >= BUDGET_SHARE:
            yield Alert(
                code="budget_nearly_gone",
                level="warn",
                subject=codes[population],
                cause=f"{share:.0%} of the {block} block's limit is spent or held.",
                advice="Jobs that need more are refused. Two stewards can sign a larger limit.",
                about=block,
                degree=_degree(share >= step for step in BUDGET_DEGREES),
            )


def _of_outbox(session: Session, now: int) -> Iterator[Alert]:
    due = now - UNSENT_SECONDS * SECOND
    unsent = session.scalar(
        select(func.count()).where(
            Outbox.sent_at.is_(None), Outbox.not_before < due, Outbox.created_at < due
        )
    )
    if unsent:
        yield Alert(
            code="doorbells_unsent",
            level="warn",
            subject="",
            cause=f"{unsent} messages have waited for over a minute.",
            advice="The broker or the dispatcher is away. Workers still look by themselves, later.",
        )


def _of_disk(data_dir: Path) -> Iterator[Alert]:
    try:
        usage = shutil.disk_usage(data_dir)
    except OSError:
        return
    if usage.free < DISK_SHARE * usage.total:
        yield Alert(
            code="disk_nearly_full",
            level="error",
            subject="",
            cause=f"{usage.free // 2**30} GiB of the API's data disk are free, below a tenth.",
            advice="Checkpoints and uploads lie there: enlarge it, or let retention erase uploads.",
            degree=_degree(usage.free < step * usage.total for step in DISK_DEGREES),
        )
