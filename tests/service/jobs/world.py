"""Jobs for tests: a granted population with a dataset version, and queued jobs on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from dp_core.events import canonical_json
from dp_core.plan import RunPlan
from service.database import Database, now_us
from service.datasets.models import Dataset, DatasetVersion, File
from service.ids import new_id
from service.jobs import leases, runtime
from service.jobs.lifecycle import CLAIMABLE, LEASED, Reason, State
from service.jobs.models import Job, JobEvent, Outbox
from service.jobs.transitions import (
    announce,
    change_state,
    clock_us,
    end_without_adapter,
    locked_job,
)
from service.ledger import service as ledger
from service.ledger.models import Entry
from tests.service.ledger import world as lw

SECOND = 1_000_000
RAW = "0" * 64
LEASE_SECONDS = 3600  # a busy machine must not lose a lease that no test lets run out


def add_dataset(world: lw.World, directory: Path) -> tuple[str, str]:
    """(file id, version id) of a validated upload by the submitter."""
    ids = {"dataset": new_id("ds_"), "file": new_id("file-"), "version": new_id("dsv_")}
    path = directory / f"{ids['version']}.jsonl"
    path.write_text('{"unit": "p1", "text": "a"}\n')
    now = now_us()
    with world.db.transaction() as session:
        session.add(
            Dataset(
                id=ids["dataset"],
                tenant_id=world.tenant,
                population_id=world.population,
                unit_field="patient_id",
                records_are_unique_patients=False,
                created_by=world.proposer,
                created_at=now,
            )
        )
        session.flush()
        session.add(
            File(
                id=ids["file"],
                tenant_id=world.tenant,
                uploaded_by=world.submitter,
                dataset_id=ids["dataset"],
                version_id=ids["version"],
                filename="notes.jsonl",
                kind="jsonl",
                unit_field="patient_id",
                size_bytes=1,
                sha256=RAW,
                status="processed",
                errors_total=0,
                blob_path=str(path),
                blob_sha256=RAW,
                created_at=now,
            )
        )
        session.flush()
        session.add(
            DatasetVersion(
                id=ids["version"],
                tenant_id=world.tenant,
                dataset_id=ids["dataset"],
                file_id=ids["file"],
                path=str(path),
                sha256=RAW,
                unit="patient",
                state="ready",
                created_at=now,
            )
        )
    return ids["file"], ids["version"]


def queue_job(
    world: lw.World,
    *,
    run_plan: RunPlan | None = None,
    version: str = "dsv_test",
    lease_seconds: int = LEASE_SECONDS,
    **changes: Any,
) -> str:
    """A queued job with its reservation, as creation leaves it."""
    run_plan = run_plan or lw.plan()
    job_id, now = new_id("ftjob-"), now_us()
    values: dict[str, Any] = {
        "id": job_id,
        "tenant_id": world.tenant,
        "created_by": world.submitter,
        "population_id": world.population,
        "dataset_version_id": version,
        "training_file_id": "file-test",
        "model": "medtext",
        "model_dir": "models/medtext",
        "job_dir": f"jobs/{job_id}",
        "labels": {},
        "spec": json.dumps({"hyperparameters": {}, "privacy": {}, "suffix": None}),
        "seed": run_plan.seed,
        "plan": canonical_json(run_plan.to_dict()).decode(),
        "plan_digest": run_plan.digest(),
        "alpha_population": 4,
        "priority": 0,
        "state": State.QUEUED.value,
        "reason_code": Reason.WAITING_FOR_WORKER.value,
        "cancel_requested": False,
        "epoch": 0,
        "attempt": 0,
        "lease_seconds": lease_seconds,
        "not_before": now,
        "rung_at": now,
        "progress_at": now,
        "step": 0,
        "window_no": 0,
        "created_at": now,
    }
    with world.db.transaction() as session:
        job = Job(**(values | changes))
        session.add(job)
        session.flush()
        lw.reserve(session, world, job=job_id, run_plan=run_plan)
        announce(session, job, now)
    return job_id


def claimed_job(world: lw.World, **changes: Any) -> leases.Claim:
    job_id = queue_job(world, **changes)
    claim = leases.claim(world.db, worker_id="wk_a", job_id=job_id, lease_seconds=LEASE_SECONDS)
    assert claim is not None
    return claim


def charge(world: lw.World, claim: leases.Claim, number: int, **changes: Any) -> ledger.Receipt:
    """What the journal does: fence first, then the ledger, in one transaction."""
    with world.db.transaction() as session:
        runtime.fence(session, claim.job_id, claim.epoch)
        return ledger.charge_window(
            session,
            job_id=claim.job_id,
            epoch=claim.epoch,
            charge=lw.window(number, epoch=claim.epoch, first_step=number * 10, **changes),
        )


def running_job(world: lw.World, **changes: Any) -> leases.Claim:
    claim = claimed_job(world, **changes)
    charge(world, claim, 0)
    return claim


def row(db: Database, job_id: str) -> Job:
    with db.reading() as session:
        job = session.get_one(Job, job_id)
        session.expunge(job)
        return job


def state(db: Database, job_id: str) -> str:
    return row(db, job_id).state


def expire_lease(db: Database, job_id: str) -> None:
    with db.transaction() as session:
        session.execute(
            update(Job).where(Job.id == job_id).values(lease_expires_at=now_us() - SECOND)
        )


def skip_back_off(db: Database, job_id: str) -> None:
    with db.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(not_before=now_us() - SECOND))


def entry_types(db: Database, job_id: str) -> list[str]:
    with db.reading() as session:
        statement = select(Entry.type).where(Entry.job_id == job_id).order_by(Entry.idx)
        return list(session.scalars(statement))


def history(db: Database, job_id: str) -> list[str]:
    """The states a job announced, in order."""
    with db.reading() as session:
        statement = select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq)
        found = [json.loads(event.data).get("state") for event in session.scalars(statement)]
    return [name for name in found if name]


def outbox(db: Database, job_id: str) -> list[tuple[str, str]]:
    with db.reading() as session:
        statement = select(Outbox).where(Outbox.job_id == job_id).order_by(Outbox.seq)
        return [(message.topic, message.state) for message in session.scalars(statement)]


def ask_to_cancel(session: Session, job_id: str) -> None:
    job = locked_job(session, job_id)
    job.cancel_requested = True
    change_state(
        session, job, State.CANCELLING, now=clock_us(session), reason=Reason.CANCEL_REQUESTED
    )


def ask_to_stop(session: Session, job_id: str) -> None:
    """What a cancel request does, from whatever live state."""
    job = locked_job(session, job_id)
    if job.state in LEASED:
        ask_to_cancel(session, job_id)
    elif job.state in CLAIMABLE:
        end_without_adapter(
            session, job, State.CANCELLED, now=clock_us(session), reason=Reason.CANCEL_REQUESTED
        )
