"""Facts about one job that several pages show: its plan, progress and released series."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from service.dashboard.charts import Point
from service.jobs.models import Job, JobEvent
from service.jobs.repository import metrics_of
from service.jobs.views import job_answer

LOSS = "validation_loss_noised"


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
