"""`rldp bench utility`: chooses the work, runs it, writes table and pictures. Torch-free."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from controller.baselines.registry import select_arms
from controller.benchmark import plots
from controller.benchmark.corpora import load_corpus
from controller.benchmark.pool import Interrupted, run_study, tell_stderr
from controller.benchmark.results import ResultsFile
from controller.benchmark.study import ArmFacts, Study
from controller.benchmark.suites import Suite, choose_workloads, find_suite
from controller.benchmark.table import write_table
from controller.benchmark.worker import execute_run, set_up
from controller.errors import SettingInvalid

EXIT_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for; empty or None means as the suite says."""

    suite: str
    data: Path
    packaged_model: Path
    out: Path
    arms: Sequence[str] = ()
    corpora: Sequence[str] = ()
    epsilons: Sequence[str] = ()
    seeds: int | None = None
    jobs: int = 1
    only_table: bool = False


def bench_utility(
    request: Request,
    *,
    tell: Callable[[str], None] = tell_stderr,
    suite: Suite | None = None,  # instead of the one of that name
) -> int:
    """Runs what is missing, writes `table.md`, `table.json` and PNGs. Returns an exit code.

    Raises:
        ControllerUnknown: no such arm.
        SettingInvalid: an unknown suite or corpus, no data, or no CUDA where it is needed.
    """
    study, results = prepare(request, suite or find_suite(request.suite))
    code = 0
    if not request.only_table:
        for workload in study.suite.workloads:
            load_corpus(workload.corpus, request.data)  # say what is missing before workers start
        try:
            run_study(
                study,
                results,
                jobs=request.jobs,
                execute=execute_run,
                initializer=set_up,
                arguments=(
                    study.suite,
                    request.data,
                    request.packaged_model,
                    request.out / "models",
                ),
                tell=tell,
            )
        except Interrupted:
            tell("Stopped. The same command goes on from here.")
            code = EXIT_INTERRUPTED
    write_table(study, results, request.out)
    tell(f"wrote {request.out / 'table.md'} and table.json")
    if plots.is_available():
        tell(f"wrote {len(plots.write_plots(study, results, request.out))} pictures")
    else:
        tell("no pictures: matplotlib is not installed (pip install 'rldp[bench]')")
    return code


def prepare(request: Request, suite: Suite) -> tuple[Study, ResultsFile]:
    """The study of a request and the runs that were finished before.

    Raises:
        ControllerUnknown, SettingInvalid: as `bench_utility`.
    """
    chosen = choose_workloads(suite, request.corpora)
    chosen = chosen.changed(
        arms=tuple(request.arms), epsilons=tuple(request.epsilons), seeds=request.seeds
    )
    if chosen.needs_cuda and not request.only_table:
        require_cuda()
    arms = [
        ArmFacts(
            name=arm.name,
            published=arm.published,
            default_learning_rate=arm.default_learning_rate,
        )
        for arm in select_arms(chosen.arms)
    ]
    results = ResultsFile(request.out)
    order = {name: index for index, name in enumerate(chosen.arms)}
    arms.sort(key=lambda arm: order.get(arm.name, 0))  # as named; else the registry's order
    return Study(chosen, arms, results.find), results


def require_cuda() -> None:
    """Refuses to start what would take weeks on a CPU.

    Raises:
        SettingInvalid: torch sees no CUDA device.
    """
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return
    raise SettingInvalid(
        "suite",
        "'gpu' NEEDS A CUDA DEVICE and torch sees none here. Nothing was run. Use the suite "
        "'cpu', or a machine with a GPU and a CUDA build of torch",
    )
