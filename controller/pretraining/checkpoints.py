"""Scores an actor on one task, quickly: what a checkpoint is chosen by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from controller.actions import ActionRanges, to_group_actions
from controller.observation import ACTION_SIZE, ObservationMemory, Rows, observe
from controller.pretraining.job import SyntheticJob
from controller.pretraining.tasks import Task
from dp_core.ports import GroupActions


def reference_loss(task: Task) -> tuple[float, float]:
    """(final loss, floor) of the task under the reference plan; exact."""
    job = SyntheticJob(task)
    neutral = GroupActions.neutral(2 * task.modules)
    while not job.is_done:
        job.run_window(neutral)
    return job.true_loss, job.floor


def share_gained(
    task: Task,
    act: Callable[[Rows], Rows],
    *,
    reference: tuple[float, float],
    ranges: ActionRanges,
) -> float:
    """What part of the reference's final excess loss the actor takes away, in [-1, 1]."""
    job, groups = SyntheticJob(task), 2 * task.modules
    memory = ObservationMemory.empty(groups)
    last = np.zeros((groups + 1, ACTION_SIZE), dtype=np.float32)
    while not job.is_done:
        last = np.clip(act(observe(job.telemetry, memory, last)), -1.0, 1.0).astype(np.float32)
        memory = memory.advance(job.run_window(to_group_actions(last, ranges)))
    loss, floor = reference
    return float(np.clip((loss - job.true_loss) / (loss - floor), -1.0, 1.0))
