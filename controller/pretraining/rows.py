"""The vectorised environment of pretraining: all rows of a few synthetic jobs at once.

Every row of a job acts, as inside a real job: K groups and the job itself share one
network and give K + 1 transitions a window. Slots have a fixed number of modules, since a
vectorised environment has a fixed number of rows; tasks follow one another in each slot.

The reward is the one of `controller.reward`, of the exact loss and centred: what the same
task, patients and noise would have gained under the reference plan in the same window is
taken off. So the sum over a job is about what the policy was worth, and luck is mostly
gone. It is counted in parts of the task's excess loss and steep over a tenth of it: with a
reward that saturates within usual gains, a policy learned to buy many small ones with one
disaster, which cost no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from controller.actions import ActionRanges, to_group_actions
from controller.observation import (
    ACTION_SIZE,
    BOUND,
    OBSERVATION_SIZE,
    ObservationMemory,
    Rows,
    observe,
)
from controller.pretraining.job import SyntheticJob
from controller.pretraining.tasks import TRAINING_STREAM, TaskRanges, draw_task, with_modules
from controller.reward import RewardConfig, group_reward, window_reward
from dp_core.ports import GroupActions


class JobSlot:
    """One job and its twin under the reference plan; the next task when both are done."""

    def __init__(self, ranges: TaskRanges, *, modules: int, first: int, stride: int) -> None:
        self._ranges, self._modules = ranges, modules
        self._index, self._stride = first, stride
        self.rows = 2 * modules + 1
        self.start()

    def start(self) -> None:
        task = draw_task(self._ranges, stream=TRAINING_STREAM, index=self._index)
        task = with_modules(task, self._modules)
        self._index += self._stride
        self.job, self._twin = SyntheticJob(task), SyntheticJob(task)
        self._memory = ObservationMemory.empty(self.rows - 1)
        self._last = np.zeros((self.rows, ACTION_SIZE), dtype=np.float32)

    def observation(self) -> Rows:
        return observe(self.job.telemetry, self._memory, self._last)

    def advance(self, rows: Rows, ranges: ActionRanges, reward: RewardConfig) -> np.ndarray:
        """Runs one window of job and twin; rewards of all rows, (K + 1,)."""
        gain, twin_gain = self.job.true_loss, self._twin.true_loss
        self._last = np.clip(rows, -1.0, 1.0).astype(np.float32)
        telemetry = self.job.run_window(to_group_actions(self._last, ranges))
        self._twin.run_window(GroupActions.neutral(self.rows - 1))
        gain, twin_gain = gain - self.job.true_loss, twin_gain - self._twin.true_loss
        before, self._memory = self._memory, self._memory.advance(telemetry)
        worth = (gain - twin_gain) / self.job.task.excess_loss
        shared = window_reward(reward, utility_change=worth, spend_change=0.0, spend_price=0.0)
        changes = [n - o for n, o in zip(self._memory.signal, before.signal, strict=True)]
        own = [group_reward(reward, shared=shared, signal_change=c) for c in changes]
        return np.array([*own, shared], dtype=np.float32)


class JobRows(VecEnv):  # type: ignore[misc]  # stable-baselines3 is untyped here
    """Rows of one job per entry of `ranges.modules`, one after the other."""

    def __init__(
        self,
        ranges: TaskRanges,
        *,
        actions: ActionRanges,
        reward: RewardConfig,
        first_task: int = 0,
    ) -> None:
        self._actions, self._reward = actions, reward
        count = len(ranges.modules)
        self._slots = [
            JobSlot(ranges, modules=modules, first=first_task + i, stride=count)
            for i, modules in enumerate(ranges.modules)
        ]
        self._rows: Rows = np.zeros((0, ACTION_SIZE), dtype=np.float32)
        super().__init__(
            sum(slot.rows for slot in self._slots),
            gymnasium.spaces.Box(-BOUND, BOUND, shape=(OBSERVATION_SIZE,), dtype=np.float32),
            gymnasium.spaces.Box(-1.0, 1.0, shape=(ACTION_SIZE,), dtype=np.float32),
        )

    def reset(self) -> Rows:
        for slot in self._slots:
            slot.start()
        return self._observations()

    def step_async(self, actions: Rows) -> None:
        self._rows = actions

    def step_wait(self) -> tuple[Rows, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        rewards, dones = [], []
        infos: list[dict[str, Any]] = []
        offset = 0
        for slot in self._slots:
            rows = self._rows[offset : offset + slot.rows]
            offset += slot.rows
            rewards.append(slot.advance(rows, self._actions, self._reward))
            dones.append(np.full(slot.rows, slot.job.is_done))
            ended: Sequence[dict[str, Any]] = [{} for _ in range(slot.rows)]
            if slot.job.is_done:
                ended = [{"terminal_observation": row} for row in slot.observation()]
                slot.start()
            infos += ended
        return self._observations(), np.concatenate(rewards), np.concatenate(dones), infos

    def _observations(self) -> Rows:
        rows: Rows = np.concatenate([slot.observation() for slot in self._slots])
        return rows

    def close(self) -> None:
        """Holds nothing open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name, None)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(f"rows of a job have no attribute {attr_name}")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        raise AttributeError(f"rows of a job have no method {method_name}")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))
