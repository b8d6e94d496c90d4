"""T1: before private data are opened, the job's own engine is attacked on synthetic text.

The model, adapters, clip rule, optimiser, update rule, sums and kind of noise source are
the job's; patients are random tokens, and clip norms and shares move at random from window
to window, as a policy may move them. Nothing of it is private: no charge, and every number
may be published (audit.md 2).
"""

from __future__ import annotations

import hashlib
import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dp_core.audit.canaries import MembershipScores, PartitionCanaries, layout_digest
from dp_core.audit.coins import CoinSeed, Manifest, new_manifest
from dp_core.audit.report import (
    AuditReport,
    CanaryFacts,
    Circumstances,
    Cost,
    GuessRule,
    Power,
    SelfTestFigures,
    conclude,
    ledger_facts,
)
from dp_core.audit.saved import Observations, SavedAudit, level_differences, run_selftest
from dp_core.audit.selftest import SelfTestResult
from dp_core.audit.units import IncludedCanaries
from dp_core.mechanism import GroupLayout, StepSettings, admit
from dp_core.noise import NoiseSource
from dp_core.plan import Performance, RunPlan
from dp_core.ports import ChunkPermit, GroupActions
from dp_core.records import Blocks, PatientRecords
from dp_core.replica import Replica
from dp_core.sampling import PoissonSampler
from dp_core.schedule import rate_factors

CANARIES = 1000
# The job's own q, within limits: rarer draws would show no canary in five steps, and the rows
# of more frequent ones would need many times a microbatch's memory. The report tells the rate.
CANARY_RATE_MIN, CANARY_RATE_MAX = "0.02", "0.128"
STEPS_MIN, STEPS_MAX, STEPS_SHARE = 5, 20, 20  # at most one step in 20 of the job's
WINDOW_STEPS = 2
# Short rows: length is no part of the mechanism, and most of a step's cost.
TOKENS_PER_ROW_MAX = 32
PATIENTS_MAX = 20_000

MakeReplica = Callable[..., Replica]
Tamper = Callable[[StepSettings], StepSettings]


@dataclass(frozen=True, kw_only=True, eq=False)
class Preflight:
    """A finished pre-flight: the report to keep, the scores beside it, the test's result."""

    saved: SavedAudit
    scores: bytes
    result: SelfTestResult

    @property
    def is_fault_found(self) -> bool:
        return self.saved.report.verdict == "FAIL"


def steps_of(plan: RunPlan) -> int:
    """At most a twentieth of the job's steps, but five: by then every control has tripped."""
    return min(STEPS_MAX, max(STEPS_MIN, plan.steps_planned // STEPS_SHARE))


def canary_rate(plan: RunPlan) -> str:
    """At what rate canaries are drawn: the job's, or the nearest that this audit can run."""
    q = float(plan.sampling_probability)
    if q < float(CANARY_RATE_MIN):
        return CANARY_RATE_MIN
    return plan.sampling_probability if q <= float(CANARY_RATE_MAX) else CANARY_RATE_MAX


def run_preflight(
    *,
    plan: RunPlan,
    model: Any,
    vocabulary: int,
    performance: Performance,
    noise_source: NoiseSource,
    job_id: str,
    code_commit: str | None = None,
    image_digest: str | None = None,
    make_replica: MakeReplica = Replica,
    tamper: Tamper | None = None,
    steps: int | None = None,
) -> Preflight:
    """Attacks `plan` on `model`, leaves the model as it was, and reports.

    `noise_source` must be a fresh one of the plan's kind: what it gives here is used up.
    `make_replica` and `tamper` (settings the engine gets instead of the journalled ones)
    plant the faults of positive controls, which may take other `steps` than a job's audit.
    """
    started, generator = time.monotonic(), np.random.default_rng()  # of text and actions
    weights = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    replica = make_replica(
        plan=plan,
        model=model,
        blocks=_synthetic(plan, vocabulary, performance, generator),
        noise_source=noise_source,
        performance=performance,
    )
    steps, seed = steps or steps_of(plan), CoinSeed.fresh()
    manifest = _manifest(replica.layout, steps)
    public = manifest.construction_seed
    geometry = PartitionCanaries(replica.layout, canaries=CANARIES, construction_seed=public)
    is_member = seed.coins(CANARIES)
    try:
        seen = _observe(replica, geometry, is_member, steps, noise_source, generator, tamper)
    finally:
        replica.engine.detach()
        _restore(model, weights)
    patients, scores = _patients_at_most(performance), seen.npz()
    result = run_selftest(
        geometry=geometry,
        manifest=manifest,
        is_member=is_member,
        seen=seen,
        canary_rate=canary_rate(plan),
        patients_at_most=patients,
    )
    report = _report(
        plan,
        manifest,
        canary=_canary_facts(manifest, seed, is_member),
        test=SelfTestFigures.of(result),
        differences=level_differences(seen.settings),
        cost=_cost(started),
        made=(job_id, image_digest, code_commit),
    )
    saved = SavedAudit(
        report=report,
        manifest=manifest,
        layout=replica.layout,
        settings=seen.settings,
        canary_rate=canary_rate(plan),
        patients_at_most=patients,
        scores_sha256=hashlib.sha256(scores).hexdigest(),
    )
    return Preflight(saved=saved, scores=scores, result=result)


def _manifest(layout: GroupLayout, steps: int) -> Manifest:
    return new_manifest(
        kind="gradient",
        canaries=CANARIES,
        layout_digest=layout_digest(layout),
        steps_planned=steps,
        score=MembershipScores.name,
    )


def _report(
    plan: RunPlan,
    manifest: Manifest,
    *,
    canary: CanaryFacts,
    test: SelfTestFigures,
    differences: tuple[str, ...],
    cost: Cost,
    made: tuple[str, str | None, str | None],
) -> AuditReport:
    job_id, image_digest, code_commit = made
    return conclude(
        AuditReport(
            job_id=job_id,
            image_digest=image_digest,
            code_commit=code_commit,
            tier="T1",
            ledger=ledger_facts(plan, steps_started=0, head=None),
            canary=canary,
            guess_rule=GuessRule(
                k_plus=manifest.k_plus,
                k_minus=manifest.k_minus,
                score=manifest.score,
                preregistered_at="synthetic text: before the first step, in no ledger",
            ),
            one_run=None,  # a bound over a few synthetic steps says nothing of the job's epsilon
            roc=None,
            exposure=None,
            selftest=test,
            power=Power(min_detectable_epsilon_95=None, positive_controls=()),
            circumstances=Circumstances(tiers_run=("T1",), journal_differences=differences),
            cost=cost,
        )
    )


def _observe(
    replica: Replica,
    geometry: PartitionCanaries,
    is_member: np.ndarray,
    steps: int,
    noise_source: NoiseSource,
    generator: np.random.Generator,
    tamper: Tamper | None,
) -> Observations:
    """Takes the steps and scores what they release, under the settings a journal would hold."""
    included = IncludedCanaries(geometry, is_member)
    plan, layout = replica.plan, replica.layout
    sampler = PoissonSampler(
        sampling_probability=canary_rate(plan), raw_population_size=len(included)
    )
    settings_seen: list[StepSettings] = []
    scores: list[np.ndarray] = []
    drawn = np.zeros((steps, geometry.canaries), dtype=bool)
    for permit, settings, action in _windows(plan, layout, steps, generator):
        factors = rate_factors(plan.optimizer, action)
        used = settings if tamper is None else tamper(settings)
        for _ in range(permit.steps):
            index = len(scores)
            extra = included.drawn(sampler.draw().reveal_inside_step(), settings)
            released = replica.take_step(
                permit, used, factors=factors, step_index=index, canaries=extra
            )
            sums = [z.detach().cpu().numpy() for z in released.sums]
            scores.append(geometry.scores(sums, settings).values.astype(np.float32))
            drawn[index, extra.canary_indices] = True
            settings_seen.append(settings)
        noise_source.close(permit)
    return Observations(settings=tuple(settings_seen), scores=np.stack(scores), drawn=drawn)


def _windows(
    plan: RunPlan, layout: GroupLayout, steps: int, generator: np.random.Generator
) -> Iterator[tuple[ChunkPermit, StepSettings, GroupActions]]:
    """First the reference plan itself, then actions drawn from all that a policy may do."""
    references = (float(plan.clipping.clip_norm),) * len(layout)
    first, action = 0, GroupActions.neutral(len(layout))
    for window in range(steps):  # at least one step each
        if first >= steps:
            return
        length = min(WINDOW_STEPS, steps - first)
        if plan.noise_schedule is not None:
            length = min(length, plan.noise_schedule.at(first)[1])
        settings = admit(plan, layout, references, action, first_step=first)
        permit = ChunkPermit(
            attempt=0, chunk_index=window, first_step=first, steps=length, reference="preflight"
        )
        yield permit, settings, action
        first += length
        clip, share, rate = generator.uniform(-1, 1, (3, len(layout))).tolist()
        level = float(generator.uniform(-1, 1))
        action = GroupActions(clip=tuple(clip), share=tuple(share), rate=tuple(rate), level=level)


def _synthetic(
    plan: RunPlan, vocabulary: int, performance: Performance, generator: np.random.Generator
) -> Blocks:
    """Patients of random tokens: with the job's q, half a microbatch of them a step."""
    expected = performance.patients_per_microbatch / 2
    patients = min(PATIENTS_MAX, math.ceil(expected / float(plan.sampling_probability)))
    length = min(plan.tokens_per_row, TOKENS_PER_ROW_MAX)
    rows = generator.integers(0, vocabulary, (patients, length), dtype=np.int32)
    records = PatientRecords(raw_rows=([row] for row in rows), tokens_per_row=length, pad_id=0)
    return Blocks(training=records, validation=None)


def _patients_at_most(performance: Performance) -> int:
    """Twice what a step draws on average, as the leak into scores is a mean of squares."""
    return max(1, performance.patients_per_microbatch)


def _restore(model: Any, weights: list[torch.Tensor]) -> None:
    adapted = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter, before in zip(adapted, weights, strict=True):
            parameter.copy_(before)
            parameter.grad = None


def _canary_facts(manifest: Manifest, seed: CoinSeed, is_member: np.ndarray) -> CanaryFacts:
    digest = manifest.digest()
    return CanaryFacts(
        kind="gradient",
        m=manifest.m,
        n_included=int(is_member.sum()),
        manifest_sha256=digest,
        commitment=seed.commitment(digest),
        revealed_seed=seed.reveal(),  # no real patient shared a step with these canaries
    )


def _cost(started: float) -> Cost:
    """Of the pre-flight, in whole seconds; memory is the process's peak so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
    return Cost(seconds=math.ceil(time.monotonic() - started), memory_bytes=peak)
