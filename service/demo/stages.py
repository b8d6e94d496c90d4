"""The stages of the guided run, each a few calls of the API and a few lines on the screen."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dp_core.plan import RunPlan
from dp_core.planner import PlanRequest, default_delta, make_run_plan
from service.demo import models, patients
from service.demo.budget import grant_for
from service.demo.client import DemoClient, DemoError
from service.demo.records import Converted, Source, write_upload
from service.demo.screens import HeldOutLoss, Screen

EPSILON = "8"
STEPS = 48
STEPS_PER_MINUTE = 11  # on two CPU cores, with the packaged model
BATCH_SIZE = 128  # patients a step, on average
INTERVAL_STEPS = 6
TOKENS_PER_ROW = 224  # nine notes in ten fit into one row
VALIDATION_FRACTION = "0.1"
SYNTHETIC_PATIENTS = 6000
POLL_SECONDS = 1.0
ENDED = ("succeeded", "budget_stopped", "failed", "cancelled")
ARTIFACTS = ("adapter_model.safetensors", "adapter_config.json", "certificate.json")
SYNTHETIC = Source(
    name=f"{SYNTHETIC_PATIENTS} synthetic patients, made here",
    each_record_is_another_patient=False,
    patients_published=SYNTHETIC_PATIENTS,
    prompt="Admission of a 74-year-old woman with",
)


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What the operator asked for. `patients`: the declared lower bound, None = published."""

    data: Path | None
    epsilon: str
    steps: int
    work_dir: Path
    url: str | None
    keys: Path | None
    signing_keys: Path | None
    patients: int | None
    keep: bool
    show_refusals: bool


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An upload file and what is publicly known about its patients."""

    path: Path
    source: Source
    patients_public: int
    basis: str

    @property
    def unit(self) -> str:
        return "record" if self.source.each_record_is_another_patient else "patient"


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Population with its grant, dataset and uploaded file: all a job refers to."""

    population: str
    dataset: str
    file: str
    limit: str


def prepare_records(options: DemoOptions, screen: Screen, run_dir: Path) -> Prepared:
    """The upload file, synthetic or converted, and the declared number of patients."""
    path = run_dir / "records.jsonl"
    if options.data is None:
        patients.write_jsonl(patients.records("private", SYNTHETIC_PATIENTS), path)
        screen.stage("Records", f"{SYNTHETIC.name}, 1 to 5 encounters each")
        return Prepared(
            path=path, source=SYNTHETIC, patients_public=SYNTHETIC_PATIENTS, basis="synthetic"
        )
    converted = write_upload(options.data, path)
    source = converted.source
    screen.stage("Records", source.name)
    declared = options.patients or source.patients_published
    if declared is not None and declared > converted.patients:
        raise DemoError("The file has fewer patients than declared. Lower --patients.")
    if declared is None:
        declared = _rounded_down(converted)
        screen.warn(
            "No public number of patients was given; this run takes one from the file, rounded "
            "down to one digit. For a real release state one you may publish: --patients."
        )
    screen.note(f"declared: at least {declared:,} patients, one unit is a {_unit_words(source)}")
    basis = "estimate" if options.patients is None else "registry"
    return Prepared(path=path, source=source, patients_public=declared, basis=basis)


def _unit_words(source: Source) -> str:
    if source.each_record_is_another_patient:
        return "record (stated: each record is another patient)"
    return "patient with all records"


def _rounded_down(converted: Converted) -> int:
    digits = len(str(converted.patients)) - 1
    return int(converted.patients // 10**digits * 10**digits)


def plan_of(options: DemoOptions, prepared: Prepared) -> RunPlan:
    """The plan the service will make of `job_request`; only its price is used here."""
    return make_run_plan(
        PlanRequest(
            target_epsilon=options.epsilon,
            delta=default_delta(prepared.patients_public),
            patients_public=prepared.patients_public,
            validation_fraction=VALIDATION_FRACTION,
            batch_size=BATCH_SIZE,
            steps_max=options.steps,
            interval_steps=INTERVAL_STEPS,
            seed=0,
            controller_type="rldp",
            base_model_digest="",
            dataset_version="",
        )
    )


def open_ground(
    client: DemoClient, options: DemoOptions, screen: Screen, prepared: Prepared, run_dir: Path
) -> Ground:
    wanted = grant_for(plan_of(options, prepared))
    limit = f"ε {wanted.epsilon} at δ {wanted.delta}"
    screen.stage("Population and budget", f"{limit}: RDP filter at order {wanted.alpha_star}")
    population = client.call(
        "steward_1",
        "POST",
        "/populations",
        json={
            "code": f"demo-{run_dir.name}",
            "unit": prepared.unit,
            "patients_public": prepared.patients_public,
            "patients_public_basis": prepared.basis,
            "validation_fraction": VALIDATION_FRACTION,
            "overlap_with": [],
        },
    )
    grant = client.call(
        "steward_1",
        "POST",
        "/grants",
        json={
            "population": population["id"],
            "epsilon": wanted.epsilon,
            "delta": wanted.delta,
            "alpha_star": wanted.alpha_star,
            "reason_code": "study_start",
        },
    )
    granted = client.approve_twice("grants", grant)
    screen.note(f"grant signed by two stewards: {granted['state']}")
    dataset = client.call(
        "steward_1",
        "POST",
        "/datasets",
        json={
            "population": population["id"],
            "unit_field": "patient_id",
            "records_are_unique_patients": prepared.source.each_record_is_another_patient,
        },
    )
    screen.stage("Upload", "every row is checked")
    file = client.upload(prepared.path, dataset=dataset["id"])
    if file["status"] != "processed":
        raise DemoError(
            f"The file did not pass. GET /v1/files/{file['id']}/validation lists the faults."
        )
    return Ground(population=population["id"], dataset=dataset["id"], file=file["id"], limit=limit)


def job_request(options: DemoOptions, file_id: str) -> dict[str, Any]:
    """The body of the job: OpenAI's fields and our own three objects."""
    return {
        "model": models.MODEL_NAME,
        "training_file": file_id,
        "suffix": "demo",
        "seed": 7,
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": {"batch_size": BATCH_SIZE}},
        },
        "privacy": {
            "target_epsilon": options.epsilon,
            "steps_max": options.steps,
            "tokens_per_row": TOKENS_PER_ROW,
        },
        "controller": {"type": "rldp", "interval_steps": INTERVAL_STEPS},
    }


def watch(
    client: DemoClient, screen: Screen, job: dict[str, Any]
) -> tuple[dict[str, Any], list[HeldOutLoss]]:
    """The live bar, until the job ends."""
    path = f"/fine_tuning/jobs/{job['id']}"
    losses: list[HeldOutLoss] = []
    with screen.progress(job["progress"]["steps_max"]) as bar:
        while True:
            job = client.call("submitter", "GET", path)
            losses = _losses(client, path) or losses
            bar.show(job, losses)
            if job["state"] in ENDED:
                break
            time.sleep(POLL_SECONDS)
    if job["state"] not in ("succeeded", "budget_stopped"):
        raise DemoError(
            f"The job ended as {job['state']}: {job['status_message']} Its charged windows stay "
            "charged. Read its events on the dashboard or in the service's log, then try again."
        )
    screen.note(f"{job['state']}: {job['status_message']}")
    return job, losses


def _losses(client: DemoClient, path: str) -> list[HeldOutLoss]:
    """Released held-out losses by step, from the job's events."""
    events = client.call("submitter", "GET", f"{path}/events", params={"limit": 100})["data"]
    found = {
        event["data"]["step"]: HeldOutLoss(
            step=int(event["data"]["step"]),
            value=float(event["data"]["validation_loss_noised"]),
            std=float(event["data"]["noise_std"]),
        )
        for event in events
        if "validation_loss_noised" in event["data"]
    }
    return [found[step] for step in sorted(found)]


def release(client: DemoClient, screen: Screen, job_id: str) -> None:
    screen.stage("Release")
    release = client.call("steward_1", "POST", "/releases", json={"job": job_id})
    published = client.approve_twice("releases", release)
    reasons = ", ".join(published["reasons"]) or "none"
    screen.note(
        f"signed by two stewards: {published['state']}; verdict {published['verdict']} ({reasons})"
    )


def download(client: DemoClient, job_id: str, out: Path) -> None:
    for name in ARTIFACTS:
        client.download_when_ready(
            "submitter", f"/fine_tuning/jobs/{job_id}/artifacts/{name}", out / name
        )
    client.download("auditor", "/ledger/bundle", out / "ledger-bundle.zip")


def verify(screen: Screen, out: Path) -> None:
    screen.stage("Check by an outsider's program", "rldp verify recomputes everything offline")
    command = [sys.executable, "-m", "service.cli", "verify", str(out / "ledger-bundle.zip")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in (done.stdout + done.stderr).strip().splitlines():
        screen.note(line)
    if done.returncode not in (0, 3):
        raise DemoError(f"The verifier found a fault (exit code {done.returncode}).")


def sentence_before_and_after(screen: Screen, prompt: str, out: Path) -> dict[str, str] | None:
    command = [sys.executable, "-m", "service.demo.sentence", "--model", str(models.path())]
    command += ["--adapter", str(out), "--prompt", prompt]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        screen.warn(
            "The sentence could not be made; the adapter's files are in place all the same."
        )
        return None
    sentence: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return sentence
