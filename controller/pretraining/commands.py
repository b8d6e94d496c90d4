"""What `rldp policy` does: pretrain, evaluate, export, show. Plain functions, no terminal."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from controller.errors import SettingInvalid
from controller.observation import GroupDescription
from controller.policy_state import pack_model
from controller.pretraining.evaluate import Score, evaluate, evaluation_tasks
from controller.pretraining.policy_file import (
    CARD_FILE,
    DEFAULT_POLICY,
    TEMPERATURE,
    TENSORS_FILE,
    PolicyFile,
    read_policy,
    write_policy,
)
from controller.pretraining.tasks import TaskRanges
from controller.pretraining.train import PretrainingConfig, pretrain
from controller.sac import SacPolicy
from dp_core.ports import HyperPolicy

LIBRARIES = ("numpy", "torch", "stable-baselines3", "gymnasium")
EVALUATION_TASKS = 60


def pretrain_policy(
    directory: Path,
    *,
    config: PretrainingConfig,
    cpu_seconds_max: float = math.inf,
    evaluation_tasks_count: int = EVALUATION_TASKS,
    progress: Callable[[int, float], None] = lambda windows, reward: None,
) -> PolicyFile:
    """Trains, writes both files, scores the result on unseen tasks and puts that on the card."""
    result = pretrain(config, cpu_seconds_max=cpu_seconds_max, progress=progress)
    packed = pack_model(result.model)
    tensors = {n: t for n, t in packed.items() if n.startswith("network/") or n == TEMPERATURE}
    card: dict[str, Any] = {
        "hidden": list(config.hidden),
        "ranges": dataclasses.asdict(config.ranges),
        "suite": {"tasks": config.tasks.to_dict(), "text": "none: synthetic regression only"},
        "training": {
            **_plain(config),
            "windows_run": result.windows,
            "cpu_seconds": round(result.cpu_seconds, 1),
            "mean_rewards": [round(r, 4) for r in result.mean_rewards],
            "checkpoints": [[windows, round(score, 4)] for windows, score in result.checkpoints],
        },
        "versions": {"python": platform.python_version(), **{n: version(n) for n in LIBRARIES}},
        "command": f"rldp policy pretrain --seed {config.seed} --windows {config.windows}",
    }
    write_policy(directory, tensors=tensors, card=card)
    score = evaluate_policy(read_policy(directory), count=evaluation_tasks_count)
    write_policy(directory, tensors=tensors, card={**card, "evaluation": score.to_dict()})
    return read_policy(directory)


def evaluate_policy(
    policy: PolicyFile, *, count: int = EVALUATION_TASKS, ranges: TaskRanges | None = None
) -> Score:
    """The frozen policy on `count` tasks outside the suite, against the reference plan."""
    if count < 1:
        raise SettingInvalid("tasks", "needs at least one")

    def maker(groups: Sequence[GroupDescription], windows: int) -> HyperPolicy:
        return SacPolicy(
            groups=groups, seed=0, chunks_planned=windows, pretrained=policy, learns=False
        )

    return evaluate(maker, evaluation_tasks(ranges or TaskRanges(), count))


def export_policy(source: Path | None, target: Path) -> str:
    """Copies a checked policy, the shipped one by default; returns its digest.

    Raises:
        PolicyStateMismatch: the source is no valid policy.
        SettingInvalid: the target holds files already.
    """
    directory = source or DEFAULT_POLICY
    policy = read_policy(directory)
    if target.exists() and any(target.iterdir()):
        raise SettingInvalid("target", "holds files already; choose an empty directory")
    target.mkdir(parents=True, exist_ok=True)
    for name in (TENSORS_FILE, CARD_FILE):
        shutil.copyfile(directory / name, target / name)
    return policy.digest


def describe_policy(source: Path | None) -> str:
    """The card of a checked policy, as it is stored."""
    policy = read_policy(source or DEFAULT_POLICY)
    return json.dumps(dict(policy.card), indent=1, sort_keys=True)


def _plain(config: PretrainingConfig) -> dict[str, Any]:
    """The settings as JSON, without those that stand elsewhere on the card."""
    document = dataclasses.asdict(config)
    for name in ("tasks", "ranges", "hidden"):
        del document[name]
    return document
