"""The real trainer process on the packaged model: to the end, and through `kill -9`.

One attempt is `python -m service.worker.runner`, as the supervisor starts it; the oracle is
the ledger's own check of itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load
from sqlalchemy import select, update

from dp_core.audit.report import REQUIRED_CONTROLS
from dp_core.audit.saved import (
    REPORT_FILE,
    RUN_REPORT_FILE,
    SCORES_OF,
    SavedAudit,
    differences,
)
from dp_core.model_files import model_digest
from dp_core.noise_schedule import NoiseShape
from dp_core.plan import AdapterPlan, RunPlan
from dp_core.planner import PlanRequest, make_run_plan
from service.artifacts.service import ADAPTER_PREFIX, of_job, stored_file
from service.audits.control_faults import control_faults
from service.audits.controls import write_controls
from service.certificates.models import Certificate
from service.database import Database, now_us
from service.datasets import storage
from service.datasets.models import DatasetVersion, File
from service.demo import models, patients
from service.jobs import leases, runtime
from service.jobs.at_rest import seal_old_files
from service.jobs.models import Job, JobCheckpoint, JobEvent, JobMetric
from service.ledger import fsck, repository
from service.ledger import service as ledger
from service.sealing.keyring import Keyring
from service.sealing.stream import is_sealed
from service.settings import Settings
from service.worker.exit_codes import ExitCode
from service.worker.planting import device_class
from service.worker.supervisor import Supervisor, runner_command
from tests.service.jobs import world as jw
from tests.service.ledger import world as lw

PATIENTS = 120
WORKER = "wk_test"
CANARY = "qzcanaryxk"  # in every note
LEASE_SECONDS = 600  # no test waits for its end; on a busy machine it must not come by itself


def small_plan(version: str, controller: str, shape: NoiseShape | None = None) -> RunPlan:
    return make_run_plan(
        PlanRequest(
            target_epsilon="2",
            delta="1e-6",
            patients_public=100_000,  # the test world's declaration
            validation_fraction="0.1",
            batch_size=9000,  # q 0.1: about ten of our patients a step
            steps_max=6,
            interval_steps=2,
            noise_shape=shape,
            tokens_per_row=64,
            adapter=AdapterPlan(r=2, alpha=4),
            seed=11,
            controller_type=controller,
            base_model_digest=model_digest(models.path()),
            dataset_version=version,
        )
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, lease_seconds=LEASE_SECONDS)


@pytest.fixture
def world(settings: Settings, tmp_path: Path) -> Iterator[lw.World]:
    db = Database(settings.resolved_database_url)
    import service.models

    service.models.metadata.create_all(db.engine)
    yield lw.open_world(db, validation_fraction="0.1")
    db.dispose()


def queue_real_job(
    world: lw.World,
    directory: Path,
    controller: str = "rldp",
    shape: NoiseShape | None = None,
) -> str:
    _, version = jw.add_dataset(world, directory)
    rows = patients.records("private", PATIENTS)
    content = "".join(
        json.dumps({"unit": r["patient_id"], "text": f"{CANARY} {r['text']}"}) + "\n" for r in rows
    ).encode()
    with world.db.transaction() as session:
        row = session.get_one(DatasetVersion, version)
        file = session.get_one(File, row.file_id)
        Path(row.path).write_bytes(content)
        row.sha256 = file.blob_sha256 = hashlib.sha256(content).hexdigest()
    return jw.queue_job(
        world,
        run_plan=small_plan(version, controller, shape),
        version=version,
        lease_seconds=LEASE_SECONDS,
        model_dir=str(models.path()),
        job_dir=str(directory / "job"),
    )


def start_trainer(settings: Settings, claim: leases.Claim) -> subprocess.Popen[bytes]:
    environment = os.environ | {"RLDP_DATA_DIR": str(settings.data_dir), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        runner_command(claim),
        env=environment,
        stderr=subprocess.PIPE,
    )


def claimed(world: lw.World, job_id: str) -> leases.Claim:
    claim = leases.claim(world.db, worker_id=WORKER, job_id=job_id, lease_seconds=LEASE_SECONDS)
    assert claim is not None
    return claim


def wait_for_checkpoint(world: lw.World, job_id: str) -> None:
    deadline = time.monotonic() + 240
    while runtime.latest_checkpoint(world.db, job_id) is None:
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.1)


def test_an_attempt_runs_to_a_certified_adapter(
    world: lw.World, settings: Settings, tmp_path: Path
) -> None:
    """On sealed notes: no file under the data folder holds one in clear, at no time."""
    job_id = queue_real_job(world, tmp_path)
    storage.prepare(settings.files_dir)
    assert seal_old_files(world.db, settings).uploads == 1
    controls_found(settings)
    supervisor = Supervisor(
        db=world.db, settings=settings, worker_id=WORKER, claim=claimed(world, job_id)
    )
    with watched_for(CANARY, tmp_path) as watch:
        state = supervisor.run()
    assert watch.looks > 10 and watch.found == set()
    assert state is not None
    assert state.value == "succeeded"
    statement_numbers(world, job_id, windows=3, steps=6)
    adapter = opened_adapter(world, settings, job_id)
    tensors = load(adapter["adapter_model.safetensors"])
    assert len(tensors) == 4 * 4 * 2
    assert all(t.abs().sum() > 0 for t in tensors.values()), "B left zero, A was kept"
    with world.db.reading() as session:
        certificate = session.get_one(Certificate, job_id)
        body = json.loads(certificate.body)
        subjects = {s["name"]: s["digest"]["sha256"] for s in body["subject"]}
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            assert subjects[name] == hashlib.sha256(adapter[name]).hexdigest()
        assert certificate.verdict == "conditional"
        names = set(session.scalars(select(JobMetric.name).where(JobMetric.job_id == job_id)))
    assert {"loss_noised", "validation_loss_noised", "clip_norm", "noise_share"} <= names
    assert str(tmp_path).encode() not in adapter["adapter_config.json"]
    certified_audit(tmp_path / "job" / "audit-1", body, subjects)


@dataclass(kw_only=True)
class Watch:
    """How often a folder was searched, and the files that held the text."""

    looks: int = 0
    found: set[str] = field(default_factory=set)


@contextmanager
def watched_for(told: str, folder: Path) -> Iterator[Watch]:
    """Searches every file below a folder again and again, once more at the end."""
    watch, over = Watch(), threading.Event()

    def look() -> None:
        for path in folder.rglob("*"):
            with suppress(OSError):  # gone since it was listed
                if path.is_file() and told.encode() in path.read_bytes():
                    watch.found.add(path.name)
        watch.looks += 1

    def watching() -> None:
        while not over.wait(0.2):
            look()

    thread = threading.Thread(target=watching)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()
        look()


def opened_adapter(world: lw.World, settings: Settings, job_id: str) -> dict[str, bytes]:
    """The adapter's files as a release gives them; on the disk they lie sealed."""
    files = {}
    with world.db.reading() as session:
        secret = Keyring.of(settings).find(session, job_id)
        for artifact in of_job(session, job_id):
            if artifact.name.startswith(ADAPTER_PREFIX):
                assert is_sealed(Path(artifact.path).read_bytes())
                with stored_file(artifact, secret).open() as stream:
                    files[artifact.name] = stream.read()
    return files


def certified_audit(directory: Path, certificate: dict[str, Any], files: dict[str, str]) -> None:
    """The attempt attacked itself first and its own steps then; the certificate says exactly that.

    By itself the pre-flight passes nothing.
    """
    told = certificate["predicate"]["evidence"]["empirical_audit"]
    for report, summary in ((REPORT_FILE, told["preflight"]), (RUN_REPORT_FILE, told)):
        content, scores = ((directory / name).read_bytes() for name in (report, SCORES_OF[report]))
        assert summary["report_sha256"] == hashlib.sha256(content).hexdigest() == files[report]
        digest = hashlib.sha256(scores).hexdigest()
        assert summary["scores_sha256"] == digest == files[SCORES_OF[report]]
        assert summary["self_test"] == "PASS"
        assert differences(SavedAudit.from_json(content), scores) == ()
    assert (told["verdict"], told["tier"], told["steps"]) == ("PASS", "T2", 6)
    assert told["reasons"] == []
    assert set(REQUIRED_CONTROLS) <= set(told["controls_tripped"])
    before = SavedAudit.from_json((directory / REPORT_FILE).read_bytes())
    assert before.report.verdict == "INCONCLUSIVE"


def controls_found(settings: Settings) -> None:
    """As a worker leaves them that has planted the faults."""
    found = [{"name": name, "min_p": 0.0} for name in REQUIRED_CONTROLS]
    document = {"controls": found, "correct": [], "false_alarms": 0, "missing": []}
    write_controls(settings, device_class(), document)


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_the_first_job_of_a_release_plants_the_faults_itself_and_passes(
    world: lw.World, settings: Settings, tmp_path: Path
) -> None:
    """Nobody has run `rldp audit --controls`, and no worker was idle before."""
    job_id = queue_real_job(world, tmp_path)
    state = Supervisor(
        db=world.db,
        settings=settings.model_copy(update={"audit_controls": True}),
        worker_id=WORKER,
        claim=claimed(world, job_id),
    ).run()
    assert state is not None and state.value == "succeeded"
    with world.db.reading() as session:
        told = json.loads(session.get_one(Certificate, job_id).body)["predicate"]["evidence"]
        said = session.scalars(select(JobEvent.message).where(JobEvent.job_id == job_id)).all()
    assert (told["empirical_audit"]["verdict"], told["empirical_audit"]["reasons"]) == ("PASS", [])
    assert len(told["empirical_audit"]["controls_tripped"]) == 10
    assert sum("Known faults are planted" in message for message in said) == 1
    assert control_faults(tmp_path) == ()


@pytest.mark.ci
@pytest.mark.timeout(900)
def test_a_worker_that_leaves_while_faults_are_planted_costs_no_step_and_no_attempt(
    world: lw.World, settings: Settings, tmp_path: Path
) -> None:
    """Every step is paid and saved by then: the next worker plants, and certifies them."""
    job_id = queue_real_job(world, tmp_path, controller="reference")
    wanting = settings.model_copy(update={"audit_controls": True})
    leaving = Supervisor(
        db=world.db, settings=wanting, worker_id=WORKER, claim=claimed(world, job_id)
    )
    watch = threading.Thread(target=_leave_once_planting, args=(world, job_id, leaving.stop))
    watch.start()
    state = leaving.run()
    watch.join()
    assert state is not None and state.value == "recovering"
    with world.db.reading() as session:
        paid = ledger.position(session, job_id=job_id, epoch=1).steps_started
        assert session.get_one(Job, job_id).pauses == 1, "an attempt that is nobody's fault"
    controls_found(wanting)
    again = Supervisor(
        db=world.db, settings=wanting, worker_id=WORKER, claim=claimed(world, job_id)
    ).run()
    assert again is not None and again.value == "succeeded"
    with world.db.reading() as session:
        told = json.loads(session.get_one(Certificate, job_id).body)["predicate"]["evidence"]
    assert (told["empirical_audit"]["verdict"], told["empirical_audit"]["steps"]) == ("PASS", paid)


def _leave_once_planting(world: lw.World, job_id: str, stop: threading.Event) -> None:
    asked = select(JobEvent.message).where(JobEvent.job_id == job_id)
    until = time.monotonic() + 600
    while time.monotonic() < until:
        with world.db.reading() as session:
            if any("Known faults" in message for message in session.scalars(asked)):
                break
        time.sleep(0.2)
    stop.set()


def statement_numbers(world: lw.World, job_id: str, *, windows: int, steps: int) -> None:
    """The ledger adds up, and charged what the run did."""
    with world.db.reading() as session:
        assert fsck.check_all(session) == []
        charged = ledger.job_statement(session, job_id)["windows"]
    assert [w["window"] for w in charged] == list(range(windows))
    assert sum(w["steps"] for w in charged) == steps


def test_a_killed_trainer_resumes_and_every_window_is_paid_once(
    world: lw.World, settings: Settings, tmp_path: Path
) -> None:
    falling = NoiseShape(factors=("1", "0.8", "0.6"))
    job_id = queue_real_job(world, tmp_path, shape=falling)
    first = start_trainer(settings, claimed(world, job_id))
    wait_for_checkpoint(world, job_id)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    with world.db.reading() as session:
        saved = session.scalars(select(JobCheckpoint).where(JobCheckpoint.job_id == job_id)).all()
        before = ledger.position(session, job_id=job_id, epoch=1)
    resumed_from = saved[-1].step
    with world.db.transaction() as session:  # the lease runs out
        session.execute(
            update(Job).where(Job.id == job_id).values(lease_expires_at=now_us() - 1_000_000)
        )
    leases.fail_attempt(world.db, job_id, 1, "lease_expired", False)
    jw.skip_back_off(world.db, job_id)
    second = start_trainer(settings, claimed(world, job_id))
    _, errors = second.communicate(timeout=280)
    assert second.returncode == ExitCode.DONE, errors
    redone = -(-(6 - resumed_from) // 2)
    statement_numbers(
        world,
        job_id,
        windows=before.next_chunk + redone,
        steps=before.steps_started + 6 - resumed_from,
    )
    with world.db.reading() as session:
        plan = RunPlan.from_dict(json.loads(session.get_one(Job, job_id).plan))
        bodies = repository.entries_of_job(session, job_id)
    levels = [b["data"]["level"] for b in bodies if b["type"] == "window.charge"]
    assert levels == [plan.worst_schedule.at(2 * i)[0] for i in range(len(levels))]
    assert len(set(levels)) == 3, "redone windows took the levels of their later places"


def test_a_stop_signal_ends_between_steps_and_leaves_the_adapter_unpublished(
    world: lw.World, settings: Settings, tmp_path: Path
) -> None:
    job_id = queue_real_job(world, tmp_path, controller="reference")
    trainer = start_trainer(settings, claimed(world, job_id))
    wait_for_checkpoint(world, job_id)
    trainer.terminate()
    trainer.communicate(timeout=60)
    assert trainer.returncode == ExitCode.CANCELLED
    assert not (tmp_path / "job" / "adapter-1").exists()


def test_a_changed_dataset_is_refused_before_a_charge(
    world: lw.World, settings: Settings, tmp_path: Path
) -> None:
    job_id = queue_real_job(world, tmp_path, controller="reference")
    with world.db.reading() as session:
        job = session.get_one(Job, job_id)
        path = Path(session.get_one(DatasetVersion, job.dataset_version_id).path)
    path.write_text(path.read_text() + '{"unit": "intruder", "text": "SECRETNOTE"}\n')
    trainer = start_trainer(settings, claimed(world, job_id))
    _, errors = trainer.communicate(timeout=120)
    assert trainer.returncode == ExitCode.DATA_UNREADABLE
    assert b"SECRETNOTE" not in errors
    with world.db.reading() as session:
        assert ledger.position(session, job_id=job_id, epoch=1).steps_started == 0


def test_a_base_model_other_than_planned_is_refused_before_a_charge(
    world: lw.World, settings: Settings, tmp_path: Path
) -> None:
    job_id = queue_real_job(world, tmp_path, controller="reference")
    other = tmp_path / "model"
    shutil.copytree(models.path(), other)
    (other / "tokenizer_config.json").write_text("{}")
    with world.db.transaction() as session:
        session.get_one(Job, job_id).model_dir = str(other)
    trainer = start_trainer(settings, claimed(world, job_id))
    trainer.communicate(timeout=120)
    assert trainer.returncode == ExitCode.MODEL_REFUSED
    with world.db.reading() as session:
        assert ledger.position(session, job_id=job_id, epoch=1).steps_started == 0
