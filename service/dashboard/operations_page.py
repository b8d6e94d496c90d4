"""The admin's first page: alerts, numbers, running jobs, queue, workers, budgets, failures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.dashboard.charts import Spark, sparkline
from service.dashboard.overview import Budget, budget_of, populations_of
from service.jobs import repository
from service.jobs.lifecycle import LEASED
from service.jobs.models import Job
from service.jobs.views import eta_minutes
from service.ledger.models import ReservationBlock
from service.operations.queue import Waiting, count_waiting, waiting_jobs
from service.operations.summary import Summary, summary_of

RUNNING_SHOWN = 100
WAITING_SHOWN = 25
TRAINING_LOSS = "loss_noised"


@dataclass(frozen=True, kw_only=True)
class RunningLine:
    """A job in a worker's hands, in one row of a table."""

    job: Job
    population: str
    steps_planned: int
    minutes_left: int | None
    share_done: float
    share_charged: float  # of what the training block reserved
    epsilon: str
    delta: str
    spark: Spark | None


@dataclass(frozen=True, kw_only=True)
class OperationsPage:
    """What the page shows; `waiting_total` counts those below the last row too."""

    now: Summary
    running: tuple[RunningLine, ...]
    waiting: tuple[Waiting, ...]
    waiting_total: int
    budgets: tuple[Budget, ...]


def operations_page(session: Session, subject: Subject, data_dir: Path) -> OperationsPage:
    """Everything on the page, in one read-only transaction."""
    summary = summary_of(session, subject, data_dir)
    populations = populations_of(session, subject)
    codes = {population.id: population.code for population in populations}
    return OperationsPage(
        now=summary,
        running=tuple(_running(session, subject, codes)),
        waiting=tuple(waiting_jobs(session, subject, summary.fleet, limit=WAITING_SHOWN)),
        waiting_total=count_waiting(session, subject),
        budgets=tuple(budget_of(session, population) for population in populations),
    )


def _running(session: Session, subject: Subject, codes: dict[str, str]) -> list[RunningLine]:
    """Oldest first, so that a row keeps its place while others come."""
    held = repository.visible_jobs(subject).where(Job.state.in_(LEASED))
    jobs = session.scalars(held.order_by(Job.started_at, Job.id).limit(RUNNING_SHOWN)).all()
    ids = [job.id for job in jobs]
    amounts = repository.amounts_of(session, ids)
    curves = repository.whole_job_points(session, ids, TRAINING_LOSS)
    return [_line(job, codes, amounts[job.id]["train"], curves.get(job.id, ())) for job in jobs]


def _line(
    job: Job, codes: dict[str, str], block: ReservationBlock, curve: Sequence[tuple[int, float]]
) -> RunningLine:
    plan = json.loads(job.plan)
    steps = plan["steps_planned"]
    return RunningLine(
        job=job,
        population=codes.get(job.population_id, job.population_id),
        steps_planned=steps,
        minutes_left=eta_minutes(job, plan),
        share_done=min(1.0, job.step / steps),
        share_charged=block.spent_pico / max(1, block.reserved_pico),
        epsilon=plan["target_epsilon"],
        delta=plan["delta"],
        spark=sparkline(curve, steps_max=steps),
    )
