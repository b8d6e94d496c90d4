"""Plants known faults in this installation's own engine and keeps what the audit found.

`python -m service.worker.planting --seconds N` is a process of its own, started by an idle worker
or, where no record is there yet, by a trainer between its last step and its verdict. It reads no
patient and charges nothing: packaged base model, random text, seeded noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import torch

from dp_core.audit.faults import CORRECT_RUNS, FAULTS, ControlResult, run_correct, run_fault
from dp_core.audit.report import CONTROL_LEVEL, REQUIRED_CONTROLS
from dp_core.audit.selftest import ALARM_LEVEL
from dp_core.base_model import load_base
from dp_core.lora import attach_adapters
from dp_core.plan import AdapterPlan, RunPlan
from dp_core.planner import PlanRequest, make_run_plan
from service.audits.controls import (
    failed_lately,
    has_record,
    note_failure,
    only_one,
    write_controls,
)
from service.models_catalog import packaged_model
from service.settings import Settings
from service.worker.controls import are_wanted, run_planting, trainer_seconds
from service.worker.inputs import performance_of

TARGET_EPSILON, DELTA, PATIENTS, BATCH, STEPS = "2", "1e-5", 4000, 103, 400  # q = .0258
NICENESS = 19


@dataclass(frozen=True, kw_only=True)
class Planted:
    """What was kept: names of required faults that were not found, and rings without a fault."""

    missing: tuple[str, ...]
    false_alarms: int
    path: str


def device_class() -> str:
    """`cpu`, or the generation of the GPU: another one runs other kernels."""
    if not torch.cuda.is_available():
        return "cpu"
    major, minor = torch.cuda.get_device_capability()
    return f"cuda-sm{major}{minor}"


def plant(
    settings: Settings, tell: Callable[[ControlResult, int], None] = lambda *_: None
) -> Planted:
    """Every fault, then the correct engine, on the packaged base model; writes the record.

    `tell` gets each result as it comes, and the number of runs it stands for.
    """
    material = _material(settings)
    found = []
    for seed, fault in enumerate(FAULTS):
        found.append(run_fault(fault, seed=seed, **material))
        tell(found[-1], 1)
    correct = [run_correct(seed=100 + run, **material) for run in range(CORRECT_RUNS)]
    tell(min(correct, key=lambda run: run.min_p), len(correct))
    tripped = {result.name for result in found if result.has_tripped}
    missing = tuple(name for name in REQUIRED_CONTROLS if name not in tripped)
    alarms = sum(run.min_p < ALARM_LEVEL for run in correct)
    path = write_controls(
        settings,
        device_class(),
        {
            "controls": [dataclasses.asdict(result) for result in found],
            "correct": [dataclasses.asdict(run) for run in correct],
            "false_alarms": alarms,
            "level": str(CONTROL_LEVEL),
            "missing": list(missing),
            "plan": {
                "delta": DELTA,
                "epsilon": TARGET_EPSILON,
                "q": material["plan"].sampling_probability,
            },
        },
    )
    return Planted(missing=missing, false_alarms=alarms, path=str(path))


def _material(settings: Settings) -> dict[str, Any]:
    """Plan and adapted base of the controls: what `run_fault` and `run_correct` take."""
    performance, packaged = performance_of(settings), packaged_model()
    plan = _plan(packaged.digest)
    base, _ = load_base(packaged.directory, performance)
    model = attach_adapters(base, plan.adapter, seed=plan.seed, performance=performance)
    return {
        "plan": plan,
        "model": model.to(performance.device),
        "vocabulary": int(base.config.vocab_size),
        "performance": performance,
    }


def _plan(base_model_digest: str) -> RunPlan:
    return make_run_plan(
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
            base_model_digest=base_model_digest,
            dataset_version="synthetic",
        )
    )


def have_controls(
    settings: Settings, *, must_end: Callable[[], bool], say: Callable[[], None]
) -> bool:
    """In a trainer, before its verdict: plants the faults if nobody has; False: told to stop.

    Takes at most `trainer_seconds`, and no time while a record, good or bad, is there. Where the
    faults cannot be planted the attempt goes on: its audit then says which controls were not run.
    `say` is called once before a wait.
    """
    device = device_class()
    if not are_wanted(settings) or has_record(settings, device):
        return True
    if failed_lately(settings, device):
        return True
    say()
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()  # the child computes on the same device
    code = run_planting(settings, seconds=trainer_seconds(settings), must_end=must_end)
    if code == -signal.SIGKILL and not has_record(settings, device):
        with suppress(OSError):
            note_failure(settings, device, "killed")
    return code is not None


class _OutOfTime(BaseException):
    """Past every `except Exception` on its way out."""


def _planted_once(settings: Settings, seconds: int) -> int:
    """Exit code: 0 with a record, also another's; else 1, and a note unless another plants."""
    device = device_class()

    def out_of_time(_number: int, _frame: FrameType | None) -> NoReturn:
        raise _OutOfTime

    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(seconds)
    is_ours = False
    try:
        with only_one(settings, device):
            is_ours = True
            if not has_record(settings, device):
                plant(settings)
        return 0
    except _OutOfTime:
        why = "timed_out" if is_ours else ""
    except Exception as error:  # its type is ours or a library's; its text stays in here
        why = type(error).__name__
    signal.alarm(0)
    if why:
        with suppress(OSError):
            note_failure(settings, device, why)
    return 1


def main() -> NoReturn:
    """Entry point of the planting process."""
    from transformers.utils import logging as transformers_logging

    parser = argparse.ArgumentParser(description="Plant known faults and keep what was found.")
    parser.add_argument("--seconds", type=int, required=True, help="give up after so many")
    parser.add_argument("--nice", action="store_true", help="only with time nobody else wants")
    told = parser.parse_args()
    if told.nice:
        os.nice(NICENESS)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    sys.exit(_planted_once(Settings(), told.seconds))


if __name__ == "__main__":
    main()
