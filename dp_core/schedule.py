"""Learning-rate schedule and weight averaging: post-processing, free of charge."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from dp_core.lora import ClipGroup
from dp_core.plan import OptimizerPlan
from dp_core.ports import GroupActions


def learning_rate(plan: OptimizerPlan, step: int, steps_planned: int) -> float:
    """Warm-up, then the plan's decay to `final_rate_fraction`; step counts from 0."""
    warmup = max(1, round(float(plan.warmup_fraction) * steps_planned))
    base = float(plan.learning_rate)
    if step < warmup:
        return base * (step + 1) / warmup
    final = float(plan.final_rate_fraction)
    progress = min((step - warmup) / max(1, steps_planned - warmup), 1.0)
    left = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
    }[plan.schedule]
    return base * (final + (1 - final) * left)


def rate_factors(plan: OptimizerPlan, action: GroupActions) -> tuple[float, ...]:
    """Factor per group, 2^(rate_octaves (rate_k + base_rate)); NaN counts as 0."""
    octaves = float(plan.rate_octaves)

    def bounded(x: float) -> float:
        return 0.0 if math.isnan(x) else min(max(x, -1.0), 1.0)

    base = bounded(action.base_rate)
    return tuple(2.0 ** (octaves * (bounded(x) + base)) for x in action.rate)


def make_optimizer(groups: Sequence[ClipGroup], plan: OptimizerPlan) -> torch.optim.Adam:
    """Adam with one parameter group per clip group, so that each has its own rate."""
    return torch.optim.Adam(
        [{"params": list(g.parameters)} for g in groups],
        lr=float(plan.learning_rate),
        betas=(float(plan.beta1), float(plan.beta2)),
        eps=1e-12,  # gradients are sums over Bbar; Adam shall stay scale-free
    )


class AveragedWeights:
    """Exponential mean of the released weights; what is evaluated and shipped.

    The mean is corrected for its start, so that early averages are not drawn towards the
    initial weights.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.sums = [torch.zeros_like(p) for p in self.parameters]
        self.weight = 0.0

    @torch.no_grad()
    def update(self) -> None:
        for total, parameter in zip(self.sums, self.parameters, strict=True):
            total.mul_(self.decay).add_(parameter, alpha=1 - self.decay)
        self.weight = self.weight * self.decay + (1 - self.decay)

    def averages(self) -> list[torch.Tensor]:
        if self.weight == 0.0:
            return [p.detach().clone() for p in self.parameters]
        return [total / self.weight for total in self.sums]

    @torch.no_grad()
    def swap_in(self) -> list[torch.Tensor]:
        """Puts the averages into the model; returns the live weights for `swap_out`."""
        live = [p.detach().clone() for p in self.parameters]
        for parameter, average in zip(self.parameters, self.averages(), strict=True):
            parameter.copy_(average)
        return live

    @torch.no_grad()
    def swap_out(self, live: Sequence[torch.Tensor]) -> None:
        for parameter, value in zip(self.parameters, live, strict=True):
            parameter.copy_(value)
