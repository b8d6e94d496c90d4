"""The audits of an attempt as they are kept: before it opens records, and of its own steps."""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp_core.audit.in_job import FinishedAudit
from dp_core.audit.preflight import run_preflight
from dp_core.audit.saved import REPORT_FILE, RUN_REPORT_FILE, RUN_SCORES_FILE, SCORES_FILE
from dp_core.noise import make_noise_source
from dp_core.plan import Performance, RunPlan
from service.audits.found import found_audit
from service.audits.service import FoundAudit
from service.database import Database
from service.jobs.runtime import Work, record_audit
from service.ledger import service as ledger
from service.sealing.files import disk_full_is_told


class AuditFailed(Exception):
    """An audit contradicts the ledger's claim: nothing of this job may leave."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptAudit:
    """A report as it is stored, and its files, which leave with the adapter."""

    found: FoundAudit
    files: list[Path]


def audit_before_data(
    db: Database,
    work: Work,
    plan: RunPlan,
    model: Any,
    performance: Performance,
    image_digest: str | None = None,
) -> KeptAudit:
    """Attacks the job's own engine on synthetic text.

    Stored with the job whatever it finds. The model is as it was afterwards.

    Raises:
        AuditFailed: a fault was found, now or by an attempt before. Nothing was charged by
            this one and no patient was read.
        FencedOut: the attempt no longer owns the job.
    """
    if is_disputed(db, work.job_id):
        raise AuditFailed
    made = run_preflight(
        plan=plan,
        model=model,
        vocabulary=int(model.config.vocab_size),
        performance=performance,
        noise_source=make_noise_source(plan.noise_source),
        job_id=work.job_id,
        code_commit=code_version(),
        image_digest=image_digest,
    )
    content = made.saved.to_json()
    files = _write(work, content, made.scores, (REPORT_FILE, SCORES_FILE))
    found = found_audit(made.saved, content)
    record_audit(db, work.job_id, work.epoch, found)
    if made.is_fault_found:
        raise AuditFailed
    return KeptAudit(found=found, files=files)


def keep_run_audit(db: Database, work: Work, made: FinishedAudit, before: KeptAudit) -> KeptAudit:
    """Files of the audit of the job's own steps, to be noted with the job's end.

    Raises:
        AuditFailed: it contradicts the ledger. That is noted at once, the coins are revealed,
            and the adapter does not leave.
        FencedOut: the attempt no longer owns the job.
    """
    content = made.saved.to_json()
    files = _write(work, content, made.scores, (RUN_REPORT_FILE, RUN_SCORES_FILE))
    found = found_audit(made.saved, content, preflight=before.found)
    if found.verdict == "FAIL":
        record_audit(db, work.job_id, work.epoch, found)
        raise AuditFailed
    return KeptAudit(found=found, files=[*before.files, *files])


def is_disputed(db: Database, job_id: str) -> bool:
    """Whether an earlier audit of the job found a fault; no attempt heals that (AU30)."""
    with db.reading() as session:
        return ledger.has_incident(session, job_id)


def code_version() -> str:
    """Which release made a report."""
    return f"rldp {importlib.metadata.version('rldp')}"


def _write(work: Work, report: bytes, scores: bytes, names: tuple[str, str]) -> list[Path]:
    directory = Path(work.job_dir) / f"audit-{work.epoch}"
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / name for name in names]
    for path, content in zip(paths, (report, scores), strict=True):
        with disk_full_is_told(), path.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    return paths
