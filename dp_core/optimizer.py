"""`PrivateOptimizer`: clip per group, sum, add noise once, divide, update.

A subclass of Opacus' `DPOptimizer` that keeps its order of work (clip_and_accumulate,
skip?, add_noise, scale_grad, hook, update) and takes clip norms and stds from one
`StepSettings`. Writing Opacus' own knobs on a bound run raises `PlanViolation`: there a
scheduler that moves only clip or only noise breaks the accounting (privacy.md D1, E10).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from opacus.optimizers import DPOptimizer

from dp_core.clipping import clip_and_sum, clipped_loss_sum
from dp_core.errors import GradientMissing, InvariantViolation, PlanViolation
from dp_core.lora import ClipGroup
from dp_core.mechanism import StepSettings
from dp_core.noise import NoiseSource
from dp_core.ports import ChunkPermit


@dataclass(frozen=True, kw_only=True)
class ReleasedStep:
    """What one step releases, all of it noised and charged."""

    sums: tuple[torch.Tensor, ...]  # z_k per group, flat float32 (size_k,)
    bit_sums: torch.Tensor  # (K,) noised centred clip bits
    loss_sum: float  # noised centred clipped loss


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]
    """Optimiser over clip groups, one inner parameter group per clip group.

    `arm(permit, settings)` opens a step; Opacus' `step()` is then called once per
    microbatch, with `signal_skip_step(True)` for all but the last.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        groups: Sequence[ClipGroup],
        noise_source: NoiseSource,
        batch_size_expected: int,
    ) -> None:
        self._bound = False
        self.groups = tuple(groups)
        self._noise_source = noise_source
        self._settings: StepSettings | None = None
        self._permit: ChunkPermit | None = None
        self._rows_per_patient = 1
        self._slot_mask: torch.Tensor | None = None
        self._raw_losses: torch.Tensor | None = None
        self._raw_bits: torch.Tensor | None = None
        self._raw_loss_sum: torch.Tensor | None = None
        self.released: ReleasedStep | None = None
        super().__init__(
            optimizer,
            noise_multiplier=0.0,
            max_grad_norm=0.0,
            expected_batch_size=batch_size_expected,
            loss_reduction="mean",
        )
        self._bound = True

    @property
    def noise_multiplier(self) -> float:
        """The effective multiplier of the whole step, as an attached accountant reads it."""
        return float(self._armed().noise_multiplier)

    @noise_multiplier.setter
    def noise_multiplier(self, _value: float) -> None:
        self._refuse_write("noise_multiplier")

    @property
    def max_grad_norm(self) -> float:
        """L2 norm of all clip norms: the bound of a patient's whole contribution."""
        return float(torch.tensor(self._armed().clip_norms, dtype=torch.float64).norm())

    @max_grad_norm.setter
    def max_grad_norm(self, _value: float) -> None:
        self._refuse_write("max_grad_norm")

    @property
    def accumulated_iterations(self) -> int:
        """Microbatches are no iterations: one Poisson draw is one step."""
        return 1

    def _refuse_write(self, name: str) -> None:
        if self._bound:
            raise PlanViolation(
                f"{name} belongs to the run plan. Propose an action to the plan instead."
            )

    def _armed(self) -> StepSettings:
        if self._settings is None:
            raise InvariantViolation("A step needs settings and a permit before it runs.")
        return self._settings

    def arm(self, permit: ChunkPermit, settings: StepSettings) -> None:
        """Opens a step under a charged permit. Nothing may be left of the step before."""
        if any(summed is not None for g in self.groups for summed in _sums(g)):
            raise InvariantViolation("Sums of an unfinished step are still held.")
        self._permit, self._settings, self.released = permit, settings, None
        self._raw_bits = torch.zeros(len(self.groups))
        self._raw_loss_sum = torch.zeros(())

    def take_microbatch(
        self, *, raw_losses: torch.Tensor, slot_mask: torch.Tensor, rows_per_patient: int
    ) -> None:
        """Hands over what `clip_and_accumulate` needs beside the per-row gradients."""
        self._raw_losses, self._slot_mask = raw_losses.detach(), slot_mask
        self._rows_per_patient = rows_per_patient

    def clip_and_accumulate(self) -> None:
        """Clips every patient per group and adds to the float32 sums."""
        settings, mask = self._armed(), self._slot_mask
        if (
            mask is None
            or self._raw_losses is None
            or self._raw_bits is None
            or self._raw_loss_sum is None
        ):
            raise InvariantViolation("take_microbatch was not called.")
        for index, group in enumerate(self.groups):
            gradients = [self._per_patient(p) for p in group.parameters]
            clipped = clip_and_sum(gradients, settings.clip_norms[index], mask)
            for parameter, raw_sum in zip(group.parameters, clipped.raw_sums, strict=True):
                held = getattr(parameter, "summed_grad", None)
                _set(parameter, summed_grad=raw_sum if held is None else held + raw_sum)
                # No hook or logger may see an un-noised gradient (E2).
                _set(parameter, grad=None, grad_sample=None)
            self._raw_bits[index] += clipped.raw_bits.cpu()
        self._raw_loss_sum = (
            self._raw_loss_sum + clipped_loss_sum(self._raw_losses, settings.loss_cap, mask).cpu()
        )
        self._slot_mask = self._raw_losses = None

    def _per_patient(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Per-row gradients of one microbatch, the R rows of a patient summed: (P, *shape)."""
        raw = getattr(parameter, "grad_sample", None)
        if not isinstance(raw, torch.Tensor):
            raise GradientMissing(
                "An adapter tensor has no, or more than one, per-row gradient in a microbatch."
            )
        return raw.view(-1, self._rows_per_patient, *parameter.shape).sum(dim=1)

    def add_noise(self) -> None:
        """One flat noise vector (N1), scaled per group, then bits, then loss."""
        settings, permit = self._armed(), self._permit
        if permit is None or self._raw_bits is None or self._raw_loss_sum is None:
            raise InvariantViolation("A step needs a permit before its noise.")
        sizes = settings.layout.sizes
        unit = self._noise_source.draw(permit, sum(sizes) + len(sizes) + 1)
        *parts, bits, loss = torch.split(unit, [*sizes, len(sizes), 1])
        sums: list[torch.Tensor] = []
        for group, noise, std in zip(self.groups, parts, settings.noise_stds, strict=True):
            raw = torch.cat([s.reshape(-1) for s in _sums(group) if s is not None])
            released = raw + noise.to(raw.device) * std
            sums.append(released)
            offset = 0
            for parameter in group.parameters:
                chunk = released[offset : offset + parameter.numel()]
                parameter.grad = chunk.view_as(parameter).clone()
                offset += parameter.numel()
        self.released = ReleasedStep(
            sums=tuple(sums),
            bit_sums=self._raw_bits + bits * settings.bit_std,
            loss_sum=float(self._raw_loss_sum + loss[0] * settings.loss_std),
        )
        self._raw_bits = self._raw_loss_sum = None

    def scale_grad(self) -> None:
        """Divides by the public expected batch size, never by the number drawn (G8)."""
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad /= self.expected_batch_size

    def step(self, closure: None = None) -> None:
        """Opacus' order: clip and accumulate; if not skipped, noise, scale, hook, update."""
        if self.pre_step():
            self.original_optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears gradients; sums are kept while the step's microbatches go on."""
        for group in self.groups:
            for parameter in group.parameters:
                _set(parameter, grad=None, grad_sample=None)
                if not self._is_last_step_skipped:
                    _set(parameter, summed_grad=None)


def _sums(group: ClipGroup) -> list[torch.Tensor | None]:
    """Un-noised sums of a group's tensors, as Opacus keeps them on the parameters."""
    return [getattr(p, "summed_grad", None) for p in group.parameters]


def _set(parameter: torch.nn.Parameter, **attributes: torch.Tensor | None) -> None:
    for name, value in attributes.items():
        setattr(parameter, name, value)
