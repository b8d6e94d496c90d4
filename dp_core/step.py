"""One private step: draw patients, one backward per microbatch, clip, noise, divide, update.

Raw losses, norms, drawn ids and counts live and die in here. What leaves is a
`ReleasedStep`; an exception leaves as `StepFailed` with an index and nothing else (R3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dp_core.engine import CanaryRows, ClippingEngine, StepAudit
from dp_core.errors import DpCoreError, InvariantViolation, RankLost, StepFailed
from dp_core.lora import ClipGroup
from dp_core.mechanism import StepSettings
from dp_core.opacus_hooks import OpacusHooksEngine
from dp_core.per_sample import OneBackwardEngine
from dp_core.plan import Performance, RunPlan
from dp_core.plan_optimizer import PlanOptimizer, ReleasedStep
from dp_core.ports import ChunkPermit
from dp_core.ranks import SINGLE, Ranks
from dp_core.records import PaddedRows, PatientRecords, patient_losses
from dp_core.sampling import PoissonSampler, microbatches, padded


class PrivateStep:
    """Runs the steps of permits on one model, records and optimiser.

    The loss is the sum over patients of their own losses, so what the engine sees of a
    patient is the gradient of that patient alone (E1).
    """

    def __init__(
        self,
        *,
        model: Any,
        optimizer: PlanOptimizer,
        records: PatientRecords,
        sampler: PoissonSampler | None,
        plan: RunPlan,
        performance: Performance,
        ranks: Ranks = SINGLE,
        audit: StepAudit | None = None,
    ) -> None:
        """`audit`: its units are the last of the sampler's population, on rank 0 alone."""
        if (sampler is None) == (ranks.rank == 0):
            raise InvariantViolation("Rank 0 alone owns a sampler.")
        self._model = model
        self._optimizer = optimizer
        self._records = records
        self._sampler = sampler
        self._plan = plan
        self._performance = performance
        self._ranks = ranks
        self._audit = audit
        self._drawn_units = np.zeros(0, dtype=np.int64)  # of the audit, in this step

    def run(
        self,
        permit: ChunkPermit,
        settings: StepSettings,
        step_index: int,
        canaries: CanaryRows | None = None,
    ) -> ReleasedStep:
        """Takes one charged step and returns what it released.

        Raises:
            PermitExhausted: the permit's steps are used; nothing was drawn.
            StepFailed: anything from the data path, without its text or cause; on every
                rank when it happened on one.
        """
        try:
            released = self._run(permit, settings, canaries)
        except RankLost:
            raise StepFailed(step_index) from None
        except (DpCoreError, InvariantViolation):
            raise
        except Exception:
            raise StepFailed(step_index) from None
        if self._audit is not None:
            self._audit.take_released(step_index, settings, released.sums)
        return released

    def _run(
        self, permit: ChunkPermit, settings: StepSettings, canaries: CanaryRows | None
    ) -> ReleasedStep:
        self._optimizer.arm(permit, settings, canaries)
        raw_slots = self._ranks.deal(self._draw)
        if self._audit is not None:
            self._optimizer.join(self._audit.rows(self._drawn_units, settings))
        try:
            return self._sum_up(raw_slots)
        except Exception:
            self._optimizer.abandon()
            raise

    def _draw(self) -> np.ndarray:
        assert self._sampler is not None, "only rank 0 draws"
        size = self._performance.patients_per_microbatch * self._ranks.world_size
        each, patients = self._plan.rows_per_patient_max, self._records.raw_size
        raw_drawn = self._sampler.draw().reveal_inside_step()
        is_patient = raw_drawn < patients
        self._drawn_units = raw_drawn[~is_patient] - patients
        chosen = self._records.choose_rows(raw_drawn[is_patient], self._sampler, each)
        return padded(chosen, size)

    def _sum_up(self, raw_slots: np.ndarray) -> ReleasedStep:
        optimizer, each = self._optimizer, self._plan.rows_per_patient_max
        for batch in microbatches(raw_slots, self._performance.patients_per_microbatch):
            rows = to_device(self._records.batch(batch.raw_slots), self._performance.device)
            optimizer.open_microbatch(slot_mask=rows.slot_mask, rows_per_patient=each)
            optimizer.take_losses(summed_backward(self._model, rows, self._performance))
            optimizer.signal_skip_step(not batch.is_last)
            optimizer.step()
            optimizer.zero_grad()
        released = optimizer.released
        if released is None:
            raise InvariantViolation("The last microbatch released nothing.")
        return released


def make_engine(
    model: Any, groups: Sequence[ClipGroup], performance: Performance
) -> ClippingEngine:
    """The engine `performance` names, attached to the model."""
    model.train()
    if performance.engine == "opacus_hooks":
        return OpacusHooksEngine(model, groups)
    return OneBackwardEngine(model, groups)


def summed_backward(model: Any, rows: PaddedRows, performance: Performance) -> torch.Tensor:
    """Backward of the sum of patient losses; returns the losses, (P,). Secret."""
    with arithmetic(performance):
        logits = model(input_ids=rows.tokens).logits
    losses = patient_losses(logits, rows)
    torch.autograd.backward((losses * rows.slot_mask).sum())
    return losses.detach()


def arithmetic(performance: Performance) -> torch.autocast:
    """bf16 for the base model's products where the job runs under autocast."""
    return torch.autocast(
        performance.device.split(":")[0], dtype=torch.bfloat16, enabled=performance.autocast
    )


def to_device(rows: PaddedRows, device: str) -> PaddedRows:
    return PaddedRows(
        tokens=rows.tokens.to(device),
        targets=rows.targets.to(device),
        slot_mask=rows.slot_mask.to(device),
        row_share=rows.row_share.to(device),
    )


@torch.no_grad()
def raw_patient_losses(model: Any, rows: PaddedRows, performance: Performance) -> torch.Tensor:
    """Losses of a forward pass without gradients, (P,). Secret."""
    rows = to_device(rows, performance.device)
    with arithmetic(performance):
        logits = model(input_ids=rows.tokens).logits
    return patient_losses(logits, rows)
