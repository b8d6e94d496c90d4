"""The fused engine: clipped sums from one backward pass, nothing kept but the sum.

Autograd computes h = c g B and u = x A^T of a LoRA adapter anyway. Only the reduction over
patients is delayed: where a plain backward would form dA = h^T x over all tokens of all
rows, ours forms it per patient, measures it, scales it, adds it to the sum and drops it
(privacy.md 3). The operations are those of the plain backward; A and B are each a linear
map, so one autograd function serves both.

Gradient canaries enter at the clipper, beside the patients. `p.grad` of an adapter stays
None throughout (E2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from dp_core.engine import CanaryRows, PatientClipper
from dp_core.errors import BatchCoupledModel, InvariantViolation, UnsupportedAdapter
from dp_core.lora import ClipGroup
from dp_core.mechanism import StepSettings
from dp_core.raw_sums import RawSums


class OneBackwardEngine:
    """Clips inside the backward pass, tensor by tensor.

    Works under gradient checkpointing of both kinds, autocast, and any frozen base whose
    adapters are linear maps: it needs nothing of the base model but its backward.
    """

    name = "one_backward"

    def __init__(self, model: nn.Module, groups: Sequence[ClipGroup]) -> None:
        self._clipper = PatientClipper(groups)
        self._sites = [
            _Site(self, module, k, i)
            for k, group in enumerate(groups)
            for i, module in enumerate(_owners(model, group))
        ]
        self._rows = 0
        self._rows_per_patient = 1

    def use_clipper(self, clipper: PatientClipper) -> None:
        """Another way of clipping: for planted faults of the audit, between two steps."""
        self._clipper = clipper

    def open(
        self,
        *,
        settings: StepSettings,
        slot_mask: torch.Tensor,
        rows_per_patient: int,
        sums: RawSums,
        canaries: CanaryRows | None = None,
    ) -> None:
        self._rows_per_patient = rows_per_patient
        self._rows = len(slot_mask) * rows_per_patient
        self._clipper.open(settings=settings, slot_mask=slot_mask, sums=sums, canaries=canaries)

    def close(self) -> None:
        self._clipper.close()

    def detach(self) -> None:
        for site in self._sites:
            site.remove()

    def check_rows(self, x: torch.Tensor) -> None:
        """Row p*R+r of every adapter input must belong to patient p alone (L3)."""
        if not self._clipper.is_open:
            raise InvariantViolation("A forward pass with gradients ran outside a microbatch.")
        if x.dim() < 2 or x.shape[0] != self._rows:
            raise BatchCoupledModel(
                "An adapter's input has not one line per row of the batch. Leave modules that "
                "mix or flatten rows, such as experts, without adapters."
            )

    def take(self, group: int, tensor: int, x: torch.Tensor, grad: torch.Tensor) -> None:
        """Per-patient gradient of one linear map: grad^T x over the patient's tokens."""
        patients = self._clipper.patients
        out = self._clipper.destination(group, tensor)
        left = x.reshape(patients, -1, x.shape[-1])  # (P, R*L, d_in)
        right = grad.reshape(patients, -1, grad.shape[-1]).to(left.dtype)  # (P, R*L, d_out)
        if not self._clipper.is_swapped(group, tensor):
            left, right = right, left
        if left.dtype == out.dtype:
            torch.bmm(left.transpose(1, 2), right, out=out)
        else:
            out.copy_(torch.bmm(left.transpose(1, 2), right))
        self._clipper.taken(group, tensor)


def _owners(model: nn.Module, group: ClipGroup) -> list[nn.Linear]:
    """The linear modules of a group's tensors.

    Raises:
        UnsupportedAdapter: a tensor belongs to no bias-free linear module.
    """
    by_weight = {id(m.weight): m for m in model.modules() if isinstance(m, nn.Linear)}
    owners = [by_weight.get(id(p)) for p in group.parameters]
    found = [module for module in owners if module is not None and not _has_bias(module)]
    if len(found) != len(owners):
        raise UnsupportedAdapter(
            f"Group {group.id} is not the weight of a linear LoRA module without bias. "
            "Use plain LoRA on linear layers."
        )
    return found


def _has_bias(module: nn.Linear) -> bool:
    return getattr(module, "bias", None) is not None


class _Site:
    """Stands in for the forward of one LoRA linear module."""

    def __init__(
        self, engine: OneBackwardEngine, module: nn.Linear, group: int, tensor: int
    ) -> None:
        self.engine, self.module = engine, module
        self.group, self.tensor = group, tensor
        module.forward = self  # type: ignore[assignment]

    def remove(self) -> None:
        self.module.__dict__.pop("forward", None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.module.weight
        # Without gradients: an evaluation, or the first pass of reentrant checkpointing.
        if not torch.is_grad_enabled():
            return F.linear(x, weight)
        self.engine.check_rows(x)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        result: torch.Tensor = _PerPatientLinear.apply(x, weight, self, dtype)  # type: ignore[no-untyped-call]
        return result


class _PerPatientLinear(torch.autograd.Function):
    """y = x W^T; its backward hands the per-patient weight gradient to the engine."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, site: _Site, dtype: torch.dtype | None
    ) -> torch.Tensor:
        ctx.site, ctx.input_dtype = site, x.dtype
        computed = x if dtype is None else x.to(dtype)
        ctx.save_for_backward(computed, weight)
        return F.linear(computed, weight.to(computed.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        ctx.site.engine.take(ctx.site.group, ctx.site.tensor, x, grad)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        return (grad @ weight.to(grad.dtype)).to(ctx.input_dtype), None, None, None
