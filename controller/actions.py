"""Turns the policy network's rows in [-1, 1] into a proposal on the reference plan.

Every entry is a residual: row 0 means "as the reference". The ranges below are what the
policy may reach of the range that `dp_core` allows (privacy.md 2.1); `dp_core` maps any
proposal into its feasible set, so these ranges protect utility, never privacy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from controller.errors import SettingInvalid
from controller.observation import ACTION_SIZE, Rows
from dp_core.ports import GroupActions


@dataclass(frozen=True, kw_only=True)
class ActionRanges:
    """Largest residual of each part, as a fraction of what the plan allows.

    With the plan's own defaults (clip_octaves 2, share_tilt 1, rate_octaves 1) a range
    of 0.5 means: clip norm within a factor 2, share weight within e^0.5 = 1.65, a
    learning-rate factor within 2^0.5 = 1.41.
    """

    clip: float = 0.5
    share: float = 0.5
    rate: float = 0.5
    base_rate: float = 0.5
    level: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0.0 <= getattr(self, field.name) <= 1.0:
                raise SettingInvalid(field.name, "an action range lies outside [0, 1]")


# Wider rates than a policy from scratch may reach: pretraining is what makes them safe.
PRETRAINED_RANGES = ActionRanges(rate=1.0, base_rate=1.0)


def to_group_actions(rows: Rows, ranges: ActionRanges) -> GroupActions:
    """Proposal for K groups from K + 1 rows; the last row steers the whole job.

    ==============  ==================================
    entry           result
    ==============  ==================================
    0               0, the reference
    in [-1, 1]      entry times its range
    beyond, or inf  the nearer end of the range
    NaN             0
    ==============  ==================================
    """
    if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] != ACTION_SIZE:
        raise SettingInvalid("actions", f"need shape (groups + 1, {ACTION_SIZE})")
    safe = np.clip(np.nan_to_num(rows, nan=0.0, posinf=1.0, neginf=-1.0), -1.0, 1.0)
    groups, job = safe[:-1].astype(np.float64), safe[-1].astype(np.float64)
    return GroupActions(
        clip=tuple(float(v) for v in groups[:, 0] * ranges.clip),
        share=tuple(float(v) for v in groups[:, 1] * ranges.share),
        rate=tuple(float(v) for v in groups[:, 2] * ranges.rate),
        base_rate=float(job[0] * ranges.base_rate),
        level=float(job[1] * ranges.level),
    )
