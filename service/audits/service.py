"""Stores what an audit found and shows it: one summary for job, certificate and page.

A summary says no more than the audit showed (audit.md 10): the verdict of the whole audit,
that of its self-test, and what was not looked at. Nothing in it comes from patients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from dp_core.events import canonical_json
from service.audits.models import JobAudit


@dataclass(frozen=True, kw_only=True)
class FoundAudit:
    """What a trainer hands over: verdict, summary and the report as its file holds it.

    `revealed_seed`: of an audit whose coins the ledger holds a commitment to.
    """

    verdict: str
    summary: Mapping[str, Any]
    report: str
    revealed_seed: str | None = None


def add(
    session: Session, *, tenant_id: str, job_id: str, epoch: int, found: FoundAudit, now: int
) -> None:
    """Notes the audit of an attempt in the caller's transaction; asked again, the same row.

    The audit of the job's own steps takes the place of the pre-flight's, which it names.
    """
    noted = session.get(JobAudit, (job_id, epoch))
    if noted is not None and found.revealed_seed is None:
        return
    if noted is not None:
        session.delete(noted)
        session.flush()
    session.add(
        JobAudit(
            job_id=job_id,
            epoch=epoch,
            tenant_id=tenant_id,
            verdict=found.verdict,
            summary=canonical_json(dict(found.summary)).decode(),
            report=found.report,
            created_at=now,
        )
    )
    session.flush()


def newest(session: Session, job_id: str) -> JobAudit | None:
    """The audit of the newest attempt that has one."""
    return session.scalar(
        select(JobAudit).where(JobAudit.job_id == job_id).order_by(JobAudit.epoch.desc()).limit(1)
    )


def summary_of(session: Session, job_id: str) -> dict[str, Any] | None:
    """What job, certificate and page show; None before the pre-flight, or without one."""
    return summaries_of(session, [job_id]).get(job_id)


def summaries_of(session: Session, job_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The same of several jobs, in one query; without those that have none."""
    rows = session.execute(
        select(JobAudit.job_id, JobAudit.summary)
        .where(JobAudit.job_id.in_(job_ids))
        .order_by(JobAudit.job_id, JobAudit.epoch)
    )
    newest_of = {row.job_id: row.summary for row in rows}  # a later epoch comes after
    return {job_id: dict(json.loads(summary)) for job_id, summary in newest_of.items()}


def headline(summary: Mapping[str, Any] | None) -> str:
    """One line for label and page, claiming no more than was looked at."""
    if summary is None:
        return "none was made"
    if summary["self_test"] == "FAIL" or summary["verdict"] == "FAIL":
        return "a fault was found; nothing of this job may be trusted"
    where = "of this job" if summary["tier"] == "T2" else "on synthetic text"
    if summary["self_test"] != "PASS":
        return f"self-test {where}: no conclusion"
    return f"self-test {where}: no fault found in {summary['steps']} steps"


def limits(summary: Mapping[str, Any] | None) -> str:
    """What stands beside the headline, so that it is not read as more."""
    if summary is None:
        return ""
    looked_at = (
        f"{summary['canaries']} gradient canaries, smallest adjusted p "
        f"{summary['self_test_min_p'] or 'none'}, alarm below {summary['self_test_alarm_level']}; "
        f"audit as a whole: {summary['verdict']}. "
    )
    if summary["tier"] == "T2":
        bound = summary["one_run_lower_bound"]
        return looked_at + (
            f"One-run lower bound on epsilon {bound['value']} of at most {bound['largest']} that "
            f"this audit could have shown (95 %, {bound['method']}); this is no evidence that "
            "epsilon is right" + _of_text(summary.get("text_canaries"))
        )
    return looked_at + (
        "The run on patients' records was not attacked; this is no evidence that epsilon is right"
    )


def _of_text(text: Mapping[str, Any] | None) -> str:
    """What inserted notes add; nothing where a job has none."""
    if text is None:
        return ""
    return (
        f". Secrets in {text['canaries']} made-up patients' notes: median exposure "
        f"{text['exposure_median']} bits, where chance gives 1.0 and the most is "
        f"{text['exposure_possible']}; their own lower bound {text['value']} of at most "
        f"{text['largest']}. Figures near chance are what privacy predicts and prove nothing"
    )
