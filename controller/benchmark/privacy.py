"""`rldp bench audit`: attacks every arm on the same notes, one run after the other; resumable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from controller.baselines.registry import find_arm
from controller.benchmark.corpora import load_corpus
from controller.benchmark.pool import tell_stderr
from controller.benchmark.privacy_suites import (
    PrivacySuite,
    find_privacy_suite,
    key_of,
    run_of,
)
from controller.benchmark.privacy_table import write_privacy_table
from controller.benchmark.results import Result, ResultsFile
from controller.benchmark.suites import CEILING


@dataclass(frozen=True, kw_only=True)
class PrivacyRequest:
    """What the command line asks for."""

    suite: str
    data: Path
    packaged_model: Path
    out: Path
    only_table: bool = False


def bench_audit(
    request: PrivacyRequest,
    *,
    tell: Callable[[str], None] = tell_stderr,
    suite: PrivacySuite | None = None,
) -> None:
    """Runs what is missing and writes `privacy.md` and `privacy.json`, also after Ctrl-C.

    Raises:
        ControllerUnknown, SettingInvalid: as the utility benchmark.
    """
    chosen = suite or find_privacy_suite(request.suite)
    for arm in chosen.arms:
        if arm != CEILING:
            find_arm(arm)
    results = ResultsFile(request.out)
    try:
        if not request.only_table:
            load_corpus(chosen.workload.corpus, request.data)
            _run_missing(chosen, request, results, tell)
    finally:
        write_privacy_table(chosen, _by_arm(chosen, results), request.out)
    tell(f"wrote {request.out / 'privacy.md'} and privacy.json")


def _run_missing(
    suite: PrivacySuite,
    request: PrivacyRequest,
    results: ResultsFile,
    tell: Callable[[str], None],
) -> None:
    """Seed by seed, every arm, in this process and on one thread; torch comes with the first."""
    import torch
    from transformers.utils import logging as transformers_logging

    from controller.benchmark.privacy_trial import attack
    from controller.benchmark.trial import Places
    from dp_core.plan import Performance

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    places = Places(
        data=request.data,
        packaged_model=request.packaged_model,
        scratch=request.out / "models",
    )
    performance = Performance(
        patients_per_microbatch=suite.workload.patients_per_microbatch,
        base_dtype="bfloat16",
        autocast=True,
    )
    for seed in range(1, suite.seeds + 1):
        for arm in suite.arms:
            run = run_of(suite, arm, seed)
            if key_of(suite, run) in results.by_key:
                continue
            result = attack(suite, run, places, performance)
            results.add(result)
            tell(f"{arm}, seed {seed}: {result.facts['seconds']:.0f} s of one core")


def _by_arm(suite: PrivacySuite, results: ResultsFile) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for arm in suite.arms:
        keys = [key_of(suite, run_of(suite, arm, seed)) for seed in range(1, suite.seeds + 1)]
        found[arm] = [results.by_key[key] for key in keys if key in results.by_key]
    return found
