"""Facts about one job that several pages show: its plan, progress and released series."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from service.dashboard.charts import History, Lost, Point, Tick
from service.jobs.models import Job, JobEvent
from service.jobs.repository import metrics_of, page_of_checkpoints
from service.jobs.views import job_answer
from service.ledger import service as ledger

LOSS = "validation_loss_noised"
CHECKPOINTS_READ = 5000


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Steps done, and what of the reserved budget of the training block is charged."""

    step: int
    steps_planned: int
    share_done: float
    share_charged: float
    epsilon_so_far: str  # a report, never a guarantee
    epsilon_target: str
    delta: str
    unit: str


def plan_of(job: Job) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(job.plan)
    return plan


def progress_of(session: Session, job: Job) -> Progress:
    """The same figures as the API's, so that page and client never disagree."""
    answer = job_answer(session, job)
    privacy, progress = answer["privacy"], answer["progress"]
    return Progress(
        step=progress["step"],
        steps_planned=progress["steps_max"],
        share_done=min(1.0, progress["step"] / progress["steps_max"]),
        share_charged=int(privacy["spent_pico"]) / max(1, int(privacy["reserved_pico"])),
        epsilon_so_far=privacy["epsilon_so_far"]["value"],
        epsilon_target=privacy["target_epsilon"],
        delta=privacy["delta"],
        unit=privacy["unit"],
    )


def series(session: Session, job_id: str, *names: str) -> dict[str, dict[str, list[Point]]]:
    """Points of declared metrics: name, then group ("" for the whole job), in order of steps."""
    found: dict[str, dict[str, list[Point]]] = {name: {} for name in names}
    for row in metrics_of(session, job_id, names=names):
        points = found[row.name].setdefault(row.group_id, [])
        points.append(Point(step=row.step, value=float(row.value)))
    return found


def history_of(session: Session, job: Job) -> History:
    """Attempts after the first, and the windows that were lost, by their steps."""
    told = ledger.job_history(session, job.id)
    restarts = []
    for number, attempt in enumerate(told["attempts"], start=1):
        firsts = [w["first_step"] for w in told["windows"] if w["epoch"] == attempt["epoch"]]
        if number > 1 and firsts:
            restarts.append(Tick(at=min(firsts), label=f"attempt {number}"))
    lost = [
        Lost(first=window["first_step"], last=window["first_step"] + window["steps"])
        for window in told["windows"]
        if window["outcome"] == "abandoned"
    ]
    return History(restarts=tuple(restarts), lost=tuple(lost))


def epsilon_points(session: Session, job: Job, progress: Progress) -> list[Point]:
    """Epsilon so far at each checkpoint, as the API's checkpoints tell it, and now."""
    rows, _ = page_of_checkpoints(session, job.id, after=None, limit=CHECKPOINTS_READ)
    found = {0: 0.0} | {row.step: float(row.epsilon_so_far) for row in reversed(rows)}
    if progress.step:
        found[progress.step] = max(float(progress.epsilon_so_far), found.get(progress.step, 0.0))
    if len(found) == 1:
        return []
    return [Point(step=step, value=value) for step, value in sorted(found.items())]


def with_stds(
    points: Sequence[Point], events: Sequence[JobEvent], value: str, std: str
) -> list[Point]:
    """The points with the standard error that the event of their step states."""
    stds = {}
    for event in events:
        data = json.loads(event.data)
        if value in data and std in data:
            stds[data["step"]] = float(data[std])
    return [Point(step=p.step, value=p.value, std=stds.get(p.step)) for p in points]


def newest_loss(session: Session, job_id: str) -> str | None:
    points = series(session, job_id, LOSS)[LOSS].get("")
    return f"{points[-1].value:.3f}" if points else None
