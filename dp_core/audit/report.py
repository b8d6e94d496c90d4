"""The report of an audit, its verdict, and the words it may be shown in (audit.md 7, 9, 10).

The verdict is a function of the report alone: `decide(report)` gives the same answer to
anyone who holds it. Numbers that do not exist are None, never 0.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dp_core.audit.coins import commitment_opens
from dp_core.audit.selftest import ALARM_LEVEL, CANARIES_MIN, SelfTestResult, Verdict
from dp_core.events import canonical_digest
from dp_core.plan import RunPlan

REQUIRED_CONTROLS = ("noise_off", "noise_halved", "sigma_times_clip", "one_group_unclipped")
CONTROL_LEVEL = 1e-9  # adjusted p a positive control has to reach (AU32)
# The engine without a fault, listed among the controls where the self-test rang on it too.
CORRECT_ENGINE = "correct_engine"
_TIERS_NEEDED = ("T1", "T2")
_Z95, _Z999 = 1.959964, 3.290527  # two-sided normal quantiles


@dataclass(frozen=True, kw_only=True)
class LedgerFacts:
    """What the ledger claims, copied from it."""

    epsilon: str
    delta: str
    mode: str
    alpha_star: int | None
    unit: str
    relation: str
    steps_started: int
    q: str
    head: str | None  # None before the job's first charge


def ledger_facts(plan: RunPlan, *, steps_started: int, head: str | None) -> LedgerFacts:
    """The claim of a plan, with what the ledger has charged for so far."""
    return LedgerFacts(
        epsilon=plan.epsilon_certified,
        delta=plan.delta,
        mode=plan.mode,
        alpha_star=plan.alpha_job,
        unit=plan.unit,
        relation=plan.relation,
        steps_started=steps_started,
        q=plan.sampling_probability,
        head=head,
    )


@dataclass(frozen=True, kw_only=True)
class CanaryFacts:
    kind: str
    m: int
    n_included: int
    manifest_sha256: str
    commitment: str
    revealed_seed: str | None  # None until the last step


@dataclass(frozen=True, kw_only=True)
class GuessRule:
    k_plus: int
    k_minus: int
    score: str
    preregistered_at: str  # of the ledger entry that carries the commitment


@dataclass(frozen=True, kw_only=True)
class OneRunFigures:
    """`eps_lb95_*` at the ledger's delta and 95 %; the last two at `gate_level`.

    `largest_*`: what the bound would be with every guess right (AU35).
    """

    r: int
    v: int
    eps_lb95_steinke: float
    eps_lb95_fdp: float
    p_steinke_at_ledger: float
    fdp_rejects: bool
    gate_level: float
    largest_steinke: float
    largest_fdp: float


@dataclass(frozen=True, kw_only=True)
class RocFigures:
    auc: float
    ci95: tuple[float, float]
    tpr_at_1fpr: float
    tpr_at_01fpr: float
    ledger_max_auc: float
    ledger_max_tpr: tuple[float, float]  # at 1 % and 0.1 %

    @property
    def low_999(self) -> float:
        """Lower end of the 99.9 % interval; that of 95 % lies at 1.96 standard errors."""
        return self.auc - (self.auc - self.ci95[0]) * _Z999 / _Z95


@dataclass(frozen=True, kw_only=True)
class ExposureFigures:
    """Bits, over the included text canaries."""

    median: float
    p95: float
    max: float
    reference_size: int


@dataclass(frozen=True, kw_only=True)
class TextFigures:
    """What the text canaries say, apart from the gradient canaries' figures (AU25)."""

    m: int
    n_included: int
    manifest_sha256: str
    score: str
    k_plus: int
    k_minus: int
    one_run: OneRunFigures
    roc: RocFigures
    min_k_auc: float  # of the second score; reported, gates nothing


@dataclass(frozen=True, kw_only=True)
class SelfTestFigures:
    """`p_values` are adjusted; a group without observations has None."""

    var_ratio: tuple[float | None, ...]
    mean_ratio: tuple[float | None, ...]
    lag1: float | None
    cross_group: float | None
    sampler_p: float | None
    min_p: float | None
    looks: tuple[int, ...]  # steps looked at
    steps: int
    shortcomings: tuple[str, ...]  # why a silent test says little, or what it found

    @classmethod
    def of(cls, result: SelfTestResult) -> SelfTestFigures:
        return cls(
            var_ratio=result.var_ratio,
            mean_ratio=result.mean_ratio,
            lag1=result.lag1,
            cross_group=result.cross_group,
            sampler_p=result.sampler_p,
            min_p=result.min_p,
            looks=tuple(look.step for look in result.looks),
            steps=result.steps,
            shortcomings=result.reasons,
        )


@dataclass(frozen=True, kw_only=True)
class PositiveControl:
    """A known fault run on this image: the adjusted p it reached in T0."""

    name: str
    min_p: float

    @property
    def has_tripped(self) -> bool:
        return self.min_p < CONTROL_LEVEL and self.name != CORRECT_ENGINE

    @property
    def is_false_alarm(self) -> bool:
        """A self-test that rings without a fault says nothing when it rings with one."""
        return self.min_p < ALARM_LEVEL and self.name == CORRECT_ENGINE


@dataclass(frozen=True, kw_only=True)
class Power:
    min_detectable_epsilon_95: float | None
    positive_controls: tuple[PositiveControl, ...]


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What the verdict needs beside the figures (AU31)."""

    tiers_run: tuple[str, ...]
    is_shadow: bool = False  # T2 on a public twin (AU7)
    journal_differences: tuple[str, ...] = ()  # commitment, replay, step count


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Whole job, rounded up by the caller as all exported times are (privacy.md R2)."""

    seconds: int
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """The frozen fields of audit.md 9. `conclude` fills in verdict and reasons."""

    job_id: str
    image_digest: str | None
    code_commit: str | None
    tier: str
    ledger: LedgerFacts
    canary: CanaryFacts | None
    guess_rule: GuessRule | None
    one_run: OneRunFigures | None
    roc: RocFigures | None
    exposure: ExposureFigures | None
    selftest: SelfTestFigures | None
    power: Power
    circumstances: Circumstances
    cost: Cost | None
    verdict: Verdict | None = None
    reasons: tuple[str, ...] = ()
    text: TextFigures | None = None  # None: a job without text canaries

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: lists, null for what does not exist.

        Raises:
            ValueError: a number is infinite or NaN; it should have been None.
        """
        document = dataclasses.asdict(self)
        if document["one_run"] is not None:
            document["one_run"]["fdp_rejects_at_1e-3"] = document["one_run"].pop("fdp_rejects")
        if document["text"] is None:  # as the report of a job without them always was
            del document["text"]
        loaded: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
        return loaded

    def digest(self) -> str:
        """What is signed: SHA-256 of the canonical form, floats as their shortest decimals."""
        return canonical_digest(_without_floats(self.to_dict()))


def _without_floats(value: Any) -> Any:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return {key: _without_floats(item) for key, item in value.items()}
    return [_without_floats(item) for item in value] if isinstance(value, list) else value


def conclude(report: AuditReport) -> AuditReport:
    """The report with its verdict and reasons."""
    verdict, reasons = decide(report)
    return dataclasses.replace(report, verdict=verdict, reasons=reasons)


def decide(report: AuditReport) -> tuple[Verdict, tuple[str, ...]]:
    """PASS, FAIL or INCONCLUSIVE by the table of audit.md 7; FAIL outweighs all else."""
    failures = _failures(report)
    if failures:
        return "FAIL", failures
    gaps = _gaps(report)
    return ("INCONCLUSIVE", gaps) if gaps else ("PASS", ())


def _failures(report: AuditReport) -> tuple[str, ...]:
    found = [f"journal: {text}" for text in report.circumstances.journal_differences]
    test, run, canary = report.selftest, report.one_run, report.canary
    if test is not None and test.min_p is not None and test.min_p < ALARM_LEVEL:
        found += test.shortcomings or ("self-test: alarm",)
    is_charged = report.tier != "T1"  # steps on synthetic text are in no ledger
    if test is not None and is_charged and test.steps > report.ledger.steps_started:
        found.append("journal: more steps were released than charged")
    if run is not None:
        found += _refuted("one run", run)
    if report.text is not None:
        found += _refuted("text canaries", report.text.one_run)
    if canary is not None and canary.revealed_seed is not None:
        opens = commitment_opens(
            canary.commitment,
            manifest_sha256=canary.manifest_sha256,
            revealed_seed=canary.revealed_seed,
        )
        if not opens:
            found.append("journal: seed and manifest do not open the commitment")
    return tuple(found)


def _refuted(what: str, run: OneRunFigures) -> list[str]:
    found = []
    if run.p_steinke_at_ledger <= run.gate_level:
        found.append(f"{what}: Steinke p {run.p_steinke_at_ledger:.1e} at the ledger's claim")
    if run.fdp_rejects:
        found.append(f"{what}: the f-DP test refutes the ledger's curve")
    return found


def _gaps(report: AuditReport) -> tuple[str, ...]:
    canary, roc, test = report.canary, report.roc, report.selftest
    facts = report.circumstances
    ran = {c.name for c in report.power.positive_controls}
    tripped = {c.name for c in report.power.positive_controls if c.has_tripped}
    gaps = [f"{tier} was not run" for tier in _TIERS_NEEDED if tier not in facts.tiers_run]
    gaps += [
        f"control {c} {'did not trip' if c in ran else 'was not run'}"
        for c in REQUIRED_CONTROLS
        if c not in tripped
    ]
    if any(control.is_false_alarm for control in report.power.positive_controls):
        gaps.append("the self-test also rang on the engine without a fault")
    if canary is None or canary.kind != "gradient" or canary.m < CANARIES_MIN:
        gaps.append(f"fewer than {CANARIES_MIN} gradient canaries")
    elif canary.revealed_seed is None:
        gaps.append("the coin seed is not revealed")
    if report.one_run is None:
        gaps.append("no one-run bound was computed")
    if test is None:
        gaps.append("no self-test was run")
    else:
        gaps += [text for text in test.shortcomings if text not in gaps]
        unseen = report.ledger.steps_started - test.steps
        if report.tier != "T1" and unseen > 0:
            gaps.append(f"{unseen} charged steps were not observed: a window was broken off")
    if roc is not None and roc.low_999 > roc.ledger_max_auc:
        gaps.append("the AUC lies above the ceiling of the ledger's claim at 99.9 %")
    if report.text is not None and report.text.roc.low_999 > report.text.roc.ledger_max_auc:
        gaps.append("the text canaries' AUC lies above the ceiling of the ledger's claim at 99.9 %")
    if facts.is_shadow:
        gaps.append("shadow audit: a public twin was audited, not this run")
    return tuple(gaps)


def statements(report: AuditReport) -> tuple[str, ...]:
    """The sentences a page, log or certificate may show (AU34-AU36)."""
    lines = [_headline(report)]
    if report.one_run is not None and report.canary is not None:
        lines += _bounds(report.one_run, report.canary.m, report.ledger.delta)
    if report.roc is not None:
        low, high = report.roc.ci95
        lines.append(
            f"Membership AUC {report.roc.auc:.3f} (95 %: {low:.3f} to {high:.3f}); the ledger's "
            f"claim allows at most {report.roc.ledger_max_auc:.3f}. {_NEAR_CHANCE} Differences "
            "below 0.05 at m = 1000 are noise."
        )
    if report.exposure is not None:
        lines.append(
            f"Exposure of inserted secrets: median {report.exposure.median:.1f} bits, where chance "
            f"gives 1.0; largest {report.exposure.max:.1f}, of "
            f"{math.log2(report.exposure.reference_size):.1f} possible. {_NEAR_CHANCE}"
        )
    if report.text is not None:
        lines += [
            f"Text canaries alone: {line}"
            for line in _bounds(report.text.one_run, report.text.m, report.ledger.delta)
        ]
    return tuple(lines)


def _bounds(run: OneRunFigures, canaries: int, delta: str) -> list[str]:
    return [
        f"Lower bound on epsilon: {rounded_down(value)} at delta = {delta}, "
        f"95 % confidence, {method}, m = {canaries}; the largest value this audit could "
        f"have shown is {rounded_down(largest)}."
        for method, value, largest in (
            ("one-run Steinke-Nasr-Jagielski", run.eps_lb95_steinke, run.largest_steinke),
            ("one-run f-DP, Gaussian family", run.eps_lb95_fdp, run.largest_fdp),
        )
    ]


_NEAR_CHANCE = (
    "A figure near chance is what differential privacy predicts and no evidence of a correct "
    "implementation."
)


def _headline(report: AuditReport) -> str:
    ledger = report.ledger
    verdict, reasons = decide(report)
    claim = f"epsilon <= {ledger.epsilon} at delta = {ledger.delta} per {ledger.unit}"
    if verdict == "FAIL":
        return f"The audit contradicts {claim}: {'; '.join(reasons)}."
    if verdict == "INCONCLUSIVE":
        return f"The audit allows no conclusion about {claim}: {'; '.join(reasons)}."
    controls = ", ".join(c.name for c in report.power.positive_controls if c.has_tripped)
    return (
        f"No evidence against {claim}. This audit would have caught {controls.replace('_', ' ')} "
        "with 95 % probability."
    )


def rounded_down(value: float) -> str:
    """Two decimals, rounded down as lower bounds are."""
    return f"{math.floor(value * 100) / 100:.2f}"
