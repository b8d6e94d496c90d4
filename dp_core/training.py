"""The private training loop: policy, charge, steps, release, learn, checkpoint.

Order of a window (layout.md, "The way of a job", 7): the policy proposes from released
telemetry, `admit` makes the proposal valid, the journal charges durably, and only then
patients are drawn and noise is made. A window once opened stays charged.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dp_core.accounting import step_pico
from dp_core.checkpoint import Snapshot, from_files, to_files
from dp_core.engine import StepAudit
from dp_core.errors import (
    BudgetError,
    BudgetExhausted,
    GradientMissing,
    RankLost,
    StepsExhausted,
)
from dp_core.evaluation import HoldOutQuery
from dp_core.follower import window_document
from dp_core.mechanism import (
    StepSettings,
    admit,
    choose_level,
    level_position,
    next_references,
)
from dp_core.noise import NoiseSource
from dp_core.plan import Performance, RunPlan
from dp_core.ports import (
    CheckpointStore,
    ChunkCharge,
    ChunkPermit,
    GroupActions,
    HyperPolicy,
    JournalPosition,
    PrivacyJournal,
    ProgressSink,
    WindowReport,
)
from dp_core.ranks import SINGLE, Ranks
from dp_core.records import Blocks
from dp_core.replica import Replica
from dp_core.sampling import PoissonSampler
from dp_core.schedule import learning_rate, rate_factors
from dp_core.telemetry import ReleasedValue, WindowTelemetry
from dp_core.window import WindowStatistics, initial_group_telemetry

Outcome = Literal["completed", "budget_stopped", "cancelled", "paused"]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run ended. The model then holds the averaged weights that are released."""

    outcome: Outcome
    steps_finished: int
    first_validation_loss: ReleasedValue | None  # None on a resumed attempt
    last_validation_loss: ReleasedValue | None


class PrivateTraining(Replica):
    """One job's training on one model. Construct, then `run()` once.

    Guarantee: the transcript (weights after every step, telemetry, charges, stopping) is
    private as the plan states, for every policy (privacy.md P1).
    """

    def __init__(
        self,
        *,
        plan: RunPlan,
        model: Any,
        blocks: Blocks,
        make_policy: Callable[[WindowTelemetry], HyperPolicy],
        journal: PrivacyJournal,
        checkpoints: CheckpointStore,
        progress: ProgressSink,
        noise_source: NoiseSource,
        performance: Performance,
        ranks: Ranks = SINGLE,
        audit: StepAudit | None = None,
    ) -> None:
        super().__init__(
            plan=plan,
            model=model,
            blocks=blocks,
            noise_source=noise_source,
            performance=performance,
            ranks=ranks,
            audit=audit,
        )
        self.journal, self.checkpoints, self.progress = journal, checkpoints, progress
        self.noise_source = noise_source
        self.hold_out = self._hold_out(blocks, noise_source, performance)
        self.references = (float(plan.clipping.clip_norm),) * len(self.groups)
        self.chunk = -1
        self.previous_means: Sequence[torch.Tensor] | None = None
        self.unmoved: list[torch.Tensor] | None = None  # weights before the first step here
        self.telemetry = self._initial_telemetry()
        self.policy = make_policy(self.telemetry)
        self.first_validation: ReleasedValue | None = None

    def _hold_out(
        self, blocks: Blocks, noise_source: NoiseSource, performance: Performance
    ) -> HoldOutQuery | None:
        if self.plan.validation is None or blocks.validation is None:
            return None
        return HoldOutQuery(
            plan=self.plan,
            validation=self.plan.validation,
            records=blocks.validation,
            journal=self.journal,
            noise_source=noise_source,
            performance=performance,
            sampler=PoissonSampler(
                sampling_probability=self.plan.validation.sampling_probability,
                raw_population_size=blocks.validation.raw_size,
            ),
            ranks=self.ranks,
        )

    def run(self) -> TrainingResult:
        """Trains to the planned step, the budget's end or a stop request, then averages.

        A cancel ends it between two steps; the open window stays charged. A pause waits for
        the window's end and its checkpoint, so that resuming costs no step twice.

        Raises:
            JournalError: a charge was not granted; nothing uncharged was drawn.
            StepFailed: a step broke; its window stays charged and the job can resume.
            RanksDiffer, RankLost: the other processes of the job cannot go on with it.
        """
        self.agree_on_job()
        try:
            outcome = self._windows()
        except BaseException:
            self._dismiss(is_failed=True)
            raise
        self._dismiss(is_failed=False)
        self.engine.detach()
        self.averaged.swap_in()
        return TrainingResult(
            outcome=outcome,
            steps_finished=self.step,
            first_validation_loss=self.first_validation,
            last_validation_loss=self.telemetry.validation_loss,
        )

    def _check_moved(self) -> None:
        """After the first step noise alone has moved every adapter tensor (E12)."""
        if self.unmoved is None:
            return
        parameters = [p for g in self.groups for p in g.parameters]
        for parameter, before in zip(parameters, self.unmoved, strict=True):
            if torch.equal(parameter, before):
                raise GradientMissing("The first step left an adapter tensor unchanged.")
        self.unmoved = None

    def _dismiss(self, *, is_failed: bool) -> None:
        # A rank that no longer listens has ended by itself.
        with contextlib.suppress(RankLost):
            self.ranks.tell("end", {"is_failed": is_failed})

    def _windows(self) -> Outcome:
        resumed = self._restore()
        if not resumed:
            self._evaluate(is_reported=False)  # finds the range; the next one measures in it
            self.first_validation = self._evaluate()
        self.unmoved = [p.detach().clone() for g in self.groups for p in g.parameters]
        while self.step < self.plan.steps_planned:
            stop = self.progress.stop_requested()
            if stop is not None:
                return "cancelled" if stop == "cancel" else "paused"
            try:
                self._window()
            except BudgetError:
                return "budget_stopped"
        return "completed"

    def _window(self) -> None:
        action = self.policy.propose(self.telemetry)
        permit, settings = self._open(action)
        factors = rate_factors(self.plan.optimizer, action)
        self.ranks.tell("window", window_document(permit, settings, factors))
        self.agree_on_state()
        statistics = WindowStatistics(
            groups=self.groups,
            settings=settings,
            batch_size_expected=self.plan.batch_size_expected,
        )
        try:
            for offset in range(permit.steps):
                if self.progress.stop_requested() == "cancel":
                    break
                index = permit.first_step + offset
                self.ranks.tell("step", {"step_index": index})
                statistics.add(self.take_step(permit, settings, factors=factors, step_index=index))
                self._check_moved()
                self.progress.step_finished(self.step)
        finally:
            self.noise_source.close(permit)  # what it prepared for this window is dropped
        if self.audit is not None:
            self.audit.keep()
        self.journal.close_chunk(permit, statistics.steps)
        if statistics.steps == permit.steps:
            self._finish_window(permit, settings, statistics, factors)

    def _open(self, action: GroupActions) -> tuple[ChunkPermit, StepSettings]:
        """Charges the next window. Nothing of it has been drawn yet (J2)."""
        position = self.journal.position()
        started = position.steps_started
        steps = min(
            self.plan.steps_per_chunk,
            self.plan.steps_planned - self.step,
            self.plan.steps_started_max - started,
        )
        if steps <= 0:
            raise StepsExhausted("Every step the plan may ever start has been started.")
        if self.plan.noise_schedule is not None:  # a window has one level
            steps = min(steps, self.plan.noise_schedule.at(started)[1])
        action, steps = self._affordable(action, steps, position)
        settings = admit(self.plan, self.layout, self.references, action, first_step=started)
        charge = ChunkCharge(
            plan_digest=self.plan.digest(),
            attempt=position.attempt,
            chunk_index=position.next_chunk,
            first_step=started,
            steps=steps,
            q=self.plan.sampling_probability,
            noise_multiplier=settings.noise_multiplier,
            components=settings.components(),
            policy_digest=self.policy.digest(),
        )
        permit = self.journal.open_chunk(charge)
        self.progress.window_opened(permit)
        return permit, settings

    def _affordable(
        self, action: GroupActions, steps: int, position: JournalPosition
    ) -> tuple[GroupActions, int]:
        """Adaptive mode: the next cheaper level that fits, else fewer steps (A8).

        A function of charges and the action alone, hence independent of the data.
        """
        plan, alpha = self.plan, self.plan.alpha_job
        if plan.mode == "fixed_sigma" or alpha is None:
            return action, steps
        free = plan.job_limit - position.job_units
        menu = plan.noise_levels
        for index in range(menu.index(choose_level(plan, action.level)), len(menu)):
            if steps * step_pico(plan.sampling_probability, menu[index], alpha) <= free:
                return dataclasses.replace(action, level=level_position(plan, index)), steps
        fitting = free // step_pico(plan.sampling_probability, menu[-1], alpha)
        if fitting < 1:
            raise BudgetExhausted("The job's filter affords no further step at any level.")
        return dataclasses.replace(action, level=1.0), fitting

    def _finish_window(
        self,
        permit: ChunkPermit,
        settings: StepSettings,
        statistics: WindowStatistics,
        factors: Sequence[float],
    ) -> None:
        self.chunk = permit.chunk_index
        groups = statistics.group_telemetry(rate_factors=factors, previous=self.previous_means)
        self.previous_means = statistics.mean_sums()
        position = self.journal.position()
        self.telemetry = dataclasses.replace(
            self.telemetry,
            step=self.step,
            chunk=self.chunk,
            filter_used=position.job_units / self.plan.job_limit,
            noise_multiplier=float(settings.noise_multiplier),
            learning_rate=learning_rate(self.plan.optimizer, self.step, self.plan.steps_planned),
            loss=statistics.loss(),
            groups=groups,
        )
        self.references = next_references(
            self.plan.clipping,
            self.references,
            statistics.clip_fractions(),
            steps=self.plan.steps_per_chunk,
        )
        if self._evaluation_due():
            self._evaluate()
        self.policy.learn(self.telemetry)
        self.checkpoints.save(step=self.step, chunk=self.chunk, files=to_files(self._snapshot()))
        self.progress.window_finished(
            WindowReport(telemetry=self.telemetry, steps_run=statistics.steps)
        )

    def _evaluation_due(self) -> bool:
        every = self.plan.validation.every_chunks if self.plan.validation else 1
        return (self.chunk + 1) % every == 0 or self.step >= self.plan.steps_planned

    def _evaluate(self, *, is_reported: bool = True) -> ReleasedValue | None:
        """Releases the hold-out loss of the averaged weights, the ones that would ship."""
        if self.hold_out is None:
            return None
        live = self.averaged.swap_in()
        report = self.hold_out.ask(
            self.model, step=self.step, previous=self.telemetry.validation_loss
        )
        self.averaged.swap_out(live)
        if report is None:
            return None
        self.telemetry = dataclasses.replace(self.telemetry, validation_loss=report.loss)
        if is_reported:
            self.progress.evaluated(report)
        return report.loss

    def _initial_telemetry(self) -> WindowTelemetry:
        plan = self.plan
        return WindowTelemetry(
            step=0,
            steps_planned=plan.steps_planned,
            chunk=-1,
            steps_per_chunk=plan.steps_per_chunk,
            filter_used=0.0,
            sampling_probability=float(plan.sampling_probability),
            noise_multiplier=float(_first_level(plan)),
            target_epsilon=float(plan.target_epsilon),
            learning_rate=learning_rate(plan.optimizer, 0, plan.steps_planned),
            loss=None,
            validation_loss=None,
            groups=initial_group_telemetry(self.groups, self.references),
        )

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            plan_digest=self.plan.digest(),
            step=self.step,
            chunk=self.chunk,
            references=self.references,
            averaging_weight=self.averaged.weight,
            telemetry=self.telemetry,
            tensors=self._named_tensors(),
            policy=self.policy.state(),
        )

    def _restore(self) -> bool:
        """Takes up the newest checkpoint; spending comes from the journal, never from it."""
        files = self.checkpoints.load_latest()
        if files is None:
            return False
        snapshot = from_files(files, plan_digest=self.plan.digest())
        state, tensors = files["state.json"].decode(), files["tensors.safetensors"]
        self.ranks.tell("take_up", {"state": state}, tensors)
        self.take_up(snapshot)
        self.chunk = snapshot.chunk
        self.references, self.telemetry = snapshot.references, snapshot.telemetry
        self.policy.restore(snapshot.policy)
        return True


def _first_level(plan: RunPlan) -> str:
    """The noise of the first window: the schedule's, or the menu's middle."""
    if plan.noise_schedule is not None:
        return plan.noise_schedule.at(0)[0]
    return plan.noise_levels[len(plan.noise_levels) // 2]
