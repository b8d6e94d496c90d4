"""What a window costs beside its steps: controller, telemetry and accounting, as a share.

make bench
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from controller.factory import make_policy
from dp_core.lora import attach_adapters
from dp_core.noise import OsEntropySource
from dp_core.plan import AdapterPlan, Performance, RunPlan
from dp_core.records import Blocks, PatientRecords
from dp_core.training import PrivateTraining
from tests.fakes import MemoryJournal, MemoryProgress, MemoryStore

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]  # 16 steps of a CPU each

SHARE_MAX = 0.01
PATIENTS, TOKENS, WINDOW = 640, 256, 8


def plan_of(controller: str) -> RunPlan:
    return RunPlan(
        unit="patient",
        patients_public=PATIENTS,
        target_epsilon="8",
        delta="1e-5",
        sampling_probability="0.1",
        batch_size_expected=PATIENTS // 10,
        steps_planned=2 * WINDOW,
        steps_started_max=2 * WINDOW,
        steps_per_chunk=WINDOW,
        noise_levels=("1.000",),
        job_limit=2 * WINDOW,
        epsilon_certified="8",
        adapter=AdapterPlan(r=8, alpha=16),
        tokens_per_row=TOKENS,
        seed=1,
        controller_type=controller,
        base_model_digest="0" * 64,
        dataset_version="bench",
    )


def records() -> PatientRecords:
    generator = torch.Generator().manual_seed(1)
    rows = [
        [torch.randint(0, 1000, (TOKENS,), generator=generator).numpy()] for _ in range(PATIENTS)
    ]
    return PatientRecords(raw_rows=rows, tokens_per_row=TOKENS, pad_id=0)


class Timed:
    """Adds up the CPU time of the calls it stands in for."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, owner: Any, name: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            started = time.process_time()
            try:
                return inner(*arguments, **keywords)
            finally:
                self.seconds += time.process_time() - started

        setattr(owner, name, call)


@pytest.mark.parametrize("controller", ["reference", "rldp"])
def test_controller_and_accounting_take_at_most_one_per_cent_of_the_steps(controller: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=1000,
            n_positions=TOKENS,
            n_embd=256,
            n_layer=4,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).requires_grad_(False)
    plan = plan_of(controller)
    training = PrivateTraining(
        plan=plan,
        model=attach_adapters(base, plan.adapter, seed=1),
        blocks=Blocks(training=records(), validation=None),
        make_policy=lambda seen: make_policy(
            controller, groups=seen, seed=1, chunks_planned=plan.chunks_planned
        ),
        journal=MemoryJournal(plan),
        checkpoints=MemoryStore(),
        progress=MemoryProgress(),
        noise_source=OsEntropySource(),
        performance=Performance(),
    )
    steps, beside = Timed(), Timed()
    steps.around(training.step_runner, "run")
    for owner, name in (
        (training.policy, "propose"),
        (training.policy, "learn"),
        (training.policy, "digest"),
        (training, "_open"),
    ):
        beside.around(owner, name)
    training.run()
    share = beside.seconds / steps.seconds
    print(f"\n{controller}: {beside.seconds:.2f} s beside {steps.seconds:.2f} s, {share:.2%}")
    assert share <= SHARE_MAX
