"""What dp_core needs from the layers above, as protocols and frozen values.

The journal is the truth about spending (privacy.md J1-J3): units and step counters
come from `position()`, never from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from dp_core.events import Component, canonical_digest
from dp_core.telemetry import ReleasedValue, WindowTelemetry


@dataclass(frozen=True, kw_only=True)
class GroupActions:
    """A policy's proposal for the next window. Any float is allowed, NaN included.

    All parts are residuals on the reference plan: 0 means "as the reference".
    `clip` and `share` go through `dp_core.plan.admit`; `rate` and `base_rate` are
    post-processing (learning-rate factors 2^(rate_octaves * x)). `level` is read in
    adaptive-sigma mode only.
    """

    clip: tuple[float, ...]
    share: tuple[float, ...]
    rate: tuple[float, ...]
    base_rate: float = 0.0
    level: float = 0.0

    @classmethod
    def neutral(cls, groups: int) -> GroupActions:
        """The reference plan itself."""
        zeros = (0.0,) * groups
        return cls(clip=zeros, share=zeros, rate=zeros)


class HyperPolicy(Protocol):
    """Chooses the settings of each window from released and public values only."""

    @property
    def name(self) -> str:
        """Controller type as the API names it, for example `rldp` or `reference`."""
        ...

    def propose(self, telemetry: WindowTelemetry) -> GroupActions:
        """Actions for the next window, a function of values released before it opens."""
        ...

    def learn(self, telemetry: WindowTelemetry) -> None:
        """Takes the telemetry of the window that ran under the last proposal."""
        ...

    def digest(self) -> str:
        """SHA-256 of the policy's current parameters, written into each charge."""
        ...

    def state(self) -> dict[str, bytes]:
        """Named blobs that `restore` takes back; safetensors or JSON, no pickle."""
        ...

    def restore(self, state: Mapping[str, bytes]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ChunkCharge:
    """What a window will spend, fixed before anything of it is drawn (J1).

    Holds public and released values only: equal released values on neighbouring data
    give equal bytes.
    """

    plan_digest: str
    attempt: int
    chunk_index: int
    first_step: int
    steps: int
    q: str
    noise_multiplier: str  # the level; the price is the level's
    components: tuple[Component, ...]
    policy_digest: str

    def settings_document(self) -> dict[str, object]:
        """Bounds and stds of the window, stored under its digest (ledger.md 6.2)."""
        groups = [c for c in self.components if not c.id.startswith("signal:")]
        signals = [c for c in self.components if c.id.startswith("signal:")]
        return {
            "groups": [{"bound": c.sensitivity, "id": c.id, "std": c.std} for c in groups],
            "signals": [{"bound": c.sensitivity, "id": c.id, "std": c.std} for c in signals],
        }

    def settings_digest(self) -> str:
        return canonical_digest(self.settings_document())


@dataclass(frozen=True, kw_only=True)
class QueryCharge:
    """One noised query on the validation block: the clipped hold-out loss."""

    plan_digest: str
    attempt: int
    query_index: int
    step: int  # training steps finished when it is asked
    mechanism: str  # "clipped_loss"
    q: str
    noise_multiplier: str
    sensitivity: str
    std: str


@dataclass(frozen=True, kw_only=True)
class ChunkPermit:
    """Proof of a durable charge. `NoiseSource` hands out noise against it, step by step."""

    attempt: int
    chunk_index: int
    first_step: int
    steps: int
    reference: str  # journal reference of the charge, shown beside released values


@dataclass(frozen=True, kw_only=True)
class QueryPermit:
    """Proof of a durable query charge; covers one release."""

    attempt: int
    query_index: int
    reference: str


@dataclass(frozen=True, kw_only=True)
class JournalPosition:
    """Spending so far, over all attempts."""

    attempt: int
    next_chunk: int
    steps_started: int
    next_query: int
    job_units: int  # of the job's own filter: steps in fixed mode, pico at alpha_job else


class PrivacyJournal(Protocol):
    """Durable record of every charge, in front of the noise it pays for."""

    def open_chunk(self, charge: ChunkCharge) -> ChunkPermit:
        """Commits the charge, then grants it. The same charge asked again: same permit.

        Raises:
            JournalUnavailable, JournalRefused, StaleAttempt, StepsExhausted, BudgetExhausted.
        """
        ...

    def close_chunk(self, permit: ChunkPermit, steps_run: int) -> None:
        """Information only; refunds nothing."""
        ...

    def charge_query(self, charge: QueryCharge) -> QueryPermit:
        """Commits the charge of one validation query, then grants it."""
        ...

    def position(self) -> JournalPosition: ...


class CheckpointStore(Protocol):
    """Keeps the state of a job at window borders."""

    def save(self, *, step: int, chunk: int, files: Mapping[str, bytes]) -> None:
        """Durable when it returns. Never holds generator state or anything SECRET."""
        ...

    def load_latest(self) -> Mapping[str, bytes] | None: ...


StopRequest = Literal["cancel", "pause"]


@dataclass(frozen=True, kw_only=True)
class WindowReport:
    """PUBLIC and RELEASED figures of one finished window, for events and charts."""

    telemetry: WindowTelemetry
    steps_run: int


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """A released hold-out loss."""

    step: int
    loss: ReleasedValue
    reference: str


class ProgressSink(Protocol):
    """Receives released figures; also carries a stop request into the loop."""

    def window_opened(self, permit: ChunkPermit) -> None: ...

    def step_finished(self, step: int) -> None: ...

    def window_finished(self, report: WindowReport) -> None: ...

    def evaluated(self, report: EvaluationReport) -> None: ...

    def stop_requested(self) -> StopRequest | None:
        """`cancel` ends the run between two steps, `pause` at the end of the open window."""
        ...
