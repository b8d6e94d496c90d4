"""Canaries as the trainer sees them: extra units of the sampler, extra rows of the clip.

What a canary adds to a sum is no patient's secret, but who takes part is the audit's: the
trainer gets members' vectors under numbers of their own, never the coins or the seed (AU11).
With `preflight` the only module of the audit that knows torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dp_core.audit.canaries import PartitionCanaries
from dp_core.audit.errors import AuditInvalid
from dp_core.mechanism import StepSettings


class IncludedCanaries:
    """What the trainer may know: so many extra units, each with a vector per group (AU11).

    Units are numbered in a fresh random order, apart from the manifest's. Append them to
    the patients of the one Poisson sampler (AU4): of a population of `patients + len(self)`,
    the indices from `patients` on are `unit`s of this object, shifted by `patients`.
    """

    def __init__(
        self,
        geometry: PartitionCanaries,
        is_member: np.ndarray,
        order: np.random.Generator | None = None,
    ) -> None:
        """`order`: for tests; by default a generator of its own, seeded by the system."""
        if is_member.shape != (geometry.canaries,):
            raise AuditInvalid("coins", "needs one coin per canary")
        self._geometry = geometry
        self._ids = (order or np.random.default_rng()).permutation(np.flatnonzero(is_member))

    def __len__(self) -> int:
        return len(self._ids)

    def drawn(self, units: np.ndarray, settings: StepSettings) -> StepCanaries:
        """The canaries of one step: drawn `units`, clipped under `settings`."""
        return StepCanaries(
            geometry=self._geometry, canary_indices=self._ids[units], settings=settings
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class StepCanaries:
    """Canary rows of one step, for the input of the clip-and-sum call (E8, AU15).

    `canary_indices` goes to the audit code after the step, and to nobody else.
    """

    geometry: PartitionCanaries
    canary_indices: np.ndarray  # (n,)
    settings: StepSettings

    def rows(self, group_index: int, like: torch.Tensor) -> torch.Tensor | None:
        """(n, size) float32 on the device of `like`; None if no canary was drawn."""
        if len(self.canary_indices) == 0:
            return None
        vectors = self.geometry.vectors(
            self.canary_indices, group_index, self.settings.clip_norms[group_index]
        )
        return torch.from_numpy(vectors).to(like.device)
