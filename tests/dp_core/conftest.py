"""Public rows and plans for the engine's tests; the models are in `models.py`."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dp_core.plan import AdapterPlan, RunPlan
from dp_core.planner import PlanRequest, make_run_plan
from dp_core.records import Blocks, load_blocks
from tests.dp_core.models import FAMILIES, VOCABULARY, adapted, tiny_gpt2, tiny_llama

__all__ = ["MODELS", "VOCABULARY", "adapted", "tiny_gpt2", "tiny_llama"]

SPLIT_KEY = b"k" * 32
MODELS = FAMILIES


class WordTokenizer:
    """Maps each word to an id; what a Hugging Face tokenizer offers to records.py."""

    bos_token_id = 0
    eos_token_id = 1
    pad_token_id = 2

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[3 + len(w) * 7 % 50 for w in t.split()] for t in texts]}


def make_plan(**changes: Any) -> RunPlan:
    """A small plan; any field of `PlanRequest` can be changed."""
    fields: dict[str, Any] = {
        "target_epsilon": "8",
        "delta": "1e-4",
        "patients_public": 100,
        "validation_fraction": "0.2",
        "validation_batch_size": 16,
        "batch_size": 10,
        "steps_max": 6,
        "interval_steps": 2,
        "tokens_per_row": 16,
        "adapter": AdapterPlan(r=3, alpha=6),
        "seed": 3,
        "controller_type": "reference",
        "base_model_digest": "0" * 64,
        "dataset_version": "dsv_test",
    }
    return make_run_plan(PlanRequest(**(fields | changes)))


def write_version(path: Path, patients: int, *, notes_each: int = 2) -> tuple[Path, str]:
    """A frozen dataset version on disk and its digest."""
    words = ["fever", "cough", "rest", "a", "metformin", "insulin", "review"]
    lines = [
        json.dumps(
            {
                "unit": f"patient-{p}",
                "text": " ".join(words[(p * 3 + n + k) % 7] for k in range(5 + (p + n) % 9)),
            }
        )
        for p in range(patients)
        for n in range(notes_each)
    ]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


@pytest.fixture
def blocks(tmp_path: Path) -> Blocks:
    path, digest = write_version(tmp_path / "version.jsonl", 120)
    return load_blocks(
        partial(path.open, "rb"),
        expected_sha256=digest,
        tokenizer=WordTokenizer(),
        tokens_per_row=16,
        split_key=SPLIT_KEY,
        validation_fraction="0.2",
    )
