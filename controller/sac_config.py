"""Settings of the learner, from scratch and pretrained, and where its actor starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from stable_baselines3 import SAC

from controller.errors import SettingInvalid


@dataclass(frozen=True, kw_only=True)
class SacConfig:
    """Settings of the learner; none of them touches privacy."""

    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = 1e-4  # higher ones wander off within one job (README)
    discount: float = 0.9  # looks about ten windows ahead
    gradient_steps: int = 8  # per window
    batch_rows: int = 64
    replay_rows_max: int = 16_384
    windows_before_training: int = 2
    entropy_coefficient_first: float = 0.01
    exploration_std_first: float = 0.15
    exploration_std_last: float = 0.03
    exploration_max: float = 0.45
    last_layer_scale: float = 0.01

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (min(value) if isinstance(value, tuple) else value) > 0:
                raise SettingInvalid(field.name, "must be positive")


# A pretrained policy is good where it starts: small steps, little exploration.
PRETRAINED_CONFIG = SacConfig(
    learning_rate=1e-5, exploration_std_first=0.03, exploration_std_last=0.01, exploration_max=0.1
)


def start_near_reference(model: SAC, *, scale: float | None, std: float) -> None:
    """Shrinks the actor's mean layer by `scale`: mean near 0; None leaves it. Std near `std`."""
    actor = model.actor
    with torch.no_grad():
        if scale is not None:
            actor.mu.weight.mul_(scale)
            actor.mu.bias.fill_(0.0)
        actor.log_std.weight.mul_(0.0 if scale is None else scale)
        actor.log_std.bias.fill_(math.log(std))
