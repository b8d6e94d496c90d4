"""Trains the shared policy on the suite with plain SAC, under a limit of CPU time.

The networks, the start near the reference and the temperature are those of
`controller.sac`, so that a job can go on with them. The entropy target falls over the run as
it does inside a job.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from controller.actions import PRETRAINED_RANGES, ActionRanges
from controller.errors import SettingInvalid
from controller.observation import ACTION_SIZE, Rows
from controller.pretraining.checkpoints import reference_loss, share_gained
from controller.pretraining.rows import JobRows
from controller.pretraining.tasks import SELECTION_STREAM, TaskRanges, draw_task
from controller.randomness import own_randomness
from controller.reward import RewardConfig
from controller.sac_config import SacConfig, start_near_reference


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """Settings of the offline learner. `windows` counts steps of the vectorised environment."""

    seed: int = 0
    windows: int = 800
    tasks: TaskRanges = field(default_factory=TaskRanges)
    ranges: ActionRanges = PRETRAINED_RANGES
    reward: RewardConfig = RewardConfig(utility_gain=5.0, credit_weight=0.01)
    hidden: tuple[int, ...] = SacConfig().hidden
    learning_rate: float = 2e-4
    discount: float = 0.97
    batch_rows: int = 256
    gradient_steps: int = 2  # per window
    replay_rows: int = 300_000
    windows_before_training: int = 100
    std_first: float = 0.3
    std_last: float = 0.1
    check_every: int = 100  # windows between checkpoints, of which the best is kept
    check_tasks: int = 16

    def __post_init__(self) -> None:
        if self.windows < 1 or self.gradient_steps < 1:
            raise SettingInvalid("windows", "needs at least one window and gradient step")


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """What came out: the model at its best checkpoint, and how the run went."""

    model: SAC
    windows: int
    checkpoints: tuple[tuple[int, float], ...]  # windows, share of the excess loss gained
    cpu_seconds: float
    mean_rewards: tuple[float, ...]  # of ten equal parts of the run


def pretrain(
    config: PretrainingConfig,
    *,
    cpu_seconds_max: float = math.inf,
    progress: Callable[[int, float], None] = lambda windows, reward: None,
) -> Pretrained:
    """Deterministic for a given number of windows on one machine; a time limit ends it early."""
    rows = JobRows(config.tasks, actions=config.ranges, reward=config.reward)
    begun = time.process_time()
    with own_randomness(config.seed, "pretraining", 0):
        model = SAC(
            "MlpPolicy",
            rows,
            learning_rate=config.learning_rate,
            buffer_size=config.replay_rows,
            batch_size=config.batch_rows,
            gamma=config.discount,
            ent_coef="auto_0.01",
            target_entropy=_entropy(config.std_first),
            train_freq=(1, "step"),
            gradient_steps=config.gradient_steps,
            learning_starts=config.windows_before_training * rows.num_envs,
            policy_kwargs={"net_arch": list(config.hidden)},
            device="cpu",
        )
        model.action_space.seed(config.seed)  # of the first, uniform windows
        model.set_logger(Logger(folder=None, output_formats=[]))
        start_near_reference(model, scale=0.01, std=config.std_first)
        watch = _Watch(config, begun=begun, limit=cpu_seconds_max, progress=progress)
        model.learn(config.windows * rows.num_envs, callback=watch)
        watch.take_best()
    return Pretrained(
        model=model,
        windows=watch.windows,
        checkpoints=tuple(watch.checkpoints),
        cpu_seconds=time.process_time() - begun,
        mean_rewards=watch.parts(),
    )


class _Watch(BaseCallback):  # type: ignore[misc]  # stable-baselines3 is untyped here
    """Counts windows, anneals the entropy target, keeps the best checkpoint, stops at the limit.

    Off-policy learning on tasks of very different size does not end where it is best. So
    checkpoints are scored on tasks kept for that, neither trained on nor used for the final
    score, and the best is what comes out.
    """

    def __init__(
        self,
        config: PretrainingConfig,
        *,
        begun: float,
        limit: float,
        progress: Callable[[int, float], None],
    ) -> None:
        super().__init__()
        self._config, self._begun, self._limit = config, begun, limit
        self._progress = progress
        self._rewards: list[float] = []
        self.checkpoints: list[tuple[int, float]] = []
        self._best: dict[str, Any] = {}
        drawn = (
            draw_task(config.tasks, stream=SELECTION_STREAM, index=i)
            for i in range(config.check_tasks)
        )
        self._tasks = [(task, reference_loss(task)) for task in drawn]

    @property
    def windows(self) -> int:
        return len(self._rewards)

    def parts(self) -> tuple[float, ...]:
        return tuple(float(p.mean()) for p in np.array_split(self._rewards, 10) if p.size)

    def _on_step(self) -> bool:
        self._rewards.append(float(np.mean(self.locals["rewards"])))
        config, used = self._config, time.process_time() - self._begun
        done = min(max(self.windows / config.windows, used / self._limit), 1.0)
        log_std = math.log(config.std_first) + done * math.log(config.std_last / config.std_first)
        self.model.target_entropy = _entropy(math.exp(log_std))
        if self.windows % config.check_every == 0:
            self._check()
        if self.windows % 200 == 0:
            self._progress(self.windows, float(np.mean(self._rewards[-200:])))
        return used < self._limit

    def _check(self) -> None:
        """Scores the mean action of the current actor and keeps it if it is the best."""

        def act(observations: Rows) -> Rows:
            mean: Rows = self.model.policy.predict(observations, deterministic=True)[0]
            return mean

        gained = [
            share_gained(task, act, reference=base, ranges=self._config.ranges)
            for task, base in self._tasks
        ]
        self.checkpoints.append((self.windows, float(np.mean(gained))))
        if self.checkpoints[-1][1] == max(score for _, score in self.checkpoints):
            self._best = {
                name: value.clone() for name, value in self.model.policy.state_dict().items()
            }

    def take_best(self) -> None:
        """Puts the best checkpoint into the model; the last state if there was none."""
        if not self.checkpoints:
            self._check()
        self.model.policy.load_state_dict(self._best)


def _entropy(std: float) -> float:
    """Of a Gaussian action of that std."""
    return ACTION_SIZE * (0.5 * math.log(2 * math.pi * math.e) + math.log(std))
