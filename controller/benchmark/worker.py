"""The side of a worker process: set up once, then one run after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from controller.benchmark.pool import ignore_interrupts
from controller.benchmark.results import Result, Run
from controller.benchmark.suites import Suite

_setup: dict[str, Any] = {}


def set_up(suite: Suite, data: Path, packaged_model: Path, scratch: Path) -> None:
    """Runs once in each worker."""
    ignore_interrupts()
    _setup.update(suite=suite, data=data, packaged_model=packaged_model, scratch=scratch)


def execute_run(run: Run, is_watched: bool) -> Result:
    """One run in this process; torch is loaded with the first."""
    import torch
    from transformers.utils import logging as transformers_logging

    from controller.benchmark.trial import Places, execute
    from dp_core.plan import Performance

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    suite: Suite = _setup["suite"]
    places = Places(
        data=_setup["data"], packaged_model=_setup["packaged_model"], scratch=_setup["scratch"]
    )
    performance = Performance(
        device="cuda" if suite.needs_cuda else "cpu",
        patients_per_microbatch=run.workload.patients_per_microbatch,
        base_dtype=suite.base_dtype,
        autocast=suite.autocast,
    )
    return execute(run, places, performance, is_watched=is_watched)
