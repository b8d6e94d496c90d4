"""The un-noised sums of one step, in one flat vector. Secret until noise was added.

Order of the coordinates: the groups in sorted order, then one clip bit per group, then the
loss (privacy.md N1). One vector, so that noise is one draw, several devices need one
all-reduce, and nothing can be released that the vector does not hold.
"""

from __future__ import annotations

import torch

from dp_core.mechanism import GRID_QUANTA, GroupLayout, StepSettings
from dp_core.plan import SumDtype

_DTYPES: dict[SumDtype, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "integer_grid": torch.int64,
}


class RawSums:
    """Accumulates clipped sums of a step's microbatches, then turns into noised values.

    `vector`: (D + K + 1,), in the plan's dtype of sums. With `integer_grid` it holds whole
    numbers of each coordinate's quantum, std / 2^14, and is exact (G12).
    """

    def __init__(self, layout: GroupLayout, *, dtype: SumDtype, device: str) -> None:
        self.layout, self.dtype = layout, dtype
        self.coordinates, self.groups = sum(layout.sizes), len(layout)
        self.vector = torch.zeros(
            self.coordinates + self.groups + 1, dtype=_DTYPES[dtype], device=device
        )
        self._starts = [0]
        for size in layout.sizes:
            self._starts.append(self._starts[-1] + size)
        self._settings: StepSettings | None = None
        self._stds = torch.zeros(0)

    def clear(self, settings: StepSettings) -> None:
        """Starts a step under `settings`."""
        self.vector.zero_()
        if settings is not self._settings:
            self._settings, self._stds = settings, self._spread(settings)

    def _spread(self, settings: StepSettings) -> torch.Tensor:
        """Noise std of every coordinate of the vector."""
        each = [*settings.noise_stds, *(settings.bit_std,) * self.groups, settings.loss_std]
        sizes = [*self.layout.sizes, *(1,) * self.groups, 1]
        precise = torch.float32 if self.dtype == "float32" else torch.float64
        return torch.tensor(each, dtype=precise, device=self.vector.device).repeat_interleave(
            torch.tensor(sizes, device=self.vector.device)
        )

    @property
    def is_grid(self) -> bool:
        return self.dtype == "integer_grid"

    def quantum(self, std: float) -> float | None:
        """Grid of a component with noise std `std`; None without a grid. A power of two
        divides, so the quotient is exact."""
        return std / GRID_QUANTA if self.is_grid else None

    def add_group(self, index: int, offset: int, raw_sum: torch.Tensor) -> None:
        """Adds the sum (d,) of one tensor, `offset` coordinates into its group."""
        start = self._starts[index] + offset
        self.vector[start : start + len(raw_sum)] += raw_sum

    def add_bits(self, raw_bits: torch.Tensor) -> None:
        """Centred clip bits, (K, P)."""
        start = self.coordinates
        self.vector[start : start + self.groups] += self._summed(raw_bits, self._std_of_bits())

    def add_losses(self, raw_losses: torch.Tensor) -> None:
        """Centred clipped losses, (P,)."""
        assert self._settings is not None, "clear() opens a step"
        self.vector[-1:] += self._summed(raw_losses[None], self._settings.loss_std)

    def _std_of_bits(self) -> float:
        assert self._settings is not None, "clear() opens a step"
        return self._settings.bit_std

    def _summed(self, terms: torch.Tensor, std: float) -> torch.Tensor:
        quantum = self.quantum(std)
        if quantum is None:
            return terms.sum(dim=1).to(self.vector)
        return (terms.double() / quantum).trunc().to(torch.int64).sum(dim=1)

    def add_noise(self, noise: torch.Tensor) -> None:
        """Adds unit Gaussians, or whole numbers of std 2^14 with `integer_grid` (N1).

        Several ranks: one of them adds it, before the sums of all are added up (W3).
        """
        if self.is_grid:
            self.vector += noise.to(self.vector.device)
        else:
            self.vector += noise.to(self.vector) * self._stds

    def in_units(self) -> torch.Tensor:
        """A copy of the vector in real units. Released from here on."""
        if not self.is_grid:
            return self.vector.clone()
        return self.vector.double() * (self._stds / GRID_QUANTA)
