"""One private step: draw patients, one backward per microbatch, clip, noise, divide, update.

Raw losses, norms, drawn ids and counts live and die in here. What leaves is a
`ReleasedStep`; an exception leaves as `StepFailed` with an index and nothing else (R3).
"""

from __future__ import annotations

from typing import Any

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks

from dp_core.errors import DpCoreError, InvariantViolation, StepFailed
from dp_core.mechanism import StepSettings
from dp_core.optimizer import PrivateOptimizer, ReleasedStep
from dp_core.plan import Performance, RunPlan
from dp_core.ports import ChunkPermit
from dp_core.records import PaddedRows, PatientRecords, patient_losses
from dp_core.sampling import PoissonSampler, microbatches


class PrivateStep:
    """Runs the steps of permits on one model, records and optimiser.

    Per-patient gradients come from Opacus' hooks on the LoRA layers; the loss is summed
    over patients, so row p of a gradient is the gradient of patient p alone (E1).
    """

    def __init__(
        self,
        *,
        model: Any,
        optimizer: PrivateOptimizer,
        records: PatientRecords,
        sampler: PoissonSampler,
        plan: RunPlan,
        performance: Performance,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._records = records
        self._sampler = sampler
        self._plan = plan
        self._performance = performance
        self._hooks = attach_hooks(model)

    def close(self) -> None:
        """Removes the hooks; the model is an ordinary one again."""
        self._hooks.cleanup()

    def run(self, permit: ChunkPermit, settings: StepSettings, step_index: int) -> ReleasedStep:
        """Takes one charged step and returns what it released.

        Raises:
            PermitExhausted: the permit's steps are used; nothing was drawn.
            StepFailed: anything from the data path, without its text or cause.
        """
        try:
            return self._run(permit, settings)
        except (DpCoreError, InvariantViolation):
            raise
        except Exception:
            raise StepFailed(step_index) from None

    def _run(self, permit: ChunkPermit, settings: StepSettings) -> ReleasedStep:
        self._optimizer.arm(permit, settings)
        raw_drawn = self._sampler.draw().reveal_inside_step()
        for batch in microbatches(raw_drawn, self._performance.patients_per_microbatch):
            rows = self._records.batch(
                batch.raw_patients,
                rows_per_patient=self._plan.rows_per_patient_max,
                sampler=self._sampler,
            )
            self._backward(rows)
            self._optimizer.signal_skip_step(not batch.is_last)
            self._optimizer.step()
            self._optimizer.zero_grad()
        released = self._optimizer.released
        if released is None:
            raise InvariantViolation("The last microbatch released nothing.")
        return released

    def _backward(self, rows: PaddedRows) -> None:
        device = self._performance.device
        rows = to_device(rows, device)
        logits = self._model(input_ids=rows.tokens).logits
        losses = patient_losses(logits, rows)
        torch.autograd.backward((losses * rows.slot_mask).sum())
        self._optimizer.take_microbatch(
            raw_losses=losses,
            slot_mask=rows.slot_mask,
            rows_per_patient=self._plan.rows_per_patient_max,
        )


def attach_hooks(model: Any) -> GradSampleHooks:
    """Opacus' per-row gradients on every trainable layer; the frozen base is untouched."""
    model.train()
    return GradSampleHooks(model, batch_first=True, loss_reduction="sum", strict=False)


def to_device(rows: PaddedRows, device: str) -> PaddedRows:
    return PaddedRows(
        tokens=rows.tokens.to(device),
        targets=rows.targets.to(device),
        slot_mask=rows.slot_mask.to(device),
        row_share=rows.row_share.to(device),
    )


@torch.no_grad()
def raw_patient_losses(model: Any, rows: PaddedRows, device: str) -> torch.Tensor:
    """Losses of a forward pass without gradients, (P,). Secret."""
    rows = to_device(rows, device)
    return patient_losses(model(input_ids=rows.tokens).logits, rows)
