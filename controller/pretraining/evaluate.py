"""Scores a policy on tasks that pretraining never saw, against the reference plan.

Paired: policy and reference meet the same task, patients and noise, so that the difference
of their exact final losses is free of luck that both share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from controller.observation import GroupDescription, describe_groups
from controller.pretraining.job import SyntheticJob
from controller.pretraining.tasks import EVALUATION_STREAM, Task, TaskRanges, draw_task
from controller.reference import ReferencePolicy
from dp_core.ports import HyperPolicy

Maker = Callable[[Sequence[GroupDescription], int], HyperPolicy]  # groups, windows planned


@dataclass(frozen=True, kw_only=True)
class Score:
    """Final loss of a policy minus that of the reference, in nats; below 0 is better."""

    tasks: int
    mean: float
    standard_error: float
    median: float
    worst: float
    better_share: float
    gap_closed: float  # of the reference's excess loss, mean over tasks; 1 is all of it

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluation_tasks(ranges: TaskRanges, count: int) -> list[Task]:
    return [draw_task(ranges, stream=EVALUATION_STREAM, index=i) for i in range(count)]


def final_loss(task: Task, maker: Maker) -> tuple[float, float]:
    """(exact final loss, the task's floor) under a fresh policy."""
    job = SyntheticJob(task)
    policy = maker(describe_groups(job.telemetry), task.windows)
    while not job.is_done:
        policy.learn(job.run_window(policy.propose(job.telemetry)))
    return job.true_loss, job.floor


def reference(groups: Sequence[GroupDescription], windows: int) -> HyperPolicy:
    return ReferencePolicy(groups=groups)


def evaluate(
    maker: Maker, tasks: Sequence[Task], *, progress: Callable[[int], None] = lambda done: None
) -> Score:
    differences, closed = [], []
    for done, task in enumerate(tasks):
        found, floor = final_loss(task, maker)
        base, _ = final_loss(task, reference)
        differences.append(found - base)
        closed.append((base - found) / (base - floor))
        progress(done + 1)
    array = np.asarray(differences)
    return Score(
        tasks=len(array),
        mean=float(array.mean()),
        standard_error=float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else 0.0,
        median=float(np.median(array)),
        worst=float(array.max()),
        better_share=float((array < 0).mean()),
        gap_closed=float(np.mean(closed)),
    )
