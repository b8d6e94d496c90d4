"""`rldp audit --controls`: plants every fault on this installation and keeps what rang."""

from __future__ import annotations

import dataclasses
from typing import Any

import typer

from service.cli.audit import AuditExit
from service.settings import Settings

TARGET_EPSILON, DELTA, PATIENTS, BATCH, STEPS = "2", "1e-5", 4000, 103, 400  # q = .0258


def run_controls(settings: Settings) -> AuditExit:
    """Every fault, then the correct engine, on the packaged base model. Reads no data.

    NO_FAULT: each required control tripped and the correct runs stayed silent.
    """
    from dp_core.audit.faults import CORRECT_RUNS, FAULTS, run_correct, run_fault
    from dp_core.audit.report import CONTROL_LEVEL, REQUIRED_CONTROLS
    from service.audits.controls import write_controls

    material = _material(settings)
    told, missing = [], set(REQUIRED_CONTROLS)
    typer.echo(f"{'planted fault':22} {'adjusted p':>10} {'rang at step':>13}")
    for seed, fault in enumerate(FAULTS):
        result = run_fault(fault, seed=seed, **material)
        told.append(dataclasses.asdict(result))
        missing -= {fault.name} if result.has_tripped else set()
        typer.echo(f"{fault.name:22} {result.min_p:10.1e} {result.rang_at_step or 'not':>13}")
    correct = [run_correct(seed=100 + run, **material) for run in range(CORRECT_RUNS)]
    alarms = sum(run.has_tripped for run in correct)
    typer.echo(
        f"{'correct, ' + str(CORRECT_RUNS) + ' runs':22} {min(r.min_p for r in correct):10.1e}"
    )
    path = write_controls(
        settings,
        {
            "controls": told,
            "correct": [dataclasses.asdict(run) for run in correct],
            "false_alarms": alarms,
            "level": str(CONTROL_LEVEL),
            "plan": {
                "delta": DELTA,
                "epsilon": TARGET_EPSILON,
                "q": material["plan"].sampling_probability,
            },
        },
    )
    typer.echo(f"\nKept: {path}. Audits of this code and image cite it from now on.")
    for name in sorted(missing):
        typer.echo(f"Required and not tripped: {name}. No audit passes here.", err=True)
    return AuditExit.FAULT if missing or alarms else AuditExit.NO_FAULT


def _material(settings: Settings) -> dict[str, Any]:
    """Plan and adapted base of the controls: what `run_fault` and `run_correct` take."""
    from transformers.utils import logging as transformers_logging

    from dp_core.base_model import load_base
    from dp_core.lora import attach_adapters
    from dp_core.model_files import model_digest
    from dp_core.plan import AdapterPlan
    from dp_core.planner import PlanRequest, make_run_plan
    from service.demo import models
    from service.worker.inputs import performance_of

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    performance, folder = performance_of(settings), models.path()
    plan = make_run_plan(
        PlanRequest(
            target_epsilon=TARGET_EPSILON,
            delta=DELTA,
            patients_public=PATIENTS,
            batch_size=BATCH,
            steps_max=STEPS,
            interval_steps=4,
            tokens_per_row=32,
            validation_fraction="0",
            adapter=AdapterPlan(r=4, alpha=8),
            seed=1,
            controller_type="reference",
            base_model_digest=model_digest(folder),
            dataset_version="synthetic",
        )
    )
    base, _ = load_base(folder, performance)
    model = attach_adapters(base, plan.adapter, seed=plan.seed, performance=performance)
    return {
        "plan": plan,
        "model": model.to(performance.device),
        "vocabulary": int(base.config.vocab_size),
        "performance": performance,
    }
