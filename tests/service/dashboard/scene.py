"""A hospital in the middle of its work, for pages to show: jobs running, waiting, ended."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update

from dp_core.plan import RunPlan
from service.app import create_app
from service.auth.keys import issue_key
from service.database import now_us
from service.datasets.models import File
from service.fleet import registry
from service.ids import new_id
from service.jobs import leases, runtime
from service.jobs.lifecycle import Reason
from service.jobs.models import Job
from service.jobs.runtime import ArtifactFile, Metric
from service.jobs.transitions import announce
from service.ledger import service as ledger
from service.settings import Settings
from tests.service.jobs.world import add_dataset
from tests.service.ledger import world as w

WORKER = "wk_demo"
STEPS, WINDOW_STEPS = 120, 10
LEASE_SECONDS = 3600  # the scene outlives a whole test run; nobody renews its leases
SPEC = '{"hyperparameters": {"batch_size": 900}, "suffix": null}'
GROUPS = [
    f"base_model.model.transformer.h.{layer}.{module}.{side}"
    for layer in range(4)
    for module in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    for side in "AB"
]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The world, one key text for each role, and the ids of jobs, dataset and file."""

    world: w.World
    settings: Settings
    keys: dict[str, str]
    running: str
    waiting: str
    released: str
    dataset: str
    file: str

    @cached_property
    def app(self) -> FastAPI:
        return create_app(self.settings, self.world.db)

    def client(self) -> TestClient:
        return TestClient(self.app, base_url="http://127.0.0.1", follow_redirects=False)


@contextmanager
def open_scene(directory: Path) -> Iterator[Scene]:
    """Everything on SQLite below `directory`."""
    with w.sqlite_database(directory) as db:
        world = w.open_world(db, epsilon="12", validation_fraction="0.1")
        w.add_population(world, code="stroke-unit")
        registry.join(
            db, WORKER, device="CPU, 2 cores", version="0.1.0", beat_seconds=LEASE_SECONDS
        )
        run_plan = w.plan(steps=STEPS, margin_steps=20, validation=True)
        released = _finished_job(world, run_plan, directory)
        running = _job(world, run_plan)
        _run(world, running, run_plan, windows=7)
        waiting = _job(world, run_plan)
        people = {"steward": world.proposer, "submitter": world.submitter}
        people |= {"auditor": world.auditor, "admin": world.admin}
        with db.transaction() as session:
            keys = {role: issue_key(session, who).text for role, who in people.items()}
        settings = Settings(data_dir=directory / "data")
        file, _ = add_dataset(world, directory)
        with db.reading() as session:
            dataset = session.get_one(File, file).dataset_id
        assert dataset is not None
        yield Scene(
            world=world,
            settings=settings,
            keys=keys,
            running=running,
            waiting=waiting,
            released=released,
            dataset=dataset,
            file=file,
        )


def _job(world: w.World, run_plan: RunPlan) -> str:
    job_id, now = new_id("ftjob-"), now_us()
    with world.db.transaction() as session:
        job = Job(
            id=job_id,
            tenant_id=world.tenant,
            created_by=world.submitter,
            population_id=world.population,
            dataset_version_id="dsv_test",
            training_file_id="file-test",
            model="medtext-gpt2-4m",
            model_dir="models",
            job_dir="jobs",
            spec=SPEC,
            labels={},
            seed=run_plan.seed,
            plan=_text(run_plan),
            plan_digest=run_plan.digest(),
            alpha_population=4,
            priority=0,
            state="queued",
            reason_code="waiting_for_worker",
            cancel_requested=False,
            epoch=0,
            attempt=0,
            lease_seconds=LEASE_SECONDS,
            not_before=0,
            rung_at=0,
            progress_at=now,
            step=0,
            window_no=0,
            created_at=now,
        )
        session.add(job)
        session.flush()
        w.reserve(session, world, job=job_id, run_plan=run_plan)
        announce(session, job, now)
    return job_id


def _text(run_plan: RunPlan) -> str:
    from dp_core.events import canonical_json

    return canonical_json(run_plan.to_dict()).decode()


def _run(world: w.World, job_id: str, run_plan: RunPlan, *, windows: int) -> int:
    claim = runtime.claim(world.db, worker_id=WORKER, job_id=job_id, lease_seconds=LEASE_SECONDS)
    assert claim is not None
    _evaluate(world, job_id, claim.epoch, run_plan, number=0)
    for number in range(windows):
        _charge(
            world, job_id, claim.epoch, run_plan, number=number, first_step=number * WINDOW_STEPS
        )
        _done(world, job_id, claim.epoch, number, step=(number + 1) * WINDOW_STEPS)
        if number < 6:
            _evaluate(world, job_id, claim.epoch, run_plan, number=number + 1)
    return claim.epoch


def _charge(
    world: w.World, job_id: str, epoch: int, run_plan: RunPlan, *, number: int, first_step: int
) -> None:
    charge = w.window(number, epoch=epoch, first_step=first_step, run_plan=run_plan)
    with world.db.transaction() as session:
        runtime.fence(session, job_id, epoch)
        ledger.charge_window(session, job_id=job_id, epoch=epoch, charge=charge)


def _done(world: w.World, job_id: str, epoch: int, number: int, *, step: int) -> None:
    with world.db.transaction() as session:
        ledger.finish_window(
            session, job_id=job_id, epoch=epoch, window=number, steps_run=WINDOW_STEPS
        )
    runtime.record_checkpoint(
        world.db, job_id, epoch, step=step, window=number, directory="", sha256="0" * 64
    )
    _report(world, job_id, epoch, number, step=step)


def interrupted_job(world: w.World) -> str:
    """A running job that lost its first attempt in window 3, charged again by the second."""
    run_plan = w.plan(steps=STEPS, margin_steps=20, validation=True)
    job_id = _job(world, run_plan)
    epoch = _run(world, job_id, run_plan, windows=3)
    _charge(world, job_id, epoch, run_plan, number=3, first_step=30)
    leases.fail_attempt(world.db, job_id, epoch, Reason.TRAINER_KILLED, permanent=False)
    with world.db.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(not_before=0))
    claim = runtime.claim(world.db, worker_id=WORKER, job_id=job_id, lease_seconds=LEASE_SECONDS)
    assert claim is not None
    for number in (4, 5):
        _charge(world, job_id, claim.epoch, run_plan, number=number, first_step=10 * number - 10)
        _done(world, job_id, claim.epoch, number, step=10 * number)
    return job_id


def _evaluate(world: w.World, job_id: str, epoch: int, run_plan: RunPlan, *, number: int) -> None:
    step = number * WINDOW_STEPS
    with world.db.transaction() as session:
        runtime.fence(session, job_id, epoch)
        query = w.query(number, epoch=epoch, run_plan=run_plan, step=step)
        receipt = ledger.charge_query(session, job_id=job_id, epoch=epoch, charge=query)
    loss = 3.15 + 1.35 * math.exp(-step / 22) + 0.03 * math.sin(step)
    runtime.record_evaluation(
        world.db, job_id, epoch, step=step, loss=f"{loss:.4f}", std="0.062",
        reference=receipt.reference,
    )  # fmt: skip


def _report(world: w.World, job_id: str, epoch: int, number: int, *, step: int) -> None:
    loss = 3.2 + 1.3 * math.exp(-step / 24) + 0.05 * math.cos(3 * step)
    metrics = [
        Metric(name="loss_noised", step=step, value_text=f"{loss:.4f}"),
        Metric(name="noise_multiplier", step=step, value_text="1.000"),
    ]
    for index, group in enumerate(GROUPS):
        clip = 0.05 * math.exp(0.7 * math.sin(index) + 0.1 * number * math.cos(index / 3))
        share = (1 + 0.5 * math.sin(index / 2 + number / 3)) / len(GROUPS)
        metrics += [
            Metric(name="clip_norm", group=group, step=step, value_text=f"{clip:.5f}"),
            Metric(name="noise_share", group=group, step=step, value_text=f"{share:.5f}"),
            Metric(name="rate_factor", group=group, step=step, value_text=f"{20 * clip:.4f}"),
        ]
    runtime.record_window(
        world.db, job_id, epoch, step=step, window=number, metrics=metrics,
        event_message=f"Window {number} done: step {step} of {STEPS}, "
        f"noised training loss {loss:.3f}.",
        event_data={"step": step, "loss_noised": f"{loss:.4f}", "loss_noise_std": "0.04"},
    )  # fmt: skip


def _finished_job(world: w.World, run_plan: RunPlan, directory: Path) -> str:
    job_id = _job(world, run_plan)
    epoch = _run(world, job_id, run_plan, windows=12)
    files = []
    for name, content in (
        ("adapter_model.safetensors", b"\0" * 4096),
        ("adapter_config.json", b"{}"),
    ):
        path = directory / name
        path.write_bytes(content)
        files.append(
            ArtifactFile(
                name=name,
                path=str(path),
                sha256=hashlib.sha256(content).hexdigest(),
                bytes=len(content),
            )
        )
    runtime.finish(
        world.db, job_id, epoch, final_state="succeeded", artifacts=files,
        certificate=w.claim_of(run_plan, STEPS), reason_code=None,
    )  # fmt: skip
    w.publish(world, job_id)
    w.sign_log(world, directory / "data")
    return job_id
