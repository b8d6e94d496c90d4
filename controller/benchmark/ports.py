"""In-memory ends of `dp_core.ports` for a run that belongs to nobody: journal, store, progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dp_core.accounting import step_pico
from dp_core.errors import BudgetExhausted, InvariantViolation, StepsExhausted
from dp_core.mechanism import effective_noise_multiplier
from dp_core.plan import RunPlan
from dp_core.ports import (
    ChunkCharge,
    ChunkPermit,
    EvaluationReport,
    GroupActions,
    HyperPolicy,
    JournalPosition,
    QueryCharge,
    QueryPermit,
    StopRequest,
    WindowReport,
)
from dp_core.telemetry import WindowTelemetry

T = TypeVar("T")


class BenchmarkJournal:
    """Charges each window as the ledger would, and refuses what the plan does not cover.

    Guarantee: every window it permits has a noise multiplier, recomputed from the bounds and
    stds of all its noised parts, of at least the level that is charged.
    """

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        self._charges: list[ChunkCharge] = []
        self._units = 0

    def open_chunk(self, charge: ChunkCharge) -> ChunkPermit:
        if charge not in self._charges:
            self._take(charge)
        return ChunkPermit(
            attempt=charge.attempt,
            chunk_index=charge.chunk_index,
            first_step=charge.first_step,
            steps=charge.steps,
            reference=f"benchmark#{charge.chunk_index}",
        )

    def _take(self, charge: ChunkCharge) -> None:
        plan = self._plan
        sigma = effective_noise_multiplier(
            [float(c.sensitivity) for c in charge.components],
            [float(c.std) for c in charge.components],
        )
        if sigma < float(charge.noise_multiplier) or charge.q != plan.sampling_probability:
            raise InvariantViolation("A window's noise is below the level it is charged at.")
        if self.steps_charged + charge.steps > plan.steps_started_max:
            raise StepsExhausted("Every step the plan may ever start has been started.")
        units = charge.steps
        if plan.alpha_job is not None:
            units *= step_pico(charge.q, charge.noise_multiplier, plan.alpha_job)
        if self._units + units > plan.job_limit:
            raise BudgetExhausted("The job's filter affords no further step.")
        self._charges.append(charge)
        self._units += units

    @property
    def steps_charged(self) -> int:
        return sum(c.steps for c in self._charges)

    def levels(self) -> list[tuple[str, int]]:
        """Noise multiplier and steps of each window, in order."""
        return [(c.noise_multiplier, c.steps) for c in self._charges]

    def close_chunk(self, permit: ChunkPermit, steps_run: int) -> None:
        """Information only."""

    def charge_query(self, charge: QueryCharge) -> QueryPermit:
        raise InvariantViolation("A plan without a validation block asks no query.")

    def position(self) -> JournalPosition:
        return JournalPosition(
            attempt=1,
            next_chunk=len(self._charges),
            steps_started=self.steps_charged,
            next_query=0,
            job_units=self._units,
        )


class NoCheckpoints:
    """A run of seconds is run again, not resumed."""

    def save(self, *, step: int, chunk: int, files: Mapping[str, bytes]) -> None:
        """Nothing is kept."""

    def load_latest(self) -> None:
        return None


class WindowsKept:
    """Keeps each window's report; `look` is asked after each window, for a curve."""

    def __init__(self, look: Callable[[int], None] | None) -> None:
        self.windows: list[dict[str, Any]] = []
        self._look = look

    def window_opened(self, permit: ChunkPermit) -> None: ...

    def step_finished(self, step: int) -> None: ...

    def window_finished(self, report: WindowReport) -> None:
        self.windows.append(_window_document(report.telemetry))
        if self._look is not None:
            self._look(report.telemetry.step)

    def evaluated(self, report: EvaluationReport) -> None: ...

    def stop_requested(self) -> StopRequest | None:
        return None


def _window_document(seen: WindowTelemetry) -> dict[str, Any]:
    return {
        "step": seen.step,
        "noise_multiplier": seen.noise_multiplier,
        "loss": None if seen.loss is None else round(seen.loss.value, 4),
        "loss_std": None if seen.loss is None else round(seen.loss.std, 4),
        "learning_rate": seen.learning_rate,
        "groups": {
            g.group_id: [_short(g.clip_norm), _short(g.noise_std), _short(g.share), _short(rate)]
            for g in seen.groups
            for rate in (g.rate_factor,)
        },
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")


class TimedPolicy:
    """A policy and the CPU seconds it takes: proposing, learning and its digest."""

    def __init__(self, policy: HyperPolicy) -> None:
        self._policy = policy
        self.seconds = 0.0

    @property
    def name(self) -> str:
        return self._policy.name

    def propose(self, telemetry: WindowTelemetry) -> GroupActions:
        return self._timed(lambda: self._policy.propose(telemetry))

    def learn(self, telemetry: WindowTelemetry) -> None:
        self._timed(lambda: self._policy.learn(telemetry))

    def digest(self) -> str:
        return self._timed(self._policy.digest)

    def state(self) -> dict[str, bytes]:
        return self._policy.state()

    def restore(self, state: Mapping[str, bytes]) -> None:
        self._policy.restore(state)

    def _timed(self, call: Callable[[], T]) -> T:
        started = time.process_time()
        try:
            return call()
        finally:
            self.seconds += time.process_time() - started
