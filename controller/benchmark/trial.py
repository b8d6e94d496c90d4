"""One run: the real training loop of `dp_core` on one arm's plan, then the exact loss.

Seeds make runs comparable: the same initial adapter, the same Poisson draws and the same
noise vectors for every arm of a seed. Sampler and noise are therefore not private here;
accounting, clipping, charging and stopping are those of a job.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from controller.baselines.arm import Arm
from controller.baselines.registry import find_arm
from controller.benchmark.corpora import Corpus, Note, load_corpus
from controller.benchmark.evaluation import EvaluationSet, make_set, note_losses
from controller.benchmark.models import model_folder
from controller.benchmark.ports import BenchmarkJournal, NoCheckpoints, TimedPolicy, WindowsKept
from controller.benchmark.results import Result, Run
from controller.benchmark.suites import CEILING, FLOOR, Workload
from controller.observation import describe_groups
from dp_core.base_model import load_base
from dp_core.lora import attach_adapters
from dp_core.model_files import model_digest
from dp_core.noise import NoiseSource, SeededSource
from dp_core.plan import AdapterPlan, OptimizerPlan, Performance, RunPlan
from dp_core.planner import PlanRequest, make_run_plan
from dp_core.records import Blocks, load_blocks
from dp_core.sampling import PoissonSampler
from dp_core.telemetry import WindowTelemetry

CURVE_NOTES = 8
CEILING_EPSILON = "1"  # a plan needs one; the ceiling's run adds no noise and keeps none
UNCLIPPED = "10"  # nats per token and unit of weight; no gradient met here comes near it


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where corpora and models lie, and where models may be built."""

    data: Path
    packaged_model: Path
    scratch: Path


@dataclass(frozen=True, kw_only=True)
class Material:
    """What all runs of one workload share in a process."""

    blocks: Blocks
    dataset_version: str
    tuning: EvaluationSet
    test: EvaluationSet


class NoNoise(NoiseSource):
    """Zeros: the ceiling's run goes through the same loop, and is not private at all."""

    name = "no_noise_ceiling"
    is_private = False

    def _gaussian(self, length: int) -> torch.Tensor:
        return torch.zeros(length)

    def _integers(self, length: int) -> torch.Tensor:
        return torch.zeros(length, dtype=torch.int64)


def execute(run: Run, places: Places, performance: Performance, *, is_watched: bool) -> Result:
    """Trains and evaluates. `is_watched` keeps windows and a curve, for plots."""
    started = time.process_time()
    folder = model_folder(run.model, places.packaged_model, places.scratch)
    base, _ = load_base(folder, performance)
    material = _material(run.workload, places.data, str(folder))
    model = attach_adapters(
        base, adapter_plan(run.workload), seed=run.seed, performance=performance
    ).to(performance.device)
    evaluated = material.test if run.split == "test" else material.tuning
    facts: dict[str, Any] = {}
    kept = WindowsKept(None)
    curve: list[list[float]] = []
    if run.arm != FLOOR:
        few = evaluated.first(CURVE_NOTES)
        training, policy, journal = make_training(
            run, model, material, performance, digest_of(folder)
        )
        if is_watched:
            kept = WindowsKept(lambda step: curve.append([step, _averaged(training, few)]))
        training.progress = kept
        result = training.run()
        facts = _facts(training.plan, journal, policy, result.steps_finished)
    trained = time.process_time() - started
    notes = note_losses(model, evaluated, performance)
    seconds = time.process_time() - started
    return Result(
        key=run.key,
        run=run.to_dict(),
        notes=notes,
        facts={**facts, "seconds_training": round(trained, 2), "seconds": round(seconds, 2)},
        curve=curve,
        windows=kept.windows if is_watched else [],
    )


def adapter_plan(workload: Workload) -> AdapterPlan:
    return AdapterPlan(r=workload.rank, alpha=workload.alpha)


def plan_of(run: Run, arm: Arm, *, patients: int, digest: str, version: str) -> RunPlan:
    """The arm's plan: same patients, batch, steps and guarantee for every arm."""
    w = run.workload
    request = PlanRequest(
        target_epsilon=CEILING_EPSILON if run.arm == CEILING else run.epsilon,
        delta=w.delta,
        patients_public=patients,
        batch_size=w.batch_size,
        steps_max=w.steps,
        margin_windows=0,
        interval_steps=w.steps_per_window,
        adapter=adapter_plan(w),
        optimizer=OptimizerPlan(averaging_decay=w.averaging_decay, beta1=w.beta1),
        tokens_per_row=w.tokens_per_row,
        seed=run.seed,
        controller_type=arm.name,
        base_model_digest=digest,
        dataset_version=version,
    )
    asked = arm.plan_request(request, learning_rate=run.learning_rate)
    same = ("target_epsilon", "delta", "patients_public", "batch_size", "steps_max", "unit")
    assert all(getattr(asked, field) == getattr(request, field) for field in same)
    if run.arm == CEILING:
        free = dataclasses.replace(asked.clipping, clip_norm=UNCLIPPED, clip_max=UNCLIPPED)
        asked = dataclasses.replace(asked, clipping=dataclasses.replace(free, clip_min=UNCLIPPED))
    return make_run_plan(asked)


def make_training(
    run: Run, model: Any, material: Material, performance: Performance, digest: str
) -> tuple[Any, TimedPolicy, BenchmarkJournal]:
    """The run's training, paired with other arms' of its seed; its policy and its journal."""
    arm = find_arm("reference" if run.arm == CEILING else run.arm)
    patients = material.blocks.training.raw_size  # public here: the corpora are
    plan = plan_of(run, arm, patients=patients, digest=digest, version=material.dataset_version)
    arm.freeze(model)
    journal = BenchmarkJournal(plan)
    policies: list[TimedPolicy] = []

    def make_policy(seen: WindowTelemetry) -> TimedPolicy:
        policy = arm.make_policy(
            groups=describe_groups(seen), seed=plan.seed, chunks_planned=plan.chunks_planned
        )
        policies.append(TimedPolicy(policy))
        return policies[-1]

    noise = NoNoise() if run.arm == CEILING else SeededSource(_seed("noise", run))
    training = _paired(arm.training_class(), run)(
        plan=plan,
        model=model,
        blocks=material.blocks,
        make_policy=make_policy,
        journal=journal,
        checkpoints=NoCheckpoints(),
        progress=WindowsKept(None),
        noise_source=noise,
        performance=performance,
    )
    return training, policies[0], journal


def _paired(training_class: type[Any], run: Run) -> type[Any]:
    """The training class with seeded draws, equal for every arm of a seed."""

    class Paired(training_class):  # type: ignore[misc]  # a class chosen at run time
        def _sampler(self) -> PoissonSampler:
            return PoissonSampler(
                sampling_probability=self.plan.sampling_probability,
                raw_population_size=self._blocks.training.raw_size,
                entropy=np.random.default_rng(_seed("draws", run)).bytes,
                row_entropy=np.random.default_rng(_seed("rows", run)).bytes,
            )

        def _check_moved(self) -> None:
            if run.arm != CEILING:  # without noise A stays put until B has left zero
                super()._check_moved()

    return Paired


def _seed(use: str, run: Run) -> int:
    text = f"{use} {run.workload.corpus} {run.split} {run.seed}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _averaged(training: Any, rows: EvaluationSet) -> float:
    """Loss of the averaged weights, those that would ship, in the midst of a run."""
    live = training.averaged.swap_in()
    # Forward hooks of the engine act on an opened microbatch only, so looking is free of them.
    notes = note_losses(training.model, rows, training._performance)
    training.averaged.swap_out(live)
    return round(sum(n[0] for n in notes) / sum(n[1] for n in notes), 4)


def _facts(
    plan: RunPlan, journal: BenchmarkJournal, policy: TimedPolicy, steps: int
) -> dict[str, Any]:
    return {
        "q": plan.sampling_probability,
        "delta": plan.delta,
        "epsilon_certified": plan.epsilon_certified,
        "levels": journal.levels(),
        "telemetry_share": plan.telemetry.share,
        "steps": steps,
        "policy": policy.name,
        "seconds_controller": round(policy.seconds, 3),
        "plan_digest": plan.digest(),
    }


@functools.cache
def _material(workload: Workload, data: Path, model: str) -> Material:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    tokenizer.model_max_length = 10**9
    corpus = load_corpus(workload.corpus, data)
    blocks, version = make_blocks(corpus, workload, tokenizer)
    make: Callable[..., EvaluationSet] = functools.partial(
        make_set,
        tokenizer=tokenizer,
        tokens_per_row=workload.tokens_per_row,
        has_slots=corpus.has_slots,
    )
    return Material(
        blocks=blocks,
        dataset_version=version,
        tuning=make(corpus.tuning[: workload.notes_tuning]),
        test=make(corpus.test[: workload.notes_test]),
    )


def make_blocks(corpus: Corpus, workload: Workload, tokenizer: Any) -> tuple[Blocks, str]:
    """The training patients, through the file format of a job."""
    chosen: tuple[Note, ...] = corpus.training[: workload.patients]
    lines = [json.dumps({"unit": n.patient, "text": n.text}) + "\n" for n in chosen]
    content = "".join(lines).encode()
    digest = hashlib.sha256(content).hexdigest()
    blocks = load_blocks(
        lambda: io.BytesIO(content),
        expected_sha256=digest,
        tokenizer=tokenizer,
        tokens_per_row=workload.tokens_per_row,
        split_key=b"",
        validation_fraction=None,
    )
    return blocks, f"{corpus.name}-{digest[:16]}"


@functools.cache
def digest_of(folder: Path) -> str:
    """Of the base model in a folder."""
    return model_digest(folder)
