"""Opacus' per-row gradients behind the engine port: the oracle, and the fallback (E11).

Slower and hungrier than the fused engine, and blind under non-reentrant checkpointing
(D4), but written by other people. Everything after the gradient is shared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from torch import nn

from dp_core.engine import CanaryRows, PatientClipper
from dp_core.errors import AdapterReused, GradientMissing
from dp_core.lora import ClipGroup
from dp_core.mechanism import StepSettings
from dp_core.raw_sums import RawSums


class OpacusHooksEngine:
    """Keeps per-row gradients of all adapters until `close`, then clips them."""

    name = "opacus_hooks"

    def __init__(self, model: nn.Module, groups: Sequence[ClipGroup]) -> None:
        model.train()
        self._hooks = GradSampleHooks(model, batch_first=True, loss_reduction="sum", strict=False)
        self._groups = tuple(groups)
        self._clipper = PatientClipper(groups)
        self._rows_per_patient = 1

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
        self._clipper.open(settings=settings, slot_mask=slot_mask, sums=sums, canaries=canaries)

    def close(self) -> None:
        for k, group in enumerate(self._groups):
            for i, parameter in enumerate(group.parameters):
                raw = _grad_sample(group, parameter)
                raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
                rows = raw.view(-1, self._rows_per_patient, *parameter.shape)
                # The R rows of a patient are summed before the clip: one clip per patient.
                per_patient = rows.sum(dim=1)
                if self._clipper.is_swapped(k, i):
                    per_patient = per_patient.transpose(1, 2)
                self._clipper.destination(k, i).copy_(per_patient)
                parameter.grad_sample = parameter.grad = None  # type: ignore[attr-defined]
                self._clipper.taken(k, i)
        self._clipper.close()

    def detach(self) -> None:
        self._hooks.cleanup()


def _grad_sample(group: ClipGroup, parameter: nn.Parameter) -> torch.Tensor:
    raw = getattr(parameter, "grad_sample", None)
    if isinstance(raw, list):
        raise AdapterReused(f"Group {group.id} was used twice in one microbatch.")
    if not isinstance(raw, torch.Tensor):
        raise GradientMissing(
            f"Group {group.id} has no per-row gradient in a microbatch. Use the engine "
            "one_backward, or plain linear adapters without non-reentrant checkpointing."
        )
    return raw
