"""Clips each patient's gradient and sums, in float32 or better.

The only entry into a released sum: patients and gradient canaries alike go through
`clip_and_sum` or, where one factor covers all groups, `clip_whitened` (privacy.md E8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dp_core.plan import ClipFactor

CLIP_EPSILON = 1e-6  # in factor = C / (n + 1e-6), so that factor * n <= C (G11)
AUTO_S_STABILITY = 0.01  # gamma of AUTO-S (2206.07136) and of DP-PSAC (2212.00328)


def _auto_s(clip_norm: float, norms: torch.Tensor) -> torch.Tensor:
    return clip_norm / (norms + AUTO_S_STABILITY)


def _psac(clip_norm: float, norms: torch.Tensor) -> torch.Tensor:
    return clip_norm / (norms + AUTO_S_STABILITY / (norms + AUTO_S_STABILITY))


def _clip(clip_norm: float, norms: torch.Tensor) -> torch.Tensor:
    return (clip_norm / (norms + CLIP_EPSILON)).clamp(max=1.0)


# Each satisfies factor * n <= C for all n >= 0 (G11).
FACTORS: dict[ClipFactor, Callable[[float, torch.Tensor], torch.Tensor]] = {
    "clip": _clip,
    "auto_s": _auto_s,
    "psac": _psac,
}


@dataclass(frozen=True, kw_only=True)
class ClippedSum:
    """Un-noised results of one group and microbatch. Secret until noise was added."""

    raw_sums: tuple[torch.Tensor, ...]  # one per tensor of the group, its shape
    raw_bits: torch.Tensor  # scalar: sum over drawn patients of (norm <= C) - 1/2


def clip_and_sum(
    raw_gradients: Sequence[torch.Tensor],
    clip_norm: float,
    slot_mask: torch.Tensor,
    factor: ClipFactor = "clip",
) -> ClippedSum:
    """Scales every patient's joint gradient to norm <= C, zeroes the unusable, sums.

    `raw_gradients`: the group's tensors, each (P, *shape). `slot_mask`: (P,), 0 for free
    slots. Consumes its input: unusable rows are zeroed in place. Guarantee: one patient
    moves the joint sum by at most C (1 + 2^-16) and the bit sum by at most 1/2, whatever
    the values.

    =====================  ==============================  ========
    patient's gradient     contribution to the sum         bit
    =====================  ==============================  ========
    norm <= C              unchanged (times 1 - 1e-6/C)    +1/2
    norm >  C              rescaled to C                   -1/2
    any NaN, inf, overflow zero                            0
    free slot              zero                            0
    =====================  ==============================  ========

    With another `factor` than "clip" the rescaling is that of the named rule; its norm,
    too, is never above C.
    """
    flat = [flat_rows(g) for g in raw_gradients]
    norms = joint_norms(flat)
    usable = torch.isfinite(norms) & (slot_mask > 0)
    factors = torch.where(usable, FACTORS[factor](clip_norm, norms), 0.0)
    return ClippedSum(
        raw_sums=_scaled_sums(flat, factors, usable, raw_gradients),
        raw_bits=_bits(norms, clip_norm, usable),
    )


def clip_whitened(
    raw_groups: Sequence[Sequence[torch.Tensor]],
    clip_norms: Sequence[float],
    weights: Sequence[float],
    slot_mask: torch.Tensor,
) -> list[ClippedSum]:
    """One factor per patient over all groups, in units of each group's noise (G9).

    With u_i = (g_ik / w_k)_k, a patient's gradient is scaled by min(1, 1/norm(u_i)).
    Guarantee: one patient moves the vector of sums by at most 1 in those units; a patient
    with every norm_k <= C_k is left alone when w_k = C_k / sqrt(share_k). A patient with
    an unusable value in any group contributes zero to all of them (F1).
    """
    flat = [[flat_rows(g) for g in group] for group in raw_groups]
    norms = torch.stack([joint_norms(group) for group in flat])  # (K, P)
    scales = norms.new_tensor(weights)[:, None]
    whitened = (norms / scales).square().sum(dim=0).sqrt()
    usable = torch.isfinite(whitened) & (slot_mask > 0)
    factors = torch.where(usable, _clip(1.0, whitened), 0.0)
    return [
        ClippedSum(
            raw_sums=_scaled_sums(group, factors, usable, raw),
            raw_bits=_bits(norm, clip_norm, usable),
        )
        for group, raw, norm, clip_norm in zip(flat, raw_groups, norms, clip_norms, strict=True)
    ]


def flat_rows(raw_gradient: torch.Tensor) -> torch.Tensor:
    """(P, *shape) as (P, d) in float32 or better."""
    flat = raw_gradient.reshape(len(raw_gradient), -1)
    return flat if flat.dtype == torch.float64 else flat.float()


def joint_norms(flat: Sequence[torch.Tensor]) -> torch.Tensor:
    """L2 norm of each patient over the tensors of a group, (P,)."""
    norms = [torch.linalg.vector_norm(g, dim=1) for g in flat]
    return norms[0] if len(norms) == 1 else torch.stack(norms).square().sum(dim=0).sqrt()


def _scaled_sums(
    flat: Sequence[torch.Tensor],
    factors: torch.Tensor,
    usable: torch.Tensor,
    raw: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    # A fill, not a product alone: 0 * NaN is NaN (F1). In place, for the memory.
    return tuple(
        (factors @ rows.masked_fill_(~usable[:, None], 0.0)).view(g.shape[1:])
        for rows, g in zip(flat, raw, strict=True)
    )


def _bits(norms: torch.Tensor, clip_norm: float, usable: torch.Tensor) -> torch.Tensor:
    centred = (norms <= clip_norm).to(norms.dtype) - 0.5
    return torch.where(usable, centred, 0.0).sum()


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
