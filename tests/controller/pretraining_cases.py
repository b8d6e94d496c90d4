"""A policy small enough to be trained in a test."""

from __future__ import annotations

from pathlib import Path

from controller.pretraining.commands import pretrain_policy
from controller.pretraining.policy_file import PolicyFile
from controller.pretraining.tasks import TaskRanges
from controller.pretraining.train import PretrainingConfig

SMALL = PretrainingConfig(
    windows=12,
    tasks=TaskRanges.small(),
    batch_rows=16,
    windows_before_training=2,
    replay_rows=500,
    check_every=6,
    check_tasks=2,
)


def trained(directory: Path) -> PolicyFile:
    return pretrain_policy(directory, config=SMALL, evaluation_tasks_count=2)
