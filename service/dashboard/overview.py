"""What the overview shows: running jobs, queue, budgets, ended jobs, the newest entries.

Each role sees what its routes show it (service.md 16): submitters their own jobs, stewards
and admins those of the tenant, auditors no jobs but all ledger lines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.artifacts.service import release_state
from service.auth.subject import Subject
from service.dashboard.job_facts import Progress, newest_loss, progress_of
from service.jobs.lifecycle import LEASED, TERMINAL, State, status_message
from service.jobs.models import Job
from service.jobs.repository import visible_jobs
from service.ledger import repository
from service.ledger.models import Entry
from service.ledger.service import BlockBudget, epsilon_limits
from service.operations.fleet import fleet_of
from service.operations.queue import Waiting, waiting_jobs
from service.populations.models import Population
from service.populations.service import visible_populations

JOBS_SHOWN = 20
ENTRIES_SHOWN = 12
POPULATIONS_SHOWN = 50
PHRASES = {
    "audit.committed": "canaries chosen by coins nobody has seen",
    "audit.revealed": "the coins of the audit, for anyone to check",
    "grant.approved": "signed by a steward",
    "incident": "the audit contradicts this job: no adapter may leave",
    "query.charge": "held-out loss, one noised query",
    "release.approved": "signed by a steward",
    "release.published": "two signatures: files may leave",
    "release.requested": "asked for by a steward",
    "reserve.refused": "refused before the run, at no cost",
    "settle": "rest of the escrow went back",
}


@dataclass(frozen=True, kw_only=True)
class RunningJob:
    """A job in a worker's hands, as a card."""

    job: Job
    population: str
    progress: Progress
    loss: str | None  # newest noised held-out loss


@dataclass(frozen=True, kw_only=True)
class EndedJob:
    job: Job
    why: str
    release: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A budget of one block: shares of its limit, in [0, 1]."""

    block: str
    spent: float
    held: float
    free: float
    epsilon_so_far: str


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One population with its whole claim; the limit is None before the first grant."""

    population: Population
    bars: tuple[Bar, ...]


@dataclass(frozen=True, kw_only=True)
class LedgerLine:
    idx: int
    time: str
    type: str
    job_id: str | None
    said: str


@dataclass(frozen=True, kw_only=True)
class Overview:
    sees_jobs: bool
    running: tuple[RunningJob, ...]
    waiting: tuple[Waiting, ...]
    ended: tuple[EndedJob, ...]
    budgets: tuple[Budget, ...]
    entries: tuple[LedgerLine, ...]


def overview(session: Session, subject: Subject) -> Overview:
    """Everything on the page, in one read-only transaction."""
    sees_jobs = subject.role != "auditor"
    sees_ledger = subject.role in ("submitter", "steward", "auditor")
    populations = populations_of(session, subject)
    codes = {population.id: population.code for population in populations}
    running = _jobs(session, subject, sorted(LEASED)) if sees_jobs else []
    fleet = fleet_of(session, subject)
    waiting = waiting_jobs(session, subject, fleet, limit=JOBS_SHOWN) if sees_jobs else []
    ended = _jobs(session, subject, sorted(TERMINAL)) if sees_jobs else []
    return Overview(
        sees_jobs=sees_jobs,
        running=tuple(
            RunningJob(
                job=job,
                population=codes.get(job.population_id, job.population_id),
                progress=progress_of(session, job),
                loss=newest_loss(session, job.id),
            )
            for job in running
        ),
        waiting=tuple(waiting),
        ended=tuple(
            EndedJob(
                job=job,
                why=status_message(job.reason_code) or "",
                release=release_state(session, job.id),
            )
            for job in ended
        ),
        budgets=tuple(budget_of(session, population) for population in populations),
        entries=tuple(_newest_lines(session, subject)) if sees_ledger else (),
    )


def _jobs(session: Session, subject: Subject, states: Sequence[State]) -> list[Job]:
    statement = visible_jobs(subject).where(Job.state.in_([state.value for state in states]))
    newest_first = statement.order_by(Job.created_at.desc(), Job.id.desc()).limit(JOBS_SHOWN)
    return list(session.scalars(newest_first))


def populations_of(session: Session, subject: Subject) -> list[Population]:
    statement = visible_populations(subject.tenant_id).order_by(Population.created_at)
    return list(session.scalars(statement.limit(POPULATIONS_SHOWN)))


def budget_of(session: Session, population: Population) -> Budget:
    blocks = epsilon_limits(session, population.id).blocks
    return Budget(population=population, bars=tuple(_bar(block) for block in blocks))


def _bar(block: BlockBudget) -> Bar:
    limit = block.limit_pico or 1
    return Bar(
        block=block.block,
        spent=block.spent_pico / limit,
        held=block.held_pico / limit,
        free=block.free_pico / limit,
        epsilon_so_far=block.epsilon_so_far,
    )


def _newest_lines(session: Session, subject: Subject) -> list[LedgerLine]:
    head = repository.head_of(session, subject.tenant_id)
    if head is None:
        return []
    newest = (
        repository.visible_entries(subject.tenant_id)
        .where(Entry.log_id == head.log_id, Entry.idx >= head.size - ENTRIES_SHOWN)
        .limit(ENTRIES_SHOWN)
    )
    return [line_of(entry) for entry in reversed(session.scalars(newest).all())]


def line_of(entry: Entry) -> LedgerLine:
    return LedgerLine(
        idx=entry.idx,
        time=entry.ts,
        type=entry.type,
        job_id=entry.job_id,
        said=_said(entry.type, json.loads(entry.body)["data"]),
    )


def _said(kind: str, data: dict[str, object]) -> str:
    """One plain phrase for the entries people look for; the rest speak by their type."""
    if kind in PHRASES:
        return PHRASES[kind]
    if kind == "window.charge":
        return f"window {data['window']}: {data['steps']} steps at noise {data['level']}"
    if kind == "window.done":
        return f"window {data['window']} finished"
    if kind == "window.abandoned":
        return f"window {data['window']} lost, stays charged"
    if kind in ("grant.proposed", "grant.effective"):
        return f"limit ε {data['epsilon']} at δ {data['delta']}"
    if kind == "reserve":
        return f"escrow for at most {data['steps_started_max']} steps"
    return ""
