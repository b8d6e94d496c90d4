"""Clips each patient's gradient and sums, in float32 or better.

The only entry into a released sum: patients and gradient canaries alike go through the
factors and the weighted sum below (privacy.md E8), for either engine and either rule.

Shapes: n groups of one shape are handled as a stack, (n, P, d); P patients, d coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dp_core.plan import ClipFactor

CLIP_EPSILON = 1e-6  # in factor = C / (n + 1e-6), so that factor * n <= C (G11)
AUTO_S_STABILITY = 0.01  # gamma of AUTO-S (2206.07136) and of DP-PSAC (2212.00328)
# A plain float32 norm of 1e7 equal coordinates comes out 0.8 % too small on a CPU, and a
# clip with it would let 0.8 % more through than is charged. Norms of blocks of this length,
# then a cascade sum over the blocks, stay within 1e-6.
_NORM_BLOCK = 256


def _clip(clip_norms: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    return (clip_norms / (norms + CLIP_EPSILON)).clamp(max=1.0)


def _auto_s(clip_norms: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    return clip_norms / (norms + AUTO_S_STABILITY)


def _psac(clip_norms: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    return clip_norms / (norms + AUTO_S_STABILITY / (norms + AUTO_S_STABILITY))


# Each satisfies factor * n <= C for all n >= 0 (G11).
FACTORS: dict[ClipFactor, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "clip": _clip,
    "auto_s": _auto_s,
    "psac": _psac,
}


def row_norms(rows: torch.Tensor) -> torch.Tensor:
    """L2 norm over the last axis, relative error below 1e-6 for up to 1e7 coordinates."""
    size = rows.shape[-1]
    whole = size - size % _NORM_BLOCK
    if whole == 0:
        return _plain_norms(rows)
    blocks = rows[..., :whole].view(*rows.shape[:-1], -1, _NORM_BLOCK)
    squares = _plain_norms(blocks).square().sum(dim=-1)
    if whole < size:
        squares = squares + _plain_norms(rows[..., whole:]).square()
    return squares.sqrt()


def _plain_norms(rows: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return norms


def joint_norms(norms: Sequence[torch.Tensor]) -> torch.Tensor:
    """Norm of a patient's gradient over the tensors of a group."""
    return norms[0] if len(norms) == 1 else torch.stack(list(norms)).square().sum(dim=0).sqrt()


def clip_factors(
    norms: torch.Tensor, clip_norms: torch.Tensor, mask: torch.Tensor, factor: ClipFactor
) -> torch.Tensor:
    """Per-patient factors, (n, P); `clip_norms` (n, 1), `mask` (P,).

    =====================  ==============================
    patient's gradient     factor
    =====================  ==============================
    norm <= C              1 (about; rule "clip")
    norm >  C              C / norm (about, never above)
    any NaN, inf, overflow zero
    free slot              zero
    =====================  ==============================
    """
    return _usable(FACTORS[factor](clip_norms, norms), norms, mask)


def _usable(factors: torch.Tensor, norms: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Factors, zero for free slots and where a number is past what the dtype can hold.

    A factor below the smallest normal number has lost digits, and factor * norm could
    exceed the clip norm by as much: such a row counts as an overflow.
    """
    exact = torch.isfinite(norms) & (factors >= torch.finfo(factors.dtype).tiny)
    return torch.where(exact & (mask > 0), factors, 0.0)


def whitened_factors(
    norms: torch.Tensor, weights: torch.Tensor, mask: torch.Tensor, factor: ClipFactor = "clip"
) -> torch.Tensor:
    """One factor per patient over all groups, in units of each group's noise (G9): (P,).

    `norms` (K, P), `weights` (K, 1). With u_i = (g_ik / w_k)_k a patient is scaled by the
    factor of norm(u_i) at clip norm 1: min(1, 1/norm(u_i)) for the rule "clip". One patient
    moves the vector of sums by at most 1 in those units, whatever the factor; under "clip"
    a patient with every norm_k <= C_k is left alone when w_k = C_k / sqrt(share_k). A
    patient with an unusable value in any group contributes zero to all of them (F1).
    """
    joint = (norms / weights).square().sum(dim=0).sqrt()
    return _usable(FACTORS[factor](joint.new_ones(()), joint), joint, mask)


def weighted_sum(
    rows: torch.Tensor,
    factors: torch.Tensor,
    norms: torch.Tensor,
    quanta: torch.Tensor | None = None,
) -> torch.Tensor:
    """sum_p factors[n, p] * rows[n, p], (n, d). Consumes `rows`: unusable ones are zeroed.

    `norms` are those of `rows` alone, and say which rows hold a NaN or an overflow.
    `quanta` (n,): the hardened option. Every scaled row is rounded towards zero to
    multiples of its group's quantum, which never lengthens it, and summed as integers.
    """
    finite = torch.isfinite(norms)
    # A fill, not a product alone: 0 * NaN is NaN (F1). On a CPU it is left out where it
    # would change nothing, since it costs more than the sum; the sums are the same bits.
    if rows.is_cuda or not bool(finite.all()):
        rows.masked_fill_(~finite.unsqueeze(-1), 0.0)
    if quanta is not None:
        scaled = (factors.unsqueeze(-1) * rows).double() / quanta.double().view(-1, 1, 1)
        return scaled.trunc().to(torch.int64).sum(dim=1)
    if len(rows) == 1:
        return (factors[0] @ rows[0]).unsqueeze(0)
    return torch.bmm(factors.unsqueeze(1), rows).squeeze(1)


def centred_bits(norms: torch.Tensor, clip_norms: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Per patient and group +1/2 where norm <= C, -1/2 above, 0 where unusable (G13)."""
    usable = torch.isfinite(norms) & (mask > 0)
    return torch.where(usable, (norms <= clip_norms).to(norms.dtype) - 0.5, 0.0)


def centred_losses(
    raw_losses: torch.Tensor, loss_cap: float, mask: torch.Tensor, centre: float | None = None
) -> torch.Tensor:
    """clamp(loss - centre, -cap/2, cap/2) per patient, (P,); sensitivity cap/2 (G13).

    `centre` is a public or released number, cap/2 if not given. Centring is required: an
    uncentred sum has twice the sensitivity; and the closer the centre is to the mean loss,
    the less the secret number of patients drawn shows as an error of the estimate. A loss
    that is not finite, or of a free slot, contributes 0 (G15).
    """
    half = loss_cap / 2
    usable = torch.isfinite(raw_losses) & (mask > 0)
    centred = (raw_losses.float() - (half if centre is None else centre)).clamp(-half, half)
    return torch.where(usable, centred, 0.0)


@dataclass(frozen=True, kw_only=True)
class ClippedSum:
    """Un-noised sums of one group over one microbatch. Never leaves the step."""

    raw_sums: tuple[torch.Tensor, ...]  # one per tensor of the group, float32
    raw_bits: torch.Tensor  # scalar: sum of centred clip bits


def clip_and_sum(
    raw_gradients: Sequence[torch.Tensor],
    clip_norm: float,
    slot_mask: torch.Tensor,
    factor: ClipFactor = "clip",
) -> ClippedSum:
    """Scales every patient's joint gradient to norm <= C, zeroes the unusable, sums.

    `raw_gradients`: the group's tensors, each (P, *shape). `slot_mask`: (P,), 0 for free
    slots. Guarantee: one patient moves the joint sum by at most C (1 + 2^-16) and the bit
    sum by at most 1/2, whatever the values (table of `clip_factors`). The engines stack
    the same steps over many groups.
    """
    rows = [_flat_rows(g) for g in raw_gradients]  # each (1, P, d)
    each = [row_norms(r) for r in rows]
    norms = joint_norms(each)
    clips = norms.new_full((1, 1), clip_norm)
    factors = clip_factors(norms, clips, slot_mask, factor)
    sums = tuple(
        weighted_sum(r, factors, norms).view(raw.shape[1:])
        for r, raw in zip(rows, raw_gradients, strict=True)
    )
    return ClippedSum(raw_sums=sums, raw_bits=centred_bits(norms, clips, slot_mask).sum())


def _flat_rows(raw_gradient: torch.Tensor) -> torch.Tensor:
    """(P, *shape) as a copy (1, P, d) in float32 or better."""
    wide = torch.promote_types(raw_gradient.dtype, torch.float32)
    return raw_gradient.reshape(1, len(raw_gradient), -1).to(wide, copy=True)


def clipped_loss_sum(
    raw_losses: torch.Tensor,
    loss_cap: float,
    slot_mask: torch.Tensor,
    centre: float | None = None,
) -> torch.Tensor:
    """sum_i of `centred_losses`, a scalar."""
    return centred_losses(raw_losses, loss_cap, slot_mask, centre).sum()
