"""Paid hold-out loss: one noised, clipped, centred sum over patients never trained on.

The validation block is another set of patients with its own budget (privacy.md 10), so
its queries add nothing to what a training patient could lose.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import torch

from dp_core.clipping import clipped_loss_sum
from dp_core.errors import DpCoreError, InvariantViolation, RankLost, StepFailed
from dp_core.mechanism import STD_INFLATION, up32
from dp_core.noise import NoiseSource
from dp_core.plan import Performance, RunPlan, ValidationPlan
from dp_core.ports import EvaluationReport, PrivacyJournal, QueryCharge, QueryPermit
from dp_core.ranks import SINGLE, Ranks
from dp_core.records import PatientRecords
from dp_core.sampling import PoissonSampler, microbatches
from dp_core.step import raw_patient_losses
from dp_core.telemetry import ReleasedValue


class HoldOutSum:
    """The noised sum of a hold-out query; every rank takes its slots, rank 0 adds the noise."""

    def __init__(
        self,
        *,
        plan: RunPlan,
        validation: ValidationPlan,
        records: PatientRecords,
        performance: Performance,
        noise_source: NoiseSource | None = None,
        sampler: PoissonSampler | None = None,
        ranks: Ranks = SINGLE,
    ) -> None:
        if (noise_source is None or sampler is None) == (ranks.rank == 0):
            raise InvariantViolation("Rank 0 alone owns a noise source and a sampler.")
        self._plan, self._validation = plan, validation
        self._records, self._performance = records, performance
        self._noise_source, self._sampler, self._ranks = noise_source, sampler, ranks
        self._sensitivity = float(plan.telemetry.loss_cap) / 2
        self._std = up32(float(validation.noise_multiplier) * STD_INFLATION * self._sensitivity)

    def noised_sum(
        self, model: Any, *, centre: float, step: int, permit: QueryPermit | None = None
    ) -> float:
        """Sum of clipped losses around `centre`; `permit` on rank 0 alone.

        Raises:
            StepFailed: anything from the data path, without its text or cause.
        """
        try:
            raw_slots = self._ranks.deal(self._draw)
            total = torch.zeros(1, dtype=torch.float64)
            try:
                total += self._raw_sum(model, centre, raw_slots)
                if self._noise_source is not None and permit is not None:
                    total += self._noise_source.draw_query(permit, 1) * self._std
            except Exception:
                self._ranks.drop_out(total)
                raise
            self._ranks.add_up(total)
        except RankLost:
            raise StepFailed(step) from None
        except (DpCoreError, InvariantViolation):
            raise
        except Exception:
            raise StepFailed(step) from None
        return float(total)

    def _draw(self) -> np.ndarray:
        assert self._sampler is not None, "only rank 0 draws"
        size = self._performance.patients_per_microbatch * self._ranks.world_size
        return self._records.draw(
            self._sampler, rows_per_patient=self._plan.rows_per_patient_max, slots_at_once=size
        ).reveal_inside_step()

    def _raw_sum(self, model: Any, centre: float, raw_slots: np.ndarray) -> float:
        total = 0.0
        cap = 2 * self._sensitivity
        was_training = model.training
        model.eval()
        for batch in microbatches(raw_slots, self._performance.patients_per_microbatch):
            rows = self._records.batch(batch.raw_slots)
            losses = raw_patient_losses(model, rows, self._performance)
            total += float(clipped_loss_sum(losses.cpu(), cap, rows.slot_mask, centre))
        model.train(was_training)
        return total


class HoldOutQuery(HoldOutSum):
    """Asks for the model's loss on the validation block, charge first. Rank 0 alone asks."""

    def __init__(
        self,
        *,
        plan: RunPlan,
        validation: ValidationPlan,
        records: PatientRecords,
        journal: PrivacyJournal,
        noise_source: NoiseSource,
        performance: Performance,
        sampler: PoissonSampler,
        ranks: Ranks = SINGLE,
    ) -> None:
        super().__init__(
            plan=plan,
            validation=validation,
            records=records,
            performance=performance,
            noise_source=noise_source,
            sampler=sampler,
            ranks=ranks,
        )
        self._journal = journal

    def ask(
        self, model: Any, *, step: int, previous: ReleasedValue | None
    ) -> EvaluationReport | None:
        """The released loss in nats per token, or None when its queries are used up.

        The sum is centred on the loss released before: divided by the public expected
        number, the unknown number drawn then costs |change| / sqrt(expected) instead of
        several tenths of a nat. `std` covers noise and that number, not which patients
        were drawn.

        Raises:
            JournalError: the charge was not granted; nothing was drawn.
            StepFailed: anything from the data path, without its text or cause.
        """
        position = self._journal.position()
        if position.next_query >= self._validation.evaluations_max:
            return None
        permit = self._journal.charge_query(
            QueryCharge(
                plan_digest=self._plan.digest(),
                attempt=position.attempt,
                query_index=position.next_query,
                step=step,
                mechanism="clipped_loss",
                q=self._validation.sampling_probability,
                noise_multiplier=self._validation.noise_multiplier,
                sensitivity=format(Decimal(self._sensitivity), "f"),
                std=format(Decimal(self._std), "f"),
            )
        )
        centre = self._centre(previous)
        self._ranks.tell("evaluate", {"centre": centre, "step": step})
        noised = self.noised_sum(model, centre=centre, step=step, permit=permit)
        expected = self._validation.batch_size_expected
        change = noised / expected
        loss = ReleasedValue(
            value=centre + change,
            std=math.sqrt((self._std / expected) ** 2 + change**2 / expected),
        )
        return EvaluationReport(step=step, loss=loss, reference=permit.reference)

    def _centre(self, previous: ReleasedValue | None) -> float:
        """A released number, or the middle of the range before anything was released."""
        if previous is None or not math.isfinite(previous.value):
            return self._sensitivity
        return min(max(previous.value, 0.0), 2 * self._sensitivity)
