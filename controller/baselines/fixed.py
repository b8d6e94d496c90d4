"""The policy of every arm that chooses nothing during a job: residual 0 in each window."""

from __future__ import annotations

from collections.abc import Sequence

from controller.observation import GroupDescription
from controller.reference import ReferencePolicy
from dp_core.ports import HyperPolicy


def fixed_policy(
    *, groups: Sequence[GroupDescription], seed: int, chunks_planned: int
) -> HyperPolicy:
    return ReferencePolicy(groups=groups)
