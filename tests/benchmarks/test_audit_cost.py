"""What the audit costs a job of 4,000 patients: CPU time and utility, with paired seeds.

Same adapter, draws of patients and noise with and without canaries; the job's own steps differ
by the canaries alone: `RLDP_BENCH_DATA=corpora pytest -m bench -s` on this file. From 5,000
patients (`RLDP_BENCH_PATIENTS`) on, text canaries join them as well.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.benchmark import trial
from controller.benchmark.evaluation import note_losses
from controller.benchmark.results import Run
from controller.benchmark.suites import DIABETES, Workload
from dp_core.audit.coins import CoinSeed
from dp_core.audit.in_job import InJobAudit, JobFacts, manifest_of
from dp_core.audit.preflight import run_preflight
from dp_core.audit.text_canaries import TextCanaries, text_layout
from dp_core.audit.text_figures import TextAudit, text_manifest
from dp_core.audit.text_figures import canaries_of as text_canaries_of
from dp_core.base_model import load_base
from dp_core.lora import attach_adapters, clip_groups, layout_of
from dp_core.noise import OsEntropySource
from dp_core.plan import Performance
from dp_core.step import make_engine
from service.demo import models
from tests.dp_core.audit.test_in_job import MemoryPieces

DATA = os.environ.get("RLDP_BENCH_DATA", "")
SEEDS = tuple(range(1, 1 + int(os.environ.get("RLDP_BENCH_SEEDS", "2"))))
PATIENTS = int(os.environ.get("RLDP_BENCH_PATIENTS", "4000"))
WORKLOAD = dataclasses.replace(DIABETES, patients=PATIENTS, batch_size=64, steps=60, notes_test=64)
PERFORMANCE = Performance(
    patients_per_microbatch=WORKLOAD.patients_per_microbatch, base_dtype="bfloat16", autocast=True
)

pytestmark = [
    pytest.mark.bench,
    pytest.mark.timeout(0),  # minutes a run; longer on a busy machine
    pytest.mark.skipif(not DATA, reason="RLDP_BENCH_DATA names no folder of corpora"),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    losses: np.ndarray  # (notes, 2)
    seconds: dict[str, float]  # of CPU


def run_of(seed: int, workload: Workload = WORKLOAD) -> Run:
    return Run(
        model="medtext-gpt2-4m",
        workload=workload,
        arm="reference",
        epsilon="8",
        learning_rate="0.02",
        seed=seed,
        split="test",
    )


def measured(seed: int, *, is_audited: bool) -> Measured:
    run, folder = run_of(seed), models.path()
    material = trial._material(run.workload, Path(DATA), str(folder))
    base, tokenizer = load_base(folder, PERFORMANCE)
    model = attach_adapters(
        base, trial.adapter_plan(run.workload), seed=seed, performance=PERFORMANCE
    )
    training, _, journal = trial.make_training(
        run, model, material, PERFORMANCE, trial.digest_of(folder)
    )
    seconds: dict[str, float] = {}
    audit = canaries = None
    if is_audited:
        with _clock(seconds, "preflight"):
            run_preflight(
                plan=training.plan,
                model=model,
                vocabulary=int(base.config.vocab_size),
                performance=PERFORMANCE,
                noise_source=OsEntropySource(),
                job_id="bench",
            )
        audit, canaries = _joined(training, model, tokenizer)
    with _clock(seconds, "training"):
        training.run()
    if audit is not None:
        with _clock(seconds, "report"):
            text = None if canaries is None else canaries.scores(model, PERFORMANCE)
            found = audit.finish(_facts(journal.steps_charged), text)
        assert found.saved.report.verdict != "FAIL"
    notes = np.asarray(note_losses(model, material.test, PERFORMANCE))
    return Measured(losses=notes[:, :2], seconds=seconds)


class InOrder(np.random.Generator):
    """The canaries behind the patients, whose draws then stay the same."""

    def permutation(self, x: Any, axis: int = 0) -> Any:
        return np.arange(x)


def _joined(training: Any, model: Any, tokenizer: Any) -> tuple[InJobAudit, TextCanaries | None]:
    """Canaries in the steps of a training that exists; its patients' draws stay the same."""
    plan, layout = training.plan, layout_of(clip_groups(model, training.plan.clipping.grouping))
    text, canaries = None, None
    if text_canaries_of(plan):
        rows = text_layout(plan, tokenizer)
        text = TextAudit(manifest=text_manifest(plan, rows), layout=rows)
        canaries = TextCanaries(text.manifest, rows, tokenizer)
    audit = InJobAudit(
        plan=plan,
        layout=layout,
        manifest=manifest_of(plan, layout, text=None if text is None else text.manifest),
        seed=CoinSeed.fresh(),
        pieces=MemoryPieces(),
        text=text,
    )
    sampler, records = training.step_runner._sampler, training._blocks.training
    own, patients = sampler._entropy, records.raw_size
    if canaries is not None:
        records = records.with_public_patients(
            canaries.patients(audit.text_members), InOrder(np.random.PCG64())
        )
        training.step_runner._records = records
    sampler._raw_size = records.raw_size + audit.units
    sampler._entropy = lambda n: own(8 * patients) + os.urandom(n - 8 * patients)
    training.audit = training.step_runner._audit = audit
    training.engine.detach()
    training.engine = training.optimizer._engine = make_engine(model, training.groups, PERFORMANCE)
    return audit, canaries


def _facts(steps: int) -> JobFacts:
    return JobFacts(
        job_id="bench",
        steps_started=steps,
        preregistered_at="bench",
        head=None,
        controls=(),
        is_preflight_silent=True,
        code_commit=None,
        image_digest=None,
    )


class _clock:
    """Adds CPU seconds of this process, all threads, under a name."""

    def __init__(self, into: dict[str, float], name: str) -> None:
        self._into, self._name = into, name

    def __enter__(self) -> None:
        self._started = time.process_time()

    def __exit__(self, *_: object) -> None:
        self._into[self._name] = time.process_time() - self._started


def test_the_audit_costs_a_tenth_of_the_time_and_a_hundredth_of_the_utility() -> None:
    ratios, shares = [], []
    for seed in SEEDS:
        without, with_audit = (measured(seed, is_audited=a) for a in (False, True))
        loss = [m.losses[:, 0].sum() / m.losses[:, 1].sum() for m in (without, with_audit)]
        ratios.append(math.exp(loss[1] - loss[0]))
        base, spent = without.seconds["training"], with_audit.seconds
        shares.append(sum(spent.values()) / base - 1)
        print(
            f"seed {seed}: perplexity {math.exp(loss[0]):.4f} without, {math.exp(loss[1]):.4f} "
            f"with canaries, ratio {ratios[-1]:.5f}; CPU s {base:.1f} without; with: "
            + ", ".join(f"{name} {value:.1f}" for name, value in spent.items()),
            flush=True,
        )
    print(f"mean ratio {np.mean(ratios):.5f}, mean share of time {np.mean(shares):.3f}")
    assert np.mean(ratios) <= 1.01
    assert np.mean(shares) <= 0.10
