"""Our plan with every A at half the learning rate of its B (after LoRA+, arXiv 2402.12354).

LoRA starts at B = 0, where A has no gradient: its first steps are noise alone, and under
Adam noise moves a tensor as far as signal does. LoRA+ gives B the larger rate for a reason of
its own (section 4, features learned at equal speed in wide models). The paper's ratio of 16
is far too much here: ratios 1, 2, 4 and 10 at rate .04 gave 3.12, 2.69, 2.78 and 2.99 nats on
tuning notes (README, "What was tried"). A rate is post-processing and costs no privacy. On
`flat` the rate that tuning picks lies so near divergence that the test is worse: no free gain.

A group that holds A and B together keeps the common rate.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

from controller.baselines import flat
from controller.baselines.arm import Arm
from controller.baselines.settings import unchanged
from controller.errors import PolicyStateMismatch
from controller.observation import GroupDescription, check_count
from controller.released import require_released
from dp_core.ports import GroupActions, HyperPolicy
from dp_core.telemetry import WindowTelemetry

STATE_FILE = "policy.json"
_STATE = b'{"controller":"reference_slow_a","format_version":1}'
HALF = -1.0  # 2^(rate_octaves x) with the plan's one octave


class SlowAPolicy:
    """The reference's clips and shares in each window, and a fixed factor for each A."""

    name = "reference_slow_a"

    def __init__(self, *, groups: Sequence[GroupDescription]) -> None:
        self._rates = tuple(HALF if g.kind.endswith(".A") else 0.0 for g in groups)

    def propose(self, telemetry: WindowTelemetry) -> GroupActions:
        self._check(telemetry)
        return dataclasses.replace(GroupActions.neutral(len(self._rates)), rate=self._rates)

    def learn(self, telemetry: WindowTelemetry) -> None:
        self._check(telemetry)

    def _check(self, telemetry: WindowTelemetry) -> None:
        require_released(telemetry)
        check_count(telemetry, len(self._rates))

    def digest(self) -> str:
        return hashlib.sha256(_STATE).hexdigest()

    def state(self) -> dict[str, bytes]:
        return {STATE_FILE: _STATE}

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Takes back what `state` gave.

        Raises:
            PolicyStateMismatch: another policy's state.
        """
        if dict(state) != {STATE_FILE: _STATE}:
            raise PolicyStateMismatch("it was not written by the slow-A policy of this version")


def policy(*, groups: Sequence[GroupDescription], seed: int, chunks_planned: int) -> HyperPolicy:
    return SlowAPolicy(groups=groups)


ARM = Arm(
    name="reference_slow_a",
    source="this package; the idea of arXiv 2402.12354",
    summary="our plan without learning, A at half the rate of B",
    published=False,
    default_learning_rate="0.04",
    prepare=unchanged,
    policy=policy,
)
ON_FLAT = Arm(
    name="flat_slow_a",
    source="arXiv 1607.00133 with the idea of 2402.12354",
    summary="DP-SGD with A at half the rate of B: whether the gain needs our plan",
    published=False,
    default_learning_rate="0.04",
    prepare=flat.prepare,
    policy=policy,
    is_ablation=True,
)
