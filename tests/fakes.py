"""In-memory journal, store and progress sink that keep the contracts of dp_core.ports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from dp_core.errors import JournalUnavailable, StaleAttempt, StepsExhausted
from dp_core.plan import RunPlan
from dp_core.ports import (
    ChunkCharge,
    ChunkPermit,
    EvaluationReport,
    GroupActions,
    JournalPosition,
    QueryCharge,
    QueryPermit,
    StopRequest,
    WindowReport,
)
from dp_core.telemetry import WindowTelemetry


class StatelessPolicy:
    """Proposes the reference and learns nothing; a test overrides `propose`."""

    name = "stateless_test"

    def propose(self, seen: WindowTelemetry) -> GroupActions:
        return GroupActions.neutral(len(seen.groups))

    def learn(self, seen: WindowTelemetry) -> None: ...

    def digest(self) -> str:
        return "0" * 64

    def state(self) -> dict[str, bytes]:
        return {}

    def restore(self, state: Mapping[str, bytes]) -> None: ...


class Greedy(StatelessPolicy):
    """Asks for the least noise in every window."""

    def propose(self, seen: WindowTelemetry) -> GroupActions:
        return dataclasses.replace(super().propose(seen), level=-1.0)


class MemoryJournal:
    """Keeps every charge in a list; can be told to fail, or to belong to another attempt."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.charges: list[ChunkCharge] = []
        self.queries: list[QueryCharge] = []
        self.closed: list[tuple[int, int]] = []
        self.attempt = 1
        self.is_reachable = True

    def open_chunk(self, charge: ChunkCharge) -> ChunkPermit:
        self._check(charge.attempt)
        if charge not in self.charges:
            if self.position().steps_started + charge.steps > self.plan.steps_started_max:
                raise StepsExhausted("steps_started_max is reached")
            self.charges.append(charge)
        return ChunkPermit(
            attempt=charge.attempt,
            chunk_index=charge.chunk_index,
            first_step=charge.first_step,
            steps=charge.steps,
            reference=f"memory#{charge.chunk_index}",
        )

    def close_chunk(self, permit: ChunkPermit, steps_run: int) -> None:
        self.closed.append((permit.chunk_index, steps_run))

    def charge_query(self, charge: QueryCharge) -> QueryPermit:
        self._check(charge.attempt)
        if charge not in self.queries:
            self.queries.append(charge)
        return QueryPermit(
            attempt=charge.attempt,
            query_index=charge.query_index,
            reference=f"memory-query#{charge.query_index}",
        )

    def position(self) -> JournalPosition:
        started = sum(c.steps for c in self.charges)
        return JournalPosition(
            attempt=self.attempt,
            next_chunk=len(self.charges),
            steps_started=started,
            next_query=len(self.queries),
            job_units=started,
        )

    def _check(self, attempt: int) -> None:
        if not self.is_reachable:
            raise JournalUnavailable("the journal does not answer")
        if attempt != self.attempt:
            raise StaleAttempt("another attempt owns the job")


class MemoryStore:
    """Keeps the newest checkpoint."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] | None = None
        self.saved: list[tuple[int, int]] = []

    def save(self, *, step: int, chunk: int, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.saved.append((step, chunk))

    def load_latest(self) -> Mapping[str, bytes] | None:
        return self.files


class MemoryProgress:
    """Keeps every report; `stop_after` asks for a stop once so many steps are done."""

    def __init__(self, stop_after: int | None = None, stop: StopRequest = "cancel") -> None:
        self.permits: list[ChunkPermit] = []
        self.steps: list[int] = []
        self.windows: list[WindowReport] = []
        self.evaluations: list[EvaluationReport] = []
        self.stop_after, self.stop = stop_after, stop

    def window_opened(self, permit: ChunkPermit) -> None:
        self.permits.append(permit)

    def step_finished(self, step: int) -> None:
        self.steps.append(step)

    def window_finished(self, report: WindowReport) -> None:
        self.windows.append(report)

    def evaluated(self, report: EvaluationReport) -> None:
        self.evaluations.append(report)

    def stop_requested(self) -> StopRequest | None:
        is_due = self.stop_after is not None and len(self.steps) >= self.stop_after
        return self.stop if is_due else None
