"""The state of the house in one answer: alerts, numbers, failures, newest events."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.database import clock_us
from service.jobs.lifecycle import CLAIMABLE, LEASED, STATES, State
from service.jobs.models import Job, JobEvent
from service.jobs.repository import visible_jobs
from service.jobs.steering import DAY
from service.jobs.transitions import SECOND
from service.operations.acknowledgements import with_acknowledgements
from service.operations.alerts import Alert, alert_answer, alerts_of
from service.operations.failures import FailureGroup, failure_groups, failures_answer
from service.operations.fleet import Fleet, fleet_of

EVENTS_SHOWN = 12
EVENTS_READ = 400
WAITS_READ = 1000


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Jobs of the reader's hospital by state, and how long they wait."""

    by_state: dict[str, int]
    median_wait_seconds: int | None  # of the jobs that started within a day

    @property
    def running(self) -> int:
        return sum(self.by_state[state] for state in LEASED)

    @property
    def waiting(self) -> int:
        return sum(self.by_state[state] for state in CLAIMABLE)

    @property
    def paused(self) -> int:
        return self.by_state[State.PAUSED]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One look, in one transaction."""

    alerts: tuple[Alert, ...]
    counts: Counts
    fleet: Fleet
    failures: tuple[FailureGroup, ...]
    events: tuple[JobEvent, ...]

    @property
    def unknown_alerts(self) -> tuple[Alert, ...]:
        """What nobody has acknowledged: the strip."""
        return tuple(alert for alert in self.alerts if alert.acknowledged is None)

    @property
    def known_alerts(self) -> tuple[Alert, ...]:
        return tuple(alert for alert in self.alerts if alert.acknowledged is not None)


def summary_of(session: Session, subject: Subject, data_dir: Path) -> Summary:
    """What an admin needs to see first."""
    fleet = fleet_of(session, subject)
    alerts = alerts_of(session, subject, fleet, data_dir)
    return Summary(
        alerts=tuple(with_acknowledgements(session, subject, alerts)),
        counts=_counts(session, subject),
        fleet=fleet,
        failures=tuple(failure_groups(session, subject)),
        events=tuple(_newest_changes(session, subject)),
    )


def _counts(session: Session, subject: Subject) -> Counts:
    jobs = visible_jobs(subject).subquery()
    rows = session.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state))
    found: dict[str, int] = {row[0]: row[1] for row in rows}
    since = clock_us(session) - DAY
    started = select(jobs.c.started_at - jobs.c.created_at).where(jobs.c.started_at > since)
    waits = session.scalars(started.order_by(jobs.c.started_at.desc()).limit(WAITS_READ)).all()
    return Counts(
        by_state={state.value: found.get(state, 0) for state in sorted(STATES)},
        median_wait_seconds=round(statistics.median(waits) / SECOND) if waits else None,
    )


def _newest_changes(session: Session, subject: Subject) -> list[JobEvent]:
    """Changes of state and warnings among the newest events; windows are on the jobs' pages."""
    newest = (
        select(JobEvent)
        .join(Job, Job.id == JobEvent.job_id)
        .where(Job.tenant_id == subject.tenant_id)
        .order_by(JobEvent.seq.desc())
        .limit(EVENTS_READ)
    )
    told = [
        event
        for event in session.scalars(newest)
        if event.level != "info" or "state" in json.loads(event.data)
    ]
    return told[:EVENTS_SHOWN]


def summary_answer(summary: Summary) -> dict[str, Any]:
    """As the API shows it. Times in Unix seconds."""
    fleet, counts = summary.fleet, summary.counts
    return {
        "object": "operations",
        "alerts": [alert_answer(alert) for alert in summary.alerts],
        "jobs": counts.by_state,
        "median_wait_seconds": counts.median_wait_seconds,
        "workers": {
            "alive": fleet.alive,
            "busy": fleet.busy,
            "idle": fleet.idle,
            "taking_jobs": fleet.takers,
        },
        "failures": failures_answer(summary.failures),
        "events": [_event(event) for event in summary.events],
    }


def _event(event: JobEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "job": event.job_id,
        "created_at": event.created_at // SECOND,
        "level": event.level,
        "message": event.message,
    }
