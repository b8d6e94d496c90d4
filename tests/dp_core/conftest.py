"""Tiny random models, public rows and plans for the engine's tests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from dp_core.lora import attach_adapters
from dp_core.plan import AdapterPlan, RunPlan
from dp_core.planner import PlanRequest, make_run_plan
from dp_core.records import Blocks, load_blocks

VOCABULARY = 61
SPLIT_KEY = b"k" * 32


def tiny_gpt2() -> Any:
    """Conv1D linear layers, as GPT-2 has them."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=32,
            bos_token_id=0,
            eos_token_id=1,
            n_embd=16,
            n_layer=2,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ).requires_grad_(False)


def tiny_llama() -> Any:
    """nn.Linear layers and grouped key-value heads."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
        )
    ).requires_grad_(False)


MODELS = {"gpt2": tiny_gpt2, "llama": tiny_llama}


def adapted(kind: str, *, rank: int = 3) -> Any:
    """The tiny model with adapters whose B is random, so that A has a gradient too."""
    model = attach_adapters(MODELS[kind](), AdapterPlan(r=rank, alpha=2 * rank), seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


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
        path,
        expected_sha256=digest,
        tokenizer=WordTokenizer(),
        tokens_per_row=16,
        split_key=SPLIT_KEY,
        validation_fraction="0.2",
    )
