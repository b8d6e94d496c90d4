"""`PrivateOptimizer`: Opacus' optimiser with clip norms and stds in one object.

A subclass of Opacus' `DPOptimizer` that keeps its order of work (clip_and_accumulate,
skip?, add_noise, scale_grad, hook, update) and its knobs, but reads clip norms and noise
stds from one `StepSettings`: writing a knob replaces the whole object, so a scheduler that
moves only the clip or only the noise cannot exist here (privacy.md D1, D2, E9, E10).

`plan_optimizer.PlanOptimizer` is the one a job uses; there the knobs are read-only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import (
    _check_processed_flag,
    _generate_noise,
    _mark_as_processed,
)

from dp_core.clipping import clip_and_sum
from dp_core.errors import PlanInvalid
from dp_core.mechanism import StepSettings

ClipNorm = float | Sequence[float]


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' DPOptimizer (one clip norm) and DPPerLayerOptimizer (a list) in one class.

    Reproduces their sums and stds; Opacus' own tests and accountants run against it. It is
    not bound to a run plan: nothing is charged, and no certificate comes of it.

    Raises:
        PlanInvalid: a list of clip norms with another length than the parameters.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: ClipNorm,
        expected_batch_size: int | None,
        loss_reduction: str = "mean",
        generator: torch.Generator | None = None,
        secure_mode: bool = False,
        **kwargs: Any,
    ) -> None:
        self.original_optimizer = optimizer
        self._settings = self._made(max_grad_norm, noise_multiplier)
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction=loss_reduction,
            generator=generator,
            secure_mode=secure_mode,
            **kwargs,
        )

    def _made(self, clip_norm: ClipNorm, noise_multiplier: float) -> StepSettings:
        sizes = [p.numel() for p in self.params]
        if not isinstance(clip_norm, Sequence):
            return StepSettings.flat(float(clip_norm), noise_multiplier, coordinates=sum(sizes))
        if len(clip_norm) != len(sizes):
            raise PlanInvalid("max_grad_norm", "needs one clip norm per trainable parameter")
        return StepSettings.per_layer(list(clip_norm), noise_multiplier, sizes=sizes)

    @property
    def settings(self) -> StepSettings:
        """The only holder of clip norms and stds (G6)."""
        return self._settings

    @property
    def noise_multiplier(self) -> float:
        """Effective multiplier of the whole step (G2), as an attached accountant reads it."""
        return float(self.settings.noise_multiplier)

    @noise_multiplier.setter
    def noise_multiplier(self, value: float) -> None:
        clips = self._settings.clip_norms
        self._settings = self._made(clips if len(clips) > 1 else clips[0], value)

    @property
    def max_grad_norm(self) -> float:
        """L2 norm of all clip norms: the bound of a row's whole contribution."""
        clips = self.settings.clip_norms
        return clips[0] if len(clips) == 1 else float(torch.tensor(clips).norm())

    @max_grad_norm.setter
    def max_grad_norm(self, value: ClipNorm) -> None:
        self._settings = self._made(value, float(self._settings.noise_multiplier))

    @property
    def max_grad_norms(self) -> list[float]:
        """Clip norm per group."""
        return list(self.settings.clip_norms)

    @max_grad_norms.setter
    def max_grad_norms(self, values: Sequence[float]) -> None:
        self._settings = self._made(tuple(values), float(self._settings.noise_multiplier))

    def clip_and_accumulate(self) -> None:
        """Clips every row jointly, or per parameter, and adds to `p.summed_grad`."""
        for p in self.params:
            _check_processed_flag(p.grad_sample)
        clips = self._settings.clip_norms
        groups = [self.params] if len(clips) == 1 else [[p] for p in self.params]
        for parameters, clip in zip(groups, clips, strict=True):
            raw = [self._get_flat_grad_sample(p) for p in parameters]
            clipped = clip_and_sum(raw, clip, raw[0].new_ones(len(raw[0])))
            for parameter, total in zip(parameters, clipped.raw_sums, strict=True):
                raw_sum = total.to(parameter.dtype)
                held = parameter.summed_grad
                parameter.summed_grad = raw_sum if held is None else held + raw_sum
                _mark_as_processed(parameter.grad_sample)

    def add_noise(self) -> None:
        """Adds Gaussian noise of the settings' std to every parameter's sum."""
        stds = self._settings.noise_stds
        each = stds if len(stds) > 1 else stds * len(self.params)
        for p, std in zip(self.params, each, strict=True):
            _check_processed_flag(p.summed_grad)
            noise = _generate_noise(
                std=std,
                reference=p.summed_grad,
                generator=self.generator,
                secure_mode=self.secure_mode,
            )
            p.grad = (p.summed_grad + noise).view_as(p)
            _mark_as_processed(p.summed_grad)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Opacus' order: clip and accumulate; if not skipped, noise, scale, hook, update."""
        result: float | None = super().step(closure)
        return result
