"""`PlanOptimizer`: the optimiser of a job, bound to its run plan.

`arm(permit, settings)` opens a step under a charged permit; then, per microbatch,
`open_microbatch`, forward and backward, `take_losses`, and Opacus' `step()` with
`signal_skip_step(True)` for all but the last. Noise is drawn once, after the last (N1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dp_core.clipping import centred_losses
from dp_core.engine import CanaryRows, ClippingEngine
from dp_core.errors import InvariantViolation, PlanViolation
from dp_core.lora import ClipGroup, layout_of
from dp_core.mechanism import StepSettings
from dp_core.noise import NoiseSource
from dp_core.noise_schedule import NoiseSchedule
from dp_core.optimizer import PrivateOptimizer
from dp_core.plan import SumDtype
from dp_core.ports import ChunkPermit
from dp_core.ranks import SINGLE, Ranks
from dp_core.raw_sums import RawSums


@dataclass(frozen=True, kw_only=True)
class ReleasedStep:
    """What one step releases, all of it noised and charged."""

    gradient: torch.Tensor  # z of all groups in order, flat (D,), a sum over patients
    sizes: tuple[int, ...]
    bit_sums: torch.Tensor  # (K,) noised centred clip bits
    loss_sum: float  # noised centred clipped loss

    @property
    def sums(self) -> tuple[torch.Tensor, ...]:
        """z_k per group, views of `gradient`, (size_k,)."""
        return tuple(torch.split(self.gradient, list(self.sizes)))


class PlanOptimizer(PrivateOptimizer):
    """Optimiser over clip groups, one inner parameter group per clip group.

    Guarantee: every value it hands out or applies is a noised, charged release; the
    settings of a step come from the plan's action map and from nowhere else.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        groups: Sequence[ClipGroup],
        engine: ClippingEngine,
        noise_source: NoiseSource | None,
        batch_size_expected: int,
        noise_levels: Sequence[str],
        noise_schedule: NoiseSchedule | None = None,
        sum_dtype: SumDtype = "float32",
        device: str = "cpu",
        ranks: Ranks = SINGLE,
    ) -> None:
        if (noise_source is None) == (ranks.rank == 0):
            raise InvariantViolation("Rank 0 alone owns a noise source.")
        self._bound = False
        self.groups = tuple(groups)
        self._engine, self._noise_source, self._ranks = engine, noise_source, ranks
        self._sums = RawSums(layout_of(self.groups), dtype=sum_dtype, device=device)
        self._permit: ChunkPermit | None = None
        self._was_added_up = False
        self._noise_levels, self._noise_schedule = tuple(noise_levels), noise_schedule
        self._armed_settings: StepSettings | None = None
        self._chunk: tuple[int, int] | None = None
        self._raw_losses: torch.Tensor | None = None
        self._slot_mask = torch.zeros(0)
        self._canaries: CanaryRows | None = None
        self.released: ReleasedStep | None = None
        super().__init__(
            optimizer,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            expected_batch_size=batch_size_expected,
        )
        self._bound = True

    @property
    def settings(self) -> StepSettings:
        if self._armed_settings is None:
            raise InvariantViolation("A step needs settings and a permit before it runs.")
        return self._armed_settings

    def __setattr__(self, name: str, value: object) -> None:
        if name in _OPACUS_KNOBS and self.__dict__.get("_bound", False):
            raise PlanViolation(
                f"{name} belongs to the run plan. Propose an action to the plan instead."
            )
        super().__setattr__(name, value)

    @property
    def accumulated_iterations(self) -> int:
        """Microbatches are no iterations: one Poisson draw is one step."""
        return 1

    @property
    def grad_samples(self) -> list[torch.Tensor]:
        """Per-patient gradients are never held here; a non-empty list says "go on"."""
        return [self._sums.vector[:0]]

    def arm(
        self, permit: ChunkPermit, settings: StepSettings, canaries: CanaryRows | None = None
    ) -> None:
        """Opens a step under a charged permit. Nothing may be left of the step before.

        Raises:
            PlanViolation: settings of other groups, of a level that is not on the plan's
                menu or is not the schedule's for these steps, or other settings than the
                chunk began with.
        """
        if self._permit is not None:
            raise InvariantViolation("Sums of an unfinished step are still held.")
        if settings.layout != self._sums.layout:
            raise PlanViolation("The settings are made for other clip groups.")
        if settings.noise_multiplier not in self._noise_levels:
            raise PlanViolation("The noise level is not on the plan's menu. Use plan.admit.")
        self._check_schedule(permit, settings)
        chunk = (permit.attempt, permit.chunk_index)
        if chunk == self._chunk and settings != self._armed_settings:
            raise PlanViolation("Settings change between chunks only. Open the next chunk first.")
        self._chunk = chunk
        self._permit, self._armed_settings, self._canaries = permit, settings, canaries
        self.released, self._was_added_up = None, False
        self._sums.clear(settings)

    def join(self, canaries: CanaryRows) -> None:
        """Canaries that the step's own draw chose: they enter with its first microbatch."""
        if self._permit is None or self._canaries is not None:
            raise InvariantViolation("Canaries join an armed step, once.")
        self._canaries = canaries

    def _check_schedule(self, permit: ChunkPermit, settings: StepSettings) -> None:
        if self._noise_schedule is None:
            return
        level, steps = self._noise_schedule.at(permit.first_step)
        if settings.noise_multiplier != level or permit.steps > steps:
            raise PlanViolation("The noise level is not the schedule's for this chunk's steps.")

    def open_microbatch(self, *, slot_mask: torch.Tensor, rows_per_patient: int) -> None:
        """Comes before the forward pass. Canaries enter with the step's first microbatch."""
        if self._permit is None:
            raise InvariantViolation("A microbatch needs an armed step.")
        self._engine.open(
            settings=self.settings,
            slot_mask=slot_mask,
            rows_per_patient=rows_per_patient,
            sums=self._sums,
            canaries=self._canaries,
        )
        self._slot_mask, self._canaries = slot_mask, None

    def take_losses(self, raw_losses: torch.Tensor) -> None:
        """Losses of the microbatch's slots, (P,), for the noised loss sum."""
        self._raw_losses = raw_losses.detach()

    def clip_and_accumulate(self) -> None:
        """Everything of the microbatch enters the step's sums."""
        if self._raw_losses is None:
            raise InvariantViolation("take_losses was not called.")
        self._engine.close()
        terms = centred_losses(self._raw_losses, self.settings.loss_cap, self._slot_mask)
        self._sums.add_losses(terms)
        self._raw_losses = None

    def add_noise(self) -> None:
        """One flat noise vector over groups, bits and loss (N1), against the permit.

        Rank 0 adds it to its own sums; only then are the sums of all ranks added up (W3).
        """
        permit = self._permit
        if permit is None:
            raise InvariantViolation("A step needs a permit before its noise.")
        if self._noise_source is not None:
            self._sums.add_noise(self._noise(self._noise_source, permit))
        self._was_added_up = True
        self._ranks.add_up(self._sums.vector)
        z = self._sums.in_units()
        self._permit = None
        self._sums.vector.zero_()
        count = self._sums.coordinates
        self.released = ReleasedStep(
            gradient=z[:count],
            sizes=self._sums.layout.sizes,
            bit_sums=z[count:-1].float().cpu(),
            loss_sum=float(z[-1]),
        )

    def _noise(self, source: NoiseSource, permit: ChunkPermit) -> torch.Tensor:
        length = len(self._sums.vector)
        if self._sums.is_grid:
            return source.draw_integers(permit, length)
        return source.draw(permit, length)

    def abandon(self) -> None:
        """A step broke on this rank: fails it on the others, which wait for its sums."""
        if self._permit is not None and not self._was_added_up:
            self._was_added_up = True
            self._ranks.drop_out(self._sums.vector)

    def scale_grad(self) -> None:
        """Divides by the public expected batch size, never by the number drawn (G8)."""
        if self.released is None:
            raise InvariantViolation("Nothing was released yet.")
        mean = self.released.gradient / self.expected_batch_size
        offset = 0
        for group in self.groups:
            for parameter in group.parameters:
                piece = mean[offset : offset + parameter.numel()]
                parameter.grad = piece.view_as(parameter).to(parameter.dtype)
                offset += parameter.numel()

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Opacus' order: clip and accumulate; if not skipped, noise, scale, hook, update."""
        if self.pre_step():
            self.original_optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears gradients; sums are kept while the step's microbatches go on."""
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None


_OPACUS_KNOBS = frozenset(
    {"noise_multiplier", "max_grad_norm", "max_grad_norms", "expected_batch_size"}
)
