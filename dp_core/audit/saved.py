"""A finished audit as two files, and its recomputation by anyone, offline and without torch.

`audit_report.json` holds the report, the manifest and the settings of every step;
`audit_scores.npz` the score of every canary at every step and which canaries each step
drew. From both, every figure of the self-test follows again. That the scores are those of
the released sums is the trainer's word: the sums themselves are not kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from dp_core.audit.canaries import (
    MembershipScores,
    PartitionCanaries,
    StepScores,
    layout_digest,
)
from dp_core.audit.coins import CoinSeed, Manifest, open_coins
from dp_core.audit.curve import TradeOffCurve, filter_curve, fixed_schedule_curve
from dp_core.audit.errors import AuditError, AuditInvalid
from dp_core.audit.figures import agree, one_run_differences
from dp_core.audit.report import AuditReport, SelfTestFigures, decide
from dp_core.audit.selftest import SelfTest, SelfTestResult
from dp_core.audit.text_figures import TextAudit, TextScores, text_differences
from dp_core.events import PoissonGaussian
from dp_core.mechanism import GroupLayout, StepSettings

T = TypeVar("T")

FORMAT = "rldp-audit/1"
REPORT_FILE, SCORES_FILE = "audit_report.json", "audit_scores.npz"
RUN_REPORT_FILE, RUN_SCORES_FILE = "run_audit_report.json", "run_audit_scores.npz"  # tier T2
SCORES_OF = {REPORT_FILE: SCORES_FILE, RUN_REPORT_FILE: RUN_SCORES_FILE}
# Restated from privacy.md G11 and G13: what the audit checks it must not read from the engine.
_CLIP_INFLATION, _BIT_SENSITIVITY, _LEVEL_TOLERANCE = 1 + 2.0**-16, 0.5, 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class Observations:
    """What the self-test reads, step by step: public canaries and noised sums alone."""

    settings: tuple[StepSettings, ...]  # as journalled, one per step
    scores: np.ndarray  # (T, m, K) float32; float16 of a job's own steps
    drawn: np.ndarray  # (T, m) bool

    def npz(self, text: TextScores | None = None) -> bytes:
        """The file of scores; `text`: those of the job's text canaries."""
        stream = io.BytesIO()
        more: dict[str, Any] = {} if text is None else text.arrays()
        np.savez(stream, scores=self.scores, drawn=np.packbits(self.drawn, axis=1), **more)
        return stream.getvalue()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the ledger claims of a whole job: a fixed schedule's events, or a filter's limit."""

    events: tuple[PoissonGaussian, ...]
    limit_pico: int | None
    alpha: int | None

    def curve(self) -> TradeOffCurve:
        return _curve(self)


@lru_cache(maxsize=4)  # seconds of numerics, asked for by figures, power and their checks
def _curve(claim: Claim) -> TradeOffCurve:
    if claim.limit_pico is None or claim.alpha is None:
        return fixed_schedule_curve(claim.events)
    return filter_curve(claim.limit_pico, claim.alpha)


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedAudit:
    """What `audit_report.json` says.

    `canary_rate` is the q of the canaries; `patients_at_most` bounds the synthetic patients
    of a step, whose gradients leak into the scores (AU18). `claim`: of an audit in a job;
    `text`: of its text canaries, if it has any.
    """

    report: AuditReport
    manifest: Manifest
    layout: GroupLayout
    settings: tuple[StepSettings, ...]
    canary_rate: str
    patients_at_most: int
    scores_sha256: str
    claim: Claim | None = None
    text: TextAudit | None = None

    def to_json(self) -> bytes:
        """The file's bytes: sorted keys, so that equal audits give equal files."""
        document = {
            "format": FORMAT,
            "report": self.report.to_dict(),
            "manifest": self.manifest.to_dict(),
            "layout": dataclasses.asdict(self.layout),
            "windows": windows_document(self.settings),
            "canary_rate": self.canary_rate,
            "patients_at_most": self.patients_at_most,
            "scores": {"file": self.scores_file, "sha256": self.scores_sha256},
        }
        if self.claim is not None:
            document["claim"] = dataclasses.asdict(self.claim)
        if self.text is not None:
            document["text"] = self.text.to_dict()
        return (json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()

    @property
    def scores_file(self) -> str:
        return SCORES_FILE if self.claim is None else RUN_SCORES_FILE

    @classmethod
    def from_json(cls, content: bytes) -> SavedAudit:
        """Inverse of `to_json`.

        Raises:
            AuditInvalid: not a report of this format.
        """
        try:
            document = json.loads(content)
            if document["format"] != FORMAT:
                raise AuditInvalid("format", f"not {FORMAT}")
            layout = _built(GroupLayout, document["layout"])
            return cls(
                report=report_from_dict(document["report"]),
                manifest=Manifest.from_dict(document["manifest"]),
                layout=layout,
                settings=settings_of(layout, document["windows"]),
                canary_rate=document["canary_rate"],
                patients_at_most=document["patients_at_most"],
                scores_sha256=document["scores"]["sha256"],
                claim=_built(Claim, document["claim"]) if "claim" in document else None,
                text=TextAudit.from_dict(document["text"]) if "text" in document else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise AuditInvalid("report", f"cannot be read as {FORMAT}") from None


def windows_document(settings: Sequence[StepSettings]) -> list[dict[str, Any]]:
    """The settings of every step, each window's once, without its layout."""
    windows: list[dict[str, Any]] = []
    last: StepSettings | None = None
    for each in settings:
        if each is last:
            windows[-1]["steps"] += 1
            continue
        told = dataclasses.asdict(each)
        del told["layout"]
        windows.append(told | {"steps": 1})
        last = each
    return windows


def settings_of(
    layout: GroupLayout, windows: Sequence[Mapping[str, Any]]
) -> tuple[StepSettings, ...]:
    """Inverse of `windows_document`: one for each step."""
    return tuple(
        settings for window in windows for settings in [_settings(layout, window)] * window["steps"]
    )


def _settings(layout: GroupLayout, window: Mapping[str, Any]) -> StepSettings:
    told = {name: value for name, value in window.items() if name != "steps"}
    return _built(StepSettings, told | {"layout": dataclasses.asdict(layout)})


def report_from_dict(document: Mapping[str, Any]) -> AuditReport:
    """Inverse of `AuditReport.to_dict`."""
    told = dict(document)
    if told["one_run"] is not None:
        run = dict(told["one_run"])
        run["fdp_rejects"] = run.pop("fdp_rejects_at_1e-3")
        told["one_run"] = run
    return _built(AuditReport, told)


def _built(kind: type[T], told: Mapping[str, Any]) -> T:
    """A frozen dataclass from its JSON form. Unknown and missing names are a TypeError."""
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints.get(name), value) for name, value in told.items()})


def _value(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(each for each in get_args(hint) if each is not type(None))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _built(hint, value)
    if get_origin(hint) is tuple:
        return tuple(_value(get_args(hint)[0], each) for each in value)
    return value


def run_selftest(
    *,
    geometry: PartitionCanaries,
    manifest: Manifest,
    is_member: np.ndarray,
    seen: Observations,
    canary_rate: str,
    patients_at_most: int,
) -> SelfTestResult:
    """The self-test over all steps: of the trainer and of anyone who recomputes it."""
    selftest = SelfTest(
        is_carried=geometry.is_carried,
        members=np.flatnonzero(is_member),
        sampling_probability=canary_rate,
        batch_size_expected=patients_at_most,
        looks=manifest.looks,
    )
    for values, drawn, settings in zip(seen.scores, seen.drawn, seen.settings, strict=True):
        step = StepScores(values=values.astype(np.float64), expected=geometry.expected(settings))
        selftest.add(step, np.flatnonzero(drawn), settings)
    return selftest.result()


def membership_scores(
    geometry: PartitionCanaries, seen: Observations, sampling_probability: str
) -> np.ndarray:
    """(m,) the pre-registered score of every canary over all steps (AU20)."""
    total = MembershipScores(canaries=geometry.canaries, sampling_probability=sampling_probability)
    for values, settings in zip(seen.scores, seen.settings, strict=True):
        total.add(
            StepScores(values=values.astype(np.float64), expected=geometry.expected(settings))
        )
    return total.values


def level_differences(settings: Sequence[StepSettings]) -> tuple[str, ...]:
    """Steps whose stds make less noise than the level they are booked under (G2)."""
    found = set()
    for each in settings:
        terms = [(c * _CLIP_INFLATION / s) ** 2 for c, s in _pairs(each)]
        bits = len(each.layout) * (_BIT_SENSITIVITY / each.bit_std) ** 2
        total = math.fsum([*terms, bits, (each.loss_cap / 2 / each.loss_std) ** 2])
        if not 1 / math.sqrt(total) >= float(each.noise_multiplier) * (1 - _LEVEL_TOLERANCE):
            found.add(f"the stds of a window do not make its noise level {each.noise_multiplier}")
    return tuple(sorted(found))


def _pairs(settings: StepSettings) -> zip[tuple[float, float]]:
    return zip(settings.clip_norms, settings.noise_stds, strict=True)


def differences(saved: SavedAudit, scores: bytes) -> tuple[str, ...]:
    """What a recomputation finds other than the report says; empty if all agrees (AU12)."""
    if hashlib.sha256(scores).hexdigest() != saved.scores_sha256:
        return ("the scores are not those the report names",)
    canary, manifest = saved.report.canary, saved.manifest
    if canary is None or canary.revealed_seed is None:
        return ("the coin seed is not revealed",)
    if manifest.layout_digest != layout_digest(saved.layout):
        return ("the manifest was made for other clip groups",)
    found = []
    try:
        is_member = open_coins(canary.commitment, manifest, canary.revealed_seed)
        geometry, seen = _geometry(saved), _observations(saved, scores)
        result = _recomputed(saved, geometry, is_member, seen)
    except AuditError as error:
        return (str(error),)
    if (canary.m, canary.n_included) != (manifest.m, int(is_member.sum())):
        found.append("the number of canaries")
    if canary.manifest_sha256 != manifest.digest():
        found.append("the manifest's digest")
    if not agree(saved.report.selftest, SelfTestFigures.of(result)):
        found.append("the figures of the self-test")
    if saved.claim is not None:
        values = membership_scores(geometry, seen, saved.canary_rate)
        told = one_run_differences(saved.report, manifest, values, saved.claim.curve())
        found += [text for text in told if text not in found]
        found += _differences_of_text(saved, saved.claim, scores, canary.revealed_seed)
    levels = level_differences(saved.settings)
    if levels != saved.report.circumstances.journal_differences:
        found.append("what the journal's noise levels say")
    if decide(saved.report) != (saved.report.verdict, saved.report.reasons):
        found.append("the verdict")
    return tuple(found)


def _differences_of_text(
    saved: SavedAudit, claim: Claim, scores: bytes, seed: str
) -> tuple[str, ...]:
    """The same for the text canaries; a job has them if its manifest binds theirs."""
    report, text, bound = saved.report, saved.text, saved.manifest.companion_sha256
    if bound != (None if text is None else text.manifest.digest()):
        return ("the text canaries are not those that were committed to",)
    told = (report.text, report.exposure)
    if text is None:
        return () if told == (None, None) else ("figures of text canaries the job does not have",)
    seen = _text_scores(scores)
    if seen is None:
        return ("the scores of the text canaries",)
    curve, coins = claim.curve(), CoinSeed(bytes.fromhex(seed))
    return text_differences(told, text, seen, coins, curve, report.ledger.delta)


def _text_scores(scores: bytes) -> TextScores | None:
    try:
        with np.load(io.BytesIO(scores), allow_pickle=False) as archive:
            return TextScores(loss_drop=archive["text_loss_drop"], min_k=archive["text_min_k"])
    except (KeyError, ValueError, OSError):
        return None


def attack_scores(saved: SavedAudit, scores: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(m,) the pre-registered score of every canary and whether it took part, to be drawn.

    Of a report whose `differences` are none; both are public once the coins are revealed.

    Raises:
        AuditInvalid: a report of other scores, or of a pre-flight, which attacks no job.
        CommitmentMismatch: seed and manifest do not open the commitment.
    """
    canary = saved.report.canary
    if saved.claim is None or canary is None or canary.revealed_seed is None:
        raise AuditInvalid("report", "no attack on a job's own steps")
    if hashlib.sha256(scores).hexdigest() != saved.scores_sha256:
        raise AuditInvalid("scores", "not those the report names")
    is_member = open_coins(canary.commitment, saved.manifest, canary.revealed_seed)
    seen = _observations(saved, scores)
    return membership_scores(_geometry(saved), seen, saved.canary_rate), is_member


def _geometry(saved: SavedAudit) -> PartitionCanaries:
    seed = saved.manifest.construction_seed
    return PartitionCanaries(saved.layout, canaries=saved.manifest.m, construction_seed=seed)


def _observations(saved: SavedAudit, scores: bytes) -> Observations:
    try:
        with np.load(io.BytesIO(scores), allow_pickle=False) as archive:
            drawn = np.unpackbits(archive["drawn"], axis=1, count=saved.manifest.m).astype(bool)
            return Observations(settings=saved.settings, scores=archive["scores"], drawn=drawn)
    except (KeyError, ValueError, IndexError, OSError):
        raise AuditInvalid("scores", "not the scores of this report") from None


def _recomputed(
    saved: SavedAudit, geometry: PartitionCanaries, is_member: np.ndarray, seen: Observations
) -> SelfTestResult:
    try:
        return run_selftest(
            geometry=geometry,
            manifest=saved.manifest,
            is_member=is_member,
            seen=seen,
            canary_rate=saved.canary_rate,
            patients_at_most=saved.patients_at_most,
        )
    except (ValueError, IndexError):
        raise AuditInvalid("scores", "not the scores of this report") from None
