"""Finds what `rldp audit` needs of a job in the service's own database."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dp_core.plan import RunPlan
from service.database import Database
from service.jobs.models import Job
from service.settings import Settings


@dataclass(frozen=True, kw_only=True)
class AuditedJob:
    """Plan and model folder of a job. No patient's record is among it."""

    plan: RunPlan
    model_dir: Path


def find_job(settings: Settings, job_id: str) -> AuditedJob | None:
    """The job, or None."""
    import service.models  # noqa: F401  # completes the metadata

    db = Database(settings.resolved_database_url)
    try:
        with db.reading() as session:
            job = session.get(Job, job_id)
            if job is None:
                return None
            plan = RunPlan.from_dict(json.loads(job.plan))
            return AuditedJob(plan=plan, model_dir=Path(job.model_dir))
    finally:
        db.dispose()
