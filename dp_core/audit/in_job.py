"""T2: canaries among the patients of a job's own steps, and what they say at its end.

Every included canary is a unit of the job's one sampler and a row of its one clip; what the
step releases is projected on all canaries, included or not, and kept window by window. No
patient's guarantee is touched: see `dp_core.engine.StepAudit`. What is kept and reported is a
function of noised sums, public canaries and coins (AU1, AU3).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from dp_core.audit.canaries import MembershipScores, PartitionCanaries, layout_digest
from dp_core.audit.coins import CoinSeed, Manifest, new_manifest
from dp_core.audit.errors import AuditInvalid
from dp_core.audit.figures import one_run_figures, roc_figures
from dp_core.audit.power import min_detectable_epsilon
from dp_core.audit.report import (
    AuditReport,
    CanaryFacts,
    Circumstances,
    Cost,
    GuessRule,
    PositiveControl,
    Power,
    SelfTestFigures,
    conclude,
    ledger_facts,
)
from dp_core.audit.saved import (
    Claim,
    Observations,
    SavedAudit,
    level_differences,
    membership_scores,
    run_selftest,
    settings_of,
    windows_document,
)
from dp_core.audit.selftest import CANARIES_MIN
from dp_core.audit.text_figures import ALPHA_GATE, TextAudit, TextScores, text_figures
from dp_core.audit.units import IncludedCanaries, StepCanaries
from dp_core.mechanism import GroupLayout, StepSettings
from dp_core.plan import RunPlan

CANARIES = 1000
# Above either, a job has CANARIES_MIN: rows of a step that memory and time have to bear, and
# the file an auditor has to fetch. Both are functions of the plan (AU3).
CANARY_ROWS_MAX = 64
SCORES_BYTES_MAX = 64 * 2**20
_SCORE_BYTES = 2


class AuditPieces(Protocol):
    """Where a job's audit keeps what it saw, apart from checkpoints and out of sight (AU9)."""

    def save(self, name: str, content: bytes) -> None:
        """Durable when it returns."""
        ...

    def load(self) -> Mapping[str, bytes]:
        """Every piece of every attempt of the job."""
        ...


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """What only the caller knows of the job."""

    job_id: str
    steps_started: int  # over all attempts, from the ledger
    preregistered_at: str  # reference of the entry that holds the commitment
    head: str | None
    controls: tuple[PositiveControl, ...]
    is_preflight_silent: bool
    code_commit: str | None
    image_digest: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishedAudit:
    """The report to keep and the scores beside it. The seed is revealed in it."""

    saved: SavedAudit
    scores: bytes


def canaries_of(plan: RunPlan, groups: int) -> int:
    """How many canaries a job gets: a function of its plan and model alone."""
    rows = float(plan.sampling_probability) * CANARIES / 2
    size = plan.steps_started_max * groups * CANARIES * _SCORE_BYTES
    return CANARIES if rows <= CANARY_ROWS_MAX and size <= SCORES_BYTES_MAX else CANARIES_MIN


def manifest_of(plan: RunPlan, layout: GroupLayout, *, text: Manifest | None = None) -> Manifest:
    """The audit of a job, fixed before its coins and its first charge (AU10).

    `text`: the manifest of its text canaries, which then shares the gate's level (AU29).
    """
    made = new_manifest(
        kind="gradient",
        canaries=canaries_of(plan, len(layout)),
        layout_digest=layout_digest(layout),
        steps_planned=plan.steps_planned,
        score=MembershipScores.name,
    )
    if text is None:
        return made
    return dataclasses.replace(made, alpha_gate=ALPHA_GATE, companion_sha256=text.digest())


class InJobAudit:
    """`dp_core.engine.StepAudit` of one attempt; the same coins in every attempt.

    `text` tells the job's text canaries, whose patients the caller puts among the records.

    Raises:
        AuditInvalid: the manifest was made for other clip groups or other text canaries.
    """

    def __init__(
        self,
        *,
        plan: RunPlan,
        layout: GroupLayout,
        manifest: Manifest,
        seed: CoinSeed,
        pieces: AuditPieces,
        text: TextAudit | None = None,
    ) -> None:
        if manifest.layout_digest != layout_digest(layout):
            raise AuditInvalid("manifest", "made for other clip groups")
        if manifest.companion_sha256 != (None if text is None else text.manifest.digest()):
            raise AuditInvalid("manifest", "made for other text canaries")
        self._plan, self._layout, self._manifest, self._seed = plan, layout, manifest, seed
        self._pieces, self._text = pieces, text
        self._geometry = PartitionCanaries(
            layout, canaries=manifest.m, construction_seed=manifest.construction_seed
        )
        self._is_member = seed.coins(manifest.m)
        self._included = IncludedCanaries(self._geometry, self._is_member)
        self._asked: StepCanaries | None = None
        self._first = 0
        self._window: list[tuple[StepSettings, np.ndarray, np.ndarray]] = []
        self.seconds = 0.0  # of scoring and keeping, in this attempt

    @property
    def units(self) -> int:
        return len(self._included)

    @property
    def text_members(self) -> np.ndarray:
        """(m,) which text canaries are patients of the job; for audit code alone (AU11)."""
        assert self._text is not None
        return self._seed.coins(self._text.manifest.m, kind="text")

    def rows(self, units: np.ndarray, settings: StepSettings) -> StepCanaries:
        self._asked = self._included.drawn(units, settings)
        return self._asked

    def take_released(
        self, step_index: int, settings: StepSettings, sums: Sequence[torch.Tensor]
    ) -> None:
        started = time.perf_counter()
        asked, self._asked = self._asked, None
        assert asked is not None, "rows() comes before the step's release"
        flat = [z.detach().cpu().numpy() for z in sums]
        with np.errstate(over="ignore"):  # infinity is an alarm
            values = self._geometry.scores(flat, settings).values.astype(np.float16)
        drawn = np.zeros(self._manifest.m, dtype=bool)
        drawn[asked.canary_indices] = True
        if not self._window:
            self._first = step_index
        self._window.append((settings, values, drawn))
        self.seconds += time.perf_counter() - started

    def keep(self) -> None:
        """Stores the window under its first started step; redone steps are other steps."""
        if not self._window:
            return
        started = time.perf_counter()
        settings, scores, drawn = zip(*self._window, strict=True)
        seen = Observations(settings=settings, scores=np.stack(scores), drawn=np.stack(drawn))
        self._window = []
        self._pieces.save(f"window-{self._first:09d}", _packed(seen))
        self.seconds += time.perf_counter() - started

    def finish(self, facts: JobFacts, text_scores: TextScores | None = None) -> FinishedAudit:
        """Every test and bound over all kept windows, and the seed. After the last step.

        `text_scores`: of the text canaries, under the adapter that is released.
        """
        assert (text_scores is None) == (self._text is None)
        started = time.monotonic()
        seen = self._seen()
        rate, patients = self._plan.sampling_probability, self._patients_at_most()
        result = run_selftest(
            geometry=self._geometry,
            manifest=self._manifest,
            is_member=self._is_member,
            seen=seen,
            canary_rate=rate,
            patients_at_most=patients,
        )
        claim = claim_of(self._plan)
        values = membership_scores(self._geometry, seen, rate)
        seconds = math.ceil(self.seconds + time.monotonic() - started)
        report = self._report(facts, SelfTestFigures.of(result), values, claim, seen, seconds)
        if self._text is not None and text_scores is not None:
            figures, exposure = text_figures(
                self._text.manifest,
                text_scores,
                self.text_members,
                claim.curve(),
                self._plan.delta,
            )
            report = dataclasses.replace(report, text=figures, exposure=exposure)
        report, scores = conclude(report), seen.npz(text_scores)
        saved = SavedAudit(
            report=report,
            manifest=self._manifest,
            layout=self._layout,
            settings=seen.settings,
            canary_rate=rate,
            patients_at_most=patients,
            scores_sha256=hashlib.sha256(scores).hexdigest(),
            claim=claim,
            text=self._text,
        )
        return FinishedAudit(saved=saved, scores=scores)

    def _patients_at_most(self) -> int:
        """Bounds the root mean square of a Poisson draw's size: B^2 + B < (B + 1)^2 (AU18)."""
        text = 0 if self._text is None else self._text.manifest.m
        return (
            self._plan.batch_size_expected
            + 1
            + math.ceil(text * float(self._plan.sampling_probability))
        )

    def _seen(self) -> Observations:
        pieces = self._pieces.load()
        windows = [_unpacked(pieces[name], self._layout) for name in sorted(pieces)]
        if not windows:
            raise AuditInvalid("audit", "no window of the job was kept")
        return Observations(
            settings=tuple(each for window in windows for each in window.settings),
            scores=np.concatenate([window.scores for window in windows]),
            drawn=np.concatenate([window.drawn for window in windows]),
        )

    def _report(
        self,
        facts: JobFacts,
        test: SelfTestFigures,
        values: np.ndarray,
        claim: Claim,
        seen: Observations,
        seconds: int,
    ) -> AuditReport:
        manifest, plan, curve = self._manifest, self._plan, claim.curve()
        return AuditReport(
            job_id=facts.job_id,
            image_digest=facts.image_digest,
            code_commit=facts.code_commit,
            tier="T2",
            ledger=ledger_facts(plan, steps_started=facts.steps_started, head=facts.head),
            canary=self._canary_facts(),
            guess_rule=GuessRule(
                k_plus=manifest.k_plus,
                k_minus=manifest.k_minus,
                score=manifest.score,
                preregistered_at=facts.preregistered_at,
            ),
            one_run=one_run_figures(manifest, values, self._is_member, curve, plan.delta),
            roc=roc_figures(values, self._is_member, curve),
            exposure=None,
            selftest=test,
            power=Power(
                min_detectable_epsilon_95=min_detectable_epsilon(
                    manifest, curve, float(plan.delta)
                ),
                positive_controls=facts.controls,
            ),
            circumstances=Circumstances(
                tiers_run=("T1", "T2") if facts.is_preflight_silent else ("T2",),
                journal_differences=level_differences(seen.settings),
            ),
            cost=Cost(
                seconds=seconds,
                memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            ),
        )

    def _canary_facts(self) -> CanaryFacts:
        digest = self._manifest.digest()
        return CanaryFacts(
            kind=self._manifest.kind,
            m=self._manifest.m,
            n_included=self.units,
            manifest_sha256=digest,
            commitment=self._seed.commitment(digest),
            revealed_seed=self._seed.reveal(),
        )


def claim_of(plan: RunPlan) -> Claim:
    """The loss the ledger allows the job, to its last step: what a job is refuted with (AU27)."""
    if plan.mode == "fixed_sigma":
        return Claim(events=plan.training_events(), limit_pico=None, alpha=None)
    return Claim(events=(), limit_pico=plan.job_limit, alpha=plan.alpha_job)


def _packed(seen: Observations) -> bytes:
    stream = io.BytesIO()
    told = json.dumps(windows_document(seen.settings), sort_keys=True).encode()
    np.savez(
        stream, scores=seen.scores, drawn=seen.drawn, settings=np.frombuffer(told, dtype=np.uint8)
    )
    return stream.getvalue()


def _unpacked(content: bytes, layout: GroupLayout) -> Observations:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        windows = json.loads(archive["settings"].tobytes())
        return Observations(
            settings=settings_of(layout, windows),
            scores=archive["scores"],
            drawn=archive["drawn"],
        )
