"""Clips each patient's gradient of a group and sums, in float32.

The only entry into a released sum: patients and gradient canaries alike go through
`clip_and_sum` (privacy.md E8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

CLIP_EPSILON = 1e-6  # in factor = C / (n + 1e-6), so that factor * n <= C (G11)


@dataclass(frozen=True, kw_only=True)
class ClippedSum:
    """Un-noised results of one group and microbatch. Secret until noise was added."""

    raw_sums: tuple[torch.Tensor, ...]  # one per tensor of the group, its shape
    raw_bits: torch.Tensor  # scalar: sum over drawn patients of (norm <= C) - 1/2


def clip_and_sum(
    raw_gradients: Sequence[torch.Tensor], clip_norm: float, slot_mask: torch.Tensor
) -> ClippedSum:
    """Scales every patient's joint gradient to norm <= C, zeroes the unusable, sums.

    `raw_gradients`: the group's tensors, each (P, *shape). `slot_mask`: (P,), 0 for free
    slots. Guarantee: one patient moves the joint sum by at most C (1 + 2^-16) and the bit
    sum by at most 1/2, whatever the values.

    =====================  ==============================  ========
    patient's gradient     contribution to the sum         bit
    =====================  ==============================  ========
    norm <= C              unchanged (times 1 - 1e-6/C)    +1/2
    norm >  C              rescaled to C                   -1/2
    any NaN, inf, overflow zero                            0
    free slot              zero                            0
    =====================  ==============================  ========
    """
    flat = [g.reshape(len(slot_mask), -1).float() for g in raw_gradients]
    squares = torch.stack([g.square().sum(dim=1) for g in flat]).sum(dim=0)
    norms = squares.sqrt()
    usable = torch.isfinite(norms) & (slot_mask > 0)
    factors = torch.where(usable, (clip_norm / (norms + CLIP_EPSILON)).clamp(max=1.0), 0.0)
    # `where`, not a product: 0 * NaN is NaN (F1).
    sums = tuple(
        (factors @ torch.where(usable[:, None], g, 0.0)).view(raw.shape[1:])
        for g, raw in zip(flat, raw_gradients, strict=True)
    )
    centred = (norms <= clip_norm).float() - 0.5
    return ClippedSum(raw_sums=sums, raw_bits=torch.where(usable, centred, 0.0).sum())


def clipped_loss_sum(
    raw_losses: torch.Tensor, cap: float, slot_mask: torch.Tensor, centre: float | None = None
) -> torch.Tensor:
    """Sum over drawn patients of clamp(loss - centre, -cap/2, cap/2); one patient: cap/2.

    `centre` is a public or released number, cap/2 if not given. Centring is required: an
    uncentred sum has twice the sensitivity (G13); and the closer the centre is to the mean
    loss, the less the secret number of patients drawn shows as an error of the estimate. A
    loss that is not finite contributes 0 (G15).
    """
    half = cap / 2
    usable = torch.isfinite(raw_losses) & (slot_mask > 0)
    centred = (raw_losses.float() - (half if centre is None else centre)).clamp(-half, half)
    return torch.where(usable, centred, 0.0).sum()
