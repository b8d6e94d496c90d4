"""Failed jobs of a month by their reason, and what to do about each; no text of exceptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.database import clock_us
from service.jobs.lifecycle import Reason, State, status_message
from service.jobs.models import Job
from service.jobs.repository import visible_jobs
from service.jobs.steering import DAY
from service.jobs.transitions import SECOND

DAYS = 30
NAMED = 3

# What a person who keeps the service going does next.
ADVICE: dict[Reason, str] = {
    Reason.NO_CHECKPOINT: "Submit again with more margin windows, or a shorter interval.",
    Reason.TRAINER_CRASHED: "Run it once more. If it crashes again, look at the worker's host: "
    "driver, disk, kernel log.",
    Reason.TRAINER_KILLED: "The host ended it. Look for its memory killer, and give the worker "
    "more memory or fewer neighbours.",
    Reason.TRAINER_STALLED: "Look at the device's load and driver; raise RLDP_STALL_SECONDS only "
    "if one step truly takes so long.",
    Reason.LEASE_EXPIRED: "Look at the network between worker and database, and at the worker's "
    "load.",
    Reason.WORKER_STOPPED: "Nothing to mend: the worker was stopped while it ran.",
    Reason.OUT_OF_MEMORY: "Lower RLDP_MICROBATCH_PATIENTS, or submit with a smaller model, shorter "
    "rows or a lower rank.",
    Reason.DATA_UNREADABLE: "Check the data folder and its keys. The submitter uploads the file "
    "again.",
    Reason.MODEL_REFUSED: "Choose another base model or other target modules; the job's events "
    "name what was refused.",
    Reason.LEDGER_UNREACHABLE: "Look at the database and the way to it from the worker.",
    Reason.LEDGER_REFUSED: "See the alert on the ledger, and rldp ledger anomalies.",
    Reason.SELF_CHECK_FAILED: "Drain this worker: its arithmetic does not agree with itself. "
    "Compare its libraries and driver with another one.",
    Reason.AUDIT_FAILED: "Drain this worker and keep its machine as it is: the attack on its own "
    "noise succeeded. rldp audit JOB attacks the plan again.",
    Reason.RANK_LOST: "Look at the host of the lost process: its device, memory and kernel log.",
    Reason.RANKS_DIFFER: "Give every host of the job the same release, base model and files.",
    Reason.DISK_FULL: "Make room on the data volume; the job goes on by itself.",
    Reason.KEY_UNAVAILABLE: "Put data.key into the worker's RLDP_KEYS_FOLDER and start it anew.",
    Reason.MODEL_MISSING: "Put the base model into RLDP_MODELS_DIR of every worker.",
    Reason.ATTEMPTS_USED: "Open the job: its events tell how each attempt ended.",
}
GENERAL = "Open the job: its events tell what happened."


@dataclass(frozen=True, kw_only=True)
class FailureGroup:
    """Jobs that ended by one reason. `jobs` are the newest few of `count`."""

    reason: str
    message: str
    advice: str
    count: int
    latest_at: int
    jobs: tuple[str, ...]


def failure_groups(session: Session, subject: Subject) -> list[FailureGroup]:
    """Of the last 30 days, the largest group first."""
    since = clock_us(session) - DAYS * DAY
    failed = visible_jobs(subject).where(Job.state == State.FAILED, Job.finished_at > since)
    rows = failed.subquery()
    counted = session.execute(
        select(rows.c.reason_code, func.count(), func.max(rows.c.finished_at))
        .group_by(rows.c.reason_code)
        .order_by(func.count().desc(), rows.c.reason_code)
    )
    found = []
    for reason, count, latest in counted:
        newest = failed.where(Job.reason_code == reason).order_by(Job.finished_at.desc())
        found.append(
            FailureGroup(
                reason=reason,
                message=status_message(reason) or "",
                advice=ADVICE.get(Reason(reason), GENERAL),
                count=count,
                latest_at=latest,
                jobs=tuple(job.id for job in session.scalars(newest.limit(NAMED))),
            )
        )
    return found


def failures_answer(groups: Sequence[FailureGroup]) -> list[dict[str, Any]]:
    """As the API shows them. Times in Unix seconds."""
    return [
        {
            "reason_code": group.reason,
            "message": group.message,
            "advice": group.advice,
            "count": group.count,
            "latest_at": group.latest_at // SECOND,
            "jobs": list(group.jobs),
        }
        for group in groups
    ]
