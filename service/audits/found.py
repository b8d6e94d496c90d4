"""From a trainer's finished pre-flight to what is stored. Imported by the trainer alone."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from dp_core.audit.report import AuditReport, rounded_down, statements
from dp_core.audit.saved import SavedAudit
from dp_core.audit.selftest import ALARM_LEVEL
from service.audits.service import FoundAudit

SYNTHETIC = "synthetic text, before patients' records were opened"
OWN_STEPS = "canaries among the patients of the job's own steps"
METHOD = "one-run f-DP, Gaussian family"


def found_audit(
    saved: SavedAudit, content: bytes, *, preflight: FoundAudit | None = None
) -> FoundAudit:
    """From a finished audit and the bytes of its report file.

    `preflight`: of the same attempt, for an audit of the job's own steps.
    """
    report = saved.report
    assert report.verdict is not None and report.selftest is not None
    assert report.canary is not None
    summary = _summary(saved, hashlib.sha256(content).hexdigest())
    if preflight is not None:
        told = ("report_sha256", "scores_sha256", "self_test", "self_test_min_p", "steps")
        summary["preflight"] = {name: preflight.summary[name] for name in told}
    return FoundAudit(
        verdict=report.verdict,
        summary=summary,
        report=content.decode(),
        revealed_seed=report.canary.revealed_seed if preflight is not None else None,
    )


def _summary(saved: SavedAudit, report_sha256: str) -> dict[str, Any]:
    """Canonical: text and integers only."""
    report = saved.report
    test, canary = report.selftest, report.canary
    assert test is not None and canary is not None
    text = {} if report.text is None else {"text_canaries": _text(report)}
    alarm = test.min_p is not None and test.min_p < ALARM_LEVEL
    return {
        "canaries": canary.m,
        "controls_tripped": sorted(
            control.name for control in report.power.positive_controls if control.has_tripped
        ),
        "data": SYNTHETIC if report.tier == "T1" else OWN_STEPS,
        "one_run_lower_bound": _bound(report),
        "reasons": list(report.reasons),
        "report_sha256": report_sha256,
        "scores_sha256": saved.scores_sha256,
        "self_test": "FAIL" if alarm else "INCONCLUSIVE" if test.shortcomings else "PASS",
        "self_test_alarm_level": "1e-6",
        "self_test_min_p": None if test.min_p is None else f"{test.min_p:.3g}",
        "statement": statements(report)[0],
        "steps": test.steps,
        "tier": report.tier,
        "verdict": report.verdict,
        **text,
    }


def _text(report: AuditReport) -> dict[str, Any]:
    """What the inserted secrets say, with what they could have said (AU25, AU35)."""
    text, exposure = report.text, report.exposure
    assert text is not None and exposure is not None
    return {
        "canaries": text.m,
        "exposure_median": f"{exposure.median:.1f}",
        "exposure_possible": f"{math.log2(exposure.reference_size):.1f}",
        "largest": rounded_down(text.one_run.largest_fdp),
        "value": rounded_down(text.one_run.eps_lb95_fdp),
    }


def _bound(report: AuditReport) -> dict[str, Any] | None:
    """The larger of the two reported bounds' methods, with what it could have shown (AU35)."""
    run = report.one_run
    if run is None:
        return None
    return {
        "confidence": "95 %",
        "largest": rounded_down(run.largest_fdp),
        "method": METHOD,
        "value": rounded_down(run.eps_lb95_fdp),
    }
