"""Every arm trains a tiny model under its own plan, charged like any other job."""

from __future__ import annotations

import pytest

from controller.baselines.arm import Arm
from controller.baselines.registry import ARMS
from controller.observation import describe_groups
from dp_core.lora import attach_adapters
from dp_core.noise import SeededSource
from dp_core.plan import Performance
from dp_core.records import Blocks
from tests.controller.baselines.cases import plan_of
from tests.dp_core.conftest import blocks, tiny_gpt2
from tests.fakes import MemoryJournal, MemoryProgress, MemoryStore

__all__ = ["blocks"]


@pytest.mark.parametrize("arm", list(ARMS.values()), ids=list(ARMS))
def test_three_windows(arm: Arm, blocks: Blocks) -> None:
    """Trains, charges its own level, and moves exactly the tensors it says it trains."""
    plan = plan_of(arm)
    model = attach_adapters(tiny_gpt2(), plan.adapter, seed=plan.seed)
    arm.freeze(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}
    journal, progress = MemoryJournal(plan), MemoryProgress()
    training = arm.training_class()(
        plan=plan,
        model=model,
        blocks=blocks,
        make_policy=lambda seen: arm.make_policy(
            groups=describe_groups(seen), seed=plan.seed, chunks_planned=plan.chunks_planned
        ),
        journal=journal,
        checkpoints=MemoryStore(),
        progress=progress,
        noise_source=SeededSource(5),
        performance=Performance(patients_per_microbatch=8),
    )
    assert training.run().outcome == "completed"
    assert [c.steps for c in journal.charges] == [1, 1, 1]
    booked = {c.noise_multiplier for c in journal.charges}
    if plan.mode == "adaptive_sigma":
        assert booked <= set(plan.noise_levels)
    else:
        assert booked == set(plan.noise_levels)
    assert (plan.noise_schedule is not None) == (arm.name == "noise_decay")
    moved = {n for n, p in model.named_parameters() if n in before and not p.equal(before[n])}
    trained = {n for n in before if arm.trains == "A_and_B" or "lora_B" in n}
    assert moved == trained
