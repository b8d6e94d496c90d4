"""A small real job on the packaged model, prepared through the API as the demo does it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from service.demo import patients, stages
from service.demo.client import DemoClient
from service.demo.screens import Screen

PATIENTS = 400
STEPS, WINDOW = 8, 2


def quiet_screen() -> Screen:
    return Screen(Console(file=io.StringIO()))


def open_ground(client: DemoClient, directory: Path) -> stages.Ground:
    """A population with a grant, a dataset and an uploaded file of synthetic patients."""
    path = directory / "records.jsonl"
    patients.write_jsonl(patients.records("private", PATIENTS), path)
    prepared = stages.Prepared(
        path=path, source=stages.SYNTHETIC, patients_public=PATIENTS, basis="synthetic"
    )
    options = stages.DemoOptions(
        data=None,
        epsilon="8",
        steps=48,
        work_dir=directory,
        url=None,
        keys=None,
        signing_keys=None,
        patients=PATIENTS,
        keep=False,
        show_refusals=False,
    )
    return stages.open_ground(client, options, quiet_screen(), prepared, directory)


def request_for(file_id: str, *, steps: int = STEPS) -> dict[str, Any]:
    return {
        "model": "medtext-gpt2-4m",
        "training_file": file_id,
        "seed": 7,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 12}}},
        "privacy": {"target_epsilon": "2", "steps_max": steps, "tokens_per_row": 96},
        "controller": {"type": "rldp", "interval_steps": WINDOW},
        "adapter": {"r": 4},
    }
