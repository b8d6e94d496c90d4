"""What a window released, gathered into the telemetry of a hyper-policy.

Every figure is a function of noised sums, settings and weights: post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dp_core.lora import ClipGroup
from dp_core.mechanism import StepSettings
from dp_core.plan_optimizer import ReleasedStep
from dp_core.telemetry import GroupTelemetry, ReleasedValue


class WindowStatistics:
    """Sums over the steps of one window, of released values only."""

    def __init__(
        self, *, groups: Sequence[ClipGroup], settings: StepSettings, batch_size_expected: int
    ) -> None:
        self._groups, self._settings = groups, settings
        self._batch = batch_size_expected
        self._total: torch.Tensor | None = None  # of the gradients, flat, on their device
        self._bits = torch.zeros(len(groups))
        self._loss = 0.0
        self._weights_before = [_flat(g) for g in groups]
        self.steps = 0

    def add(self, released: ReleasedStep) -> None:
        if self._total is None:
            self._total = torch.zeros_like(released.gradient)
        self._total += released.gradient
        self._bits += released.bit_sums
        self._loss += released.loss_sum
        self.steps += 1

    def mean_sums(self) -> list[torch.Tensor]:
        """Mean z_k over the window's steps, per group, (size_k,) on the CPU."""
        sizes = [g.size for g in self._groups]
        if self._total is None:
            return [torch.zeros(size) for size in sizes]
        return list(torch.split((self._total / self.steps).float().cpu(), sizes))

    def clip_fractions(self) -> list[float]:
        """Noised shares of patients with norm <= C_k, by the public divisor (G15)."""
        return (0.5 + self._bits / max(self.steps, 1) / self._batch).tolist()

    def loss(self) -> ReleasedValue:
        """Noised mean of the clipped training loss, in nats per token.

        `std` covers the noise and, the divisor being public, the unknown number drawn.
        """
        steps, half = max(self.steps, 1), self._settings.loss_cap / 2
        centred = self._loss / steps / self._batch
        variance = (self._settings.loss_std / self._batch) ** 2 + centred**2 / self._batch
        return ReleasedValue(value=half + centred, std=math.sqrt(variance / steps))

    def group_telemetry(
        self, *, rate_factors: Sequence[float], previous: Sequence[torch.Tensor] | None
    ) -> tuple[GroupTelemetry, ...]:
        means, fractions = self.mean_sums(), self.clip_fractions()
        steps = max(self.steps, 1)
        fraction_std = self._settings.bit_std / self._batch / math.sqrt(steps)
        layers = max(g.layer for g in self._groups) or 1
        result = []
        for k, group in enumerate(self._groups):
            std = self._settings.noise_stds[k]
            weights = _flat(group)
            result.append(
                GroupTelemetry(
                    group_id=group.id,
                    kind=group.kind,
                    depth=group.layer / layers,
                    size=group.size,
                    clip_norm=self._settings.clip_norms[k],
                    noise_std=std,
                    share=self._settings.shares[k],
                    rate_factor=rate_factors[k],
                    clip_fraction=ReleasedValue(value=fractions[k], std=fraction_std),
                    signal_norm_squared=float(means[k].square().sum())
                    - group.size * std**2 / steps,
                    update_cosine=_cosine(means[k], previous[k] if previous else None),
                    update_norm=float((weights - self._weights_before[k]).norm()),
                    weight_norm=float(weights.norm()),
                )
            )
        return tuple(result)


def initial_group_telemetry(
    groups: Sequence[ClipGroup], clip_norms: Sequence[float]
) -> tuple[GroupTelemetry, ...]:
    """What a policy sees before the first window: public facts, zeros for the rest."""
    layers = max(g.layer for g in groups) or 1
    return tuple(
        GroupTelemetry(
            group_id=g.id,
            kind=g.kind,
            depth=g.layer / layers,
            size=g.size,
            clip_norm=clip,
            noise_std=0.0,
            share=1 / len(groups),
            rate_factor=1.0,
            clip_fraction=None,
            signal_norm_squared=0.0,
            update_cosine=0.0,
            update_norm=0.0,
            weight_norm=float(_flat(g).norm()),
        )
        for g, clip in zip(groups, clip_norms, strict=True)
    )


def _flat(group: ClipGroup) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in group.parameters]).cpu()


def _cosine(a: torch.Tensor, b: torch.Tensor | None) -> float:
    if b is None:
        return 0.0
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale > 0 else 0.0
