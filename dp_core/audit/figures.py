"""From scores and coins to the figures of a report, for the auditor and for its checker."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from dp_core.audit import bounds
from dp_core.audit.bounds import Guesses
from dp_core.audit.coins import Manifest, open_coins
from dp_core.audit.curve import TradeOffCurve
from dp_core.audit.errors import AuditInvalid, CommitmentMismatch
from dp_core.audit.power import min_detectable_epsilon
from dp_core.audit.report import AuditReport, ExposureFigures, OneRunFigures, RocFigures

# Other processors and libraries sum in another order: that moves a figure by parts in 1e9.
_TOLERANCE = 1e-6


def one_run_figures(
    manifest: Manifest,
    scores: np.ndarray,
    is_member: np.ndarray,
    curve: TradeOffCurve,
    ledger_delta: str,
) -> OneRunFigures:
    """Bounds and gate tests of one run under the rule the manifest fixed (AU26, AU28)."""
    guesses = bounds.count_guesses(
        scores, is_member, manifest.ids, k_plus=manifest.k_plus, k_minus=manifest.k_minus
    )
    best = Guesses(canaries=guesses.canaries, made=guesses.made, correct=guesses.made)
    delta, alpha = float(ledger_delta), float(manifest.alpha_report)
    delta_audit, level = float(manifest.delta_audit), float(manifest.alpha_gate)
    claim = curve.epsilon_at(delta_audit)
    return OneRunFigures(
        r=guesses.made,
        v=guesses.correct,
        eps_lb95_steinke=bounds.steinke_bound(guesses, delta=delta, alpha=alpha),
        eps_lb95_fdp=bounds.fdp_bound(guesses, delta=delta, alpha=alpha),
        p_steinke_at_ledger=(
            bounds.steinke_p_value(claim, guesses, delta_audit) if np.isfinite(claim) else 1.0
        ),
        fdp_rejects=bounds.fdp_rejects(curve.inverse, guesses, level),
        gate_level=level,
        largest_steinke=bounds.steinke_bound(best, delta=delta, alpha=alpha),
        largest_fdp=bounds.fdp_bound(best, delta=delta, alpha=alpha),
    )


def roc_figures(scores: np.ndarray, is_member: np.ndarray, curve: TradeOffCurve) -> RocFigures:
    """AUC and true positives at low false-positive rates beside the ledger's ceilings."""
    members, outsiders = scores[is_member], scores[~is_member]
    if len(members) == 0 or len(outsiders) == 0:
        raise AuditInvalid("coins", "needs members and outsiders")
    area = bounds.auc(members, outsiders)
    return RocFigures(
        auc=area.value,
        ci95=(area.low, area.high),
        tpr_at_1fpr=bounds.tpr_at(0.01, members, outsiders).value,
        tpr_at_01fpr=bounds.tpr_at(0.001, members, outsiders).value,
        ledger_max_auc=curve.max_auc(),
        ledger_max_tpr=(curve.max_tpr(0.01), curve.max_tpr(0.001)),
    )


def exposure_figures(scores: np.ndarray, is_member: np.ndarray) -> ExposureFigures:
    """Exposure of the included canaries among the excluded ones, in bits (AU24)."""
    bits = bounds.exposure(scores[is_member], scores[~is_member])
    return ExposureFigures(
        median=float(np.median(bits)),
        p95=float(np.quantile(bits, 0.95)),
        max=float(bits.max()),
        reference_size=int((~is_member).sum()),
    )


def one_run_differences(
    report: AuditReport, manifest: Manifest, scores: np.ndarray, curve: TradeOffCurve
) -> tuple[str, ...]:
    """What an outsider's recomputation finds other than reported; empty if all agrees (AU12).

    Coins come from the revealed seed, guesses and figures from the scores and the manifest.
    Any difference is a FAIL of the job.
    """
    canary = report.canary
    if canary is None or canary.revealed_seed is None:
        return ("the coin seed is not revealed",)
    try:
        is_member = open_coins(canary.commitment, manifest, canary.revealed_seed)
    except CommitmentMismatch:
        return ("seed and manifest do not open the commitment",)
    found = []
    if (canary.m, canary.n_included) != (manifest.m, int(is_member.sum())):
        found.append("the number of canaries")
    run = one_run_figures(manifest, scores, is_member, curve, report.ledger.delta)
    if not agree(report.one_run, run):
        found.append("the one-run figures")
    if not agree(report.roc, roc_figures(scores, is_member, curve)):
        found.append("the attack figures")
    least = min_detectable_epsilon(manifest, curve, float(report.ledger.delta))
    if not agree(report.power.min_detectable_epsilon_95, least):
        found.append("what the audit could have detected")
    rule = report.guess_rule
    fixed = (manifest.k_plus, manifest.k_minus, manifest.score)
    if rule is None or (rule.k_plus, rule.k_minus, rule.score) != fixed:
        found.append("the guess rule")
    return tuple(found)


def agree(told: Any, now: Any) -> bool:
    """Whether two figures, or two records of figures, are the same but for rounding."""
    if dataclasses.is_dataclass(told) and dataclasses.is_dataclass(now):
        names = [f.name for f in dataclasses.fields(told)]
        return type(told) is type(now) and all(
            agree(getattr(told, name), getattr(now, name)) for name in names
        )
    if isinstance(told, tuple) and isinstance(now, tuple):
        return len(told) == len(now) and all(map(agree, told, now))
    if isinstance(told, float) and isinstance(now, float):
        return math.isclose(told, now, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return bool(told == now)
