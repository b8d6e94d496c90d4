"""One row of the policy as a Gymnasium environment, for offline training with plain SAC.

Each episode is a synthetic job (`simulation.py`). The agent is one of its rows: a clip
group, or the whole job (learning rate). The other rows stay at the reference. So one
environment of one row trains the network that later serves all rows, and observations,
ranges and rewards are the very functions used inside a real job.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from controller.actions import ActionRanges, to_group_actions
from controller.observation import (
    ACTION_SIZE,
    BOUND,
    OBSERVATION_SIZE,
    ObservationMemory,
    Rows,
    observe,
)
from controller.reward import RewardConfig, group_reward, window_reward
from controller.simulation import JobRanges, SimulatedJob


class WindowEnvironment(gymnasium.Env):  # type: ignore[misc]  # gymnasium is untyped here
    """A job of T windows seen by one row; an episode ends with the job's last window."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # gymnasium's own name

    def __init__(
        self,
        *,
        ranges: JobRanges | None = None,
        actions: ActionRanges | None = None,
        reward: RewardConfig | None = None,
        row: int | None = None,
    ) -> None:
        """`row` fixes the row to control, -1 the whole job; None draws one per episode."""
        self.observation_space = gymnasium.spaces.Box(
            -BOUND, BOUND, shape=(OBSERVATION_SIZE,), dtype=np.float32
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, shape=(ACTION_SIZE,), dtype=np.float32)
        self._ranges = ranges or JobRanges()
        self._actions = actions or ActionRanges()
        self._reward = reward or RewardConfig()
        self._row_fixed = row
        self._row = 0
        self._rows = np.zeros((self._ranges.groups + 1, ACTION_SIZE), dtype=np.float32)
        self._memory = ObservationMemory.empty(self._ranges.groups)
        self.job: SimulatedJob | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Rows, dict[str, Any]]:
        super().reset(seed=seed)
        generator: np.random.Generator = self.np_random
        self.job = SimulatedJob(self._ranges, generator)
        drawn = int(generator.integers(self._ranges.groups + 1))
        self._row = drawn if self._row_fixed is None else self._row_fixed
        self._rows = np.zeros_like(self._rows)
        self._memory = ObservationMemory.empty(self._ranges.groups)
        return self._observation(), {}

    def step(self, action: Rows) -> tuple[Rows, float, bool, bool, dict[str, Any]]:
        """Runs one window. `info["true_loss"]` is for evaluation only, never observed."""
        if self.job is None:
            raise gymnasium.error.ResetNeeded("Call reset() before step().")
        self._rows = np.zeros_like(self._rows)
        self._rows[self._row] = np.clip(action, -1.0, 1.0)
        telemetry = self.job.run_window(to_group_actions(self._rows, self._actions))
        before, self._memory = self._memory, self._memory.advance(telemetry)
        reward = window_reward(
            self._reward,
            utility_change=self._memory.utility_change(before),
            spend_change=0.0,
            spend_price=0.0,
        )
        if 0 <= self._row < self._ranges.groups:
            change = self._memory.signal[self._row] - before.signal[self._row]
            reward = group_reward(self._reward, shared=reward, signal_change=change)
        info = {"true_loss": self.job.true_loss}
        return self._observation(), float(reward), self.job.is_done, False, info

    def _observation(self) -> Rows:
        assert self.job is not None
        row: Rows = observe(self.job.telemetry, self._memory, self._rows)[self._row]
        return row
