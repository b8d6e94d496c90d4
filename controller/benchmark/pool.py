"""Runs a study on several processes of one thread each, and tells how far it is.

The parent never loads torch. Each worker is a fresh interpreter, ignores Ctrl-C and hands
its result back; the parent alone writes. Ctrl-C therefore costs the runs under way and
nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any, NoReturn

from controller.benchmark.results import Result, ResultsFile, Run
from controller.benchmark.study import Study

ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Execute = Callable[[Run, bool], Result]
Tell = Callable[[str], None]


def tell_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Interrupted(Exception):
    """Ctrl-C or SIGTERM; everything finished is written."""


def run_study(
    study: Study,
    results: ResultsFile,
    *,
    jobs: int,
    execute: Execute,
    initializer: Callable[..., None],
    arguments: tuple[Any, ...],
    tell: Tell = tell_stderr,
) -> None:
    """Runs until nothing is left to run. `execute` must be importable by its name.

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
        Exception: what a run raised; the others under way are dropped.
    """
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))  # read once, when a worker loads torch
    pool = ProcessPoolExecutor(
        max_workers=jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=initializer,
        initargs=arguments,
    )
    clock = _Clock(study, jobs, tell)
    under_way: dict[Future[Result], Run] = {}
    # Like Ctrl-C: a job in the background has interrupts ignored, and is stopped by SIGTERM.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while True:
            _fill(pool, study, under_way, jobs, execute)
            if not under_way:
                return
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                run = under_way.pop(future)
                results.add(future.result())
                clock.finished(run, results.by_key[run.key])
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        signal.signal(signal.SIGTERM, before)
        _stop(pool)


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _fill(
    pool: ProcessPoolExecutor,
    study: Study,
    under_way: dict[Future[Result], Run],
    jobs: int,
    execute: Execute,
) -> None:
    keys = {run.key for run in under_way.values()}
    for run in study.ready():
        if len(under_way) >= jobs:
            return
        if run.key not in keys:
            keys.add(run.key)
            is_watched = run.seed == 1 and run.split == "test"
            under_way[pool.submit(execute, run, is_watched)] = run


def _stop(pool: ProcessPoolExecutor) -> None:
    """Ends the workers at once, also in the midst of a run."""
    processes: Mapping[int, Any] = dict(pool._processes or {})
    for process in processes.values():
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


class _Clock:
    """Progress lines with the time left, from the mean length of the runs so far."""

    def __init__(self, study: Study, jobs: int, tell: Tell) -> None:
        self._study, self._jobs, self._tell = study, jobs, tell
        self._started, self._runs = time.monotonic(), 0
        tell(f"about {study.forecast()} runs to do, {jobs} at a time; Ctrl-C loses none finished")

    def finished(self, run: Run, result: Result) -> None:
        self._runs += 1
        each = (time.monotonic() - self._started) / self._runs
        left = self._study.forecast()
        self._tell(
            f"{run.workload.corpus} eps {run.epsilon} {run.arm} lr {run.learning_rate} "
            f"seed {run.seed} ({run.split}): loss {result.loss:.4f}, "
            f"{result.facts['seconds']:.0f} s; {self._runs} done, about {left} left, "
            f"{left * each / 60:.0f} min"
        )


def ignore_interrupts() -> None:
    """For workers: the parent decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
