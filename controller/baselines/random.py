"""Uniform random actions over the range the pretrained policy may reach.

What a policy must beat to have learned anything. The first window runs the reference, as
the policy's does. Draws are named (seed, window), so that a repeated question has the same
answer and a checkpoint holds no generator.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from controller.actions import PRETRAINED_RANGES, to_group_actions
from controller.baselines.arm import Arm
from controller.baselines.settings import unchanged
from controller.errors import PolicyStateMismatch
from controller.observation import ACTION_SIZE, GroupDescription, Rows, check_count
from controller.released import require_released
from dp_core.ports import GroupActions, HyperPolicy
from dp_core.telemetry import WindowTelemetry

STATE_FILE = "policy.json"
_STREAM = 0x72616E64  # keeps these draws apart from others named by the same seed


def rows(*, seed: int, chunk: int, groups: int) -> Rows:
    """Uniform in [-1, 1], shape (groups + 1, ACTION_SIZE)."""
    generator = np.random.default_rng([_STREAM, seed, chunk])
    return generator.uniform(-1.0, 1.0, (groups + 1, ACTION_SIZE)).astype(np.float32)


class RandomPolicy:
    """Learns nothing."""

    name = "random"

    def __init__(self, *, groups: Sequence[GroupDescription], seed: int) -> None:
        self._groups, self._seed = len(groups), seed

    def propose(self, telemetry: WindowTelemetry) -> GroupActions:
        require_released(telemetry)
        check_count(telemetry, self._groups)
        if telemetry.chunk < 0:
            return GroupActions.neutral(self._groups)
        drawn = rows(seed=self._seed, chunk=telemetry.chunk, groups=self._groups)
        return to_group_actions(drawn, PRETRAINED_RANGES)

    def learn(self, telemetry: WindowTelemetry) -> None:
        require_released(telemetry)
        check_count(telemetry, self._groups)

    def digest(self) -> str:
        return hashlib.sha256(self.state()[STATE_FILE]).hexdigest()

    def state(self) -> dict[str, bytes]:
        document = {"controller": self.name, "format_version": 1, "seed": self._seed}
        return {STATE_FILE: json.dumps(document, sort_keys=True).encode()}

    def restore(self, state: Mapping[str, bytes]) -> None:
        if dict(state) != self.state():
            raise PolicyStateMismatch("it was not written by this random policy")


def policy(*, groups: Sequence[GroupDescription], seed: int, chunks_planned: int) -> HyperPolicy:
    return RandomPolicy(groups=groups, seed=seed)


ARM = Arm(
    name="random",
    source="this package",
    summary="uniform random actions over the policy's range",
    published=False,
    default_learning_rate="0.02",
    prepare=unchanged,
    policy=policy,
)
