"""One run of the privacy benchmark: an arm's training on notes and canaries, then the attacks.

Members are the workload's patients, outsiders the same number of patients that follow them
in the corpus. The training is `trial.make_training`'s, so that arms are paired as in the
utility benchmark and the guarantee is that of a job.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from dataclasses import dataclass
from typing import Any

from controller.benchmark.attacks import canary_rows, note_rows
from controller.benchmark.corpora import load_corpus
from controller.benchmark.evaluation import EvaluationSet, make_set
from controller.benchmark.models import model_folder
from controller.benchmark.privacy_suites import PrivacySuite, key_of
from controller.benchmark.results import Result, Run
from controller.benchmark.suites import CEILING
from controller.benchmark.trial import (
    Material,
    Places,
    adapter_plan,
    digest_of,
    make_blocks,
    make_training,
)
from dp_core.audit.curve import fixed_schedule_curve
from dp_core.audit.text_scores import Rows, Scores, scores_of
from dp_core.base_model import load_base
from dp_core.lora import attach_adapters
from dp_core.plan import Performance

LOW_RATE = 0.01  # of false positives, at which true positives are told


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What is attacked: members, outsiders, canaries, in this order of rows."""

    material: Material
    notes: Rows  # members, then outsiders
    canaries: Rows


def attack(suite: PrivacySuite, run: Run, places: Places, performance: Performance) -> Result:
    """Trains, then scores what was trained on and what was not."""
    started = time.process_time()
    folder = model_folder(run.model, places.packaged_model, places.scratch)
    targets = _targets(suite, places)
    base, _ = load_base(folder, performance)
    before = [scores_of(base, rows, performance) for rows in (targets.notes, targets.canaries)]
    model = attach_adapters(
        base, adapter_plan(run.workload), seed=run.seed, performance=performance
    ).to(performance.device)
    training, _, _ = make_training(run, model, targets.material, performance, digest_of(folder))
    training.run()
    after = [scores_of(model, rows, performance) for rows in (targets.notes, targets.canaries)]
    facts = {
        "notes": _differences(before[0], after[0]),
        "canaries": _differences(before[1], after[1]),
        "ceiling": None if run.arm == CEILING else _ceiling(training.plan),
        "seconds": round(time.process_time() - started, 1),
    }
    key = key_of(suite, run)
    return Result(key=key, run=run.to_dict(), notes=[], facts=facts, curve=[], windows=[])


def _differences(before: Scores, after: Scores) -> dict[str, list[float]]:
    """Per row, higher for members: loss lost since the base model, Min-K%++, and the loss."""
    return {
        "loss_difference": (before.loss - after.loss).round(6).tolist(),
        "min_k": after.min_k.round(6).tolist(),
        "loss": after.loss.round(6).tolist(),
    }


def _ceiling(plan: Any) -> dict[str, float]:
    """What no attack on one patient can pass if the ledger tells the truth."""
    curve = fixed_schedule_curve(plan.training_events())
    return {
        "epsilon": float(plan.epsilon_certified),
        "auc": curve.max_auc(),
        "tpr": curve.max_tpr(LOW_RATE),
    }


@functools.cache
def _targets(suite: PrivacySuite, places: Places) -> Targets:
    from transformers import AutoTokenizer

    w = suite.workload
    folder = model_folder(suite.model, places.packaged_model, places.scratch)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    tokenizer.model_max_length = 10**9
    corpus = load_corpus(w.corpus, places.data)
    members = corpus.training[: w.patients]
    outsiders = corpus.training[w.patients : w.patients + w.notes_test]
    canaries = suite.canaries()
    trained = (*members, *(note for canary in canaries for note in canary.patients()))
    blocks, version = make_blocks(
        dataclasses.replace(corpus, training=trained),
        dataclasses.replace(w, patients=len(trained)),
        tokenizer,
    )
    nothing: EvaluationSet = make_set(
        (), tokenizer, tokens_per_row=w.tokens_per_row, has_slots=False
    )
    return Targets(
        material=Material(blocks=blocks, dataset_version=version, tuning=nothing, test=nothing),
        notes=note_rows(
            [note.text for note in (*members, *outsiders)], tokenizer, w.tokens_per_row
        ),
        canaries=canary_rows(canaries, tokenizer, w.tokens_per_row),
    )
