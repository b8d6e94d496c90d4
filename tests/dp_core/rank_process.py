"""One rank as a process of its own: a whole job, then steps over a sharded base.

python -m tests.dp_core.rank_process FOLDER     (in torchrun's environment)
"""

from __future__ import annotations

import hashlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from dp_core.distributed import from_environment, shard_base
from dp_core.lora import attach_adapters
from dp_core.plan import RunPlan
from dp_core.ranks import Ranks
from dp_core.records import Blocks, load_blocks
from tests.dp_core.conftest import SPLIT_KEY, WordTokenizer, adapted, tiny_gpt2
from tests.dp_core.rank_cases import JOB_DRAWS, UNEVEN, Job, OneStep, flat

SHARDED = ("gpt2", "llama", "llama-bf16")


def sharding_case(case: str) -> Any:
    """A model with float32 adapters over a base in the case's dtype."""
    kind, _, dtype = case.partition("-")
    model = adapted(kind)
    if dtype == "bf16":
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    return model


def run_job(ranks: Ranks, plan: RunPlan, blocks: Blocks, folder: Path) -> None:
    model = attach_adapters(tiny_gpt2(), plan.adapter, seed=3)
    job = Job(ranks, model, blocks, plan, draws=JOB_DRAWS).run()
    tensors = {name: tensor.contiguous() for name, tensor in job.tensors().items()}
    save_file(tensors, folder / f"job-{ranks.rank}.safetensors")


def run_sharded(ranks: Ranks, case: str, plan: RunPlan, blocks: Blocks, folder: Path) -> None:
    model = sharding_case(case)
    whole = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    shard_base(model, ranks)
    base = [p for p in model.parameters() if not p.requires_grad]
    adapters = [p for p in model.parameters() if p.requires_grad]
    assert all(isinstance(p, DTensor) for p in base)
    assert not any(isinstance(p, DTensor) for p in adapters)
    held = sum(p.to_local().numel() for p in base if isinstance(p, DTensor))
    add_up = ranks.add_up

    def watch(vector: torch.Tensor) -> None:
        assert all(p.grad is None for p in model.parameters()), "no gradient before its noise"
        add_up(vector)

    ranks.add_up = watch  # type: ignore[method-assign]
    one = OneStep(ranks, model, blocks, UNEVEN, plan=plan)
    released = one.run()
    ranks.add_up = add_up  # type: ignore[method-assign]
    results = {
        "released": flat(released),
        "weights": one.weights(),
        "share_held": torch.tensor(held / whole),
    }
    save_file(results, folder / f"{case}-{ranks.rank}.safetensors")


def main(folder: Path) -> None:
    ranks = from_environment(step_seconds=60, idle_seconds=120)
    plan = RunPlan.from_dict(json.loads((folder / "plan.json").read_text()))
    version = folder / "version.jsonl"
    blocks = load_blocks(
        partial(version.open, "rb"),
        expected_sha256=hashlib.sha256(version.read_bytes()).hexdigest(),
        tokenizer=WordTokenizer(),
        tokens_per_row=16,
        split_key=SPLIT_KEY,
        validation_fraction="0.2",
    )
    run_job(ranks, plan, blocks, folder)
    for case in SHARDED:
        run_sharded(ranks, case, plan, blocks, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
