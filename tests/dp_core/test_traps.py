"""Traps of the libraries below, and the rule here that avoids each (TRAPS).

Where it is cheap a test shows the trap itself first: if a new version of the library closes
it, that line fails and the rule can be looked at again.
"""

from __future__ import annotations

import ast
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.data_loader import wrap_collate_with_empty
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.utils.batch_memory_manager import BatchSplittingSampler
from peft import LoraConfig, get_peft_model

import dp_core
from dp_core.accounting import RdpFilter, limit_pico, pld_epsilon, step_pico
from dp_core.adapter_checks import check_supported
from dp_core.base_model import enable_checkpointing
from dp_core.checkpoint import from_files
from dp_core.clipping import clip_and_sum
from dp_core.errors import (
    BudgetExhausted,
    CheckpointMismatch,
    PermitExhausted,
    PlanInvalid,
    SamplerNotPoisson,
    UnsupportedAdapter,
)
from dp_core.events import PoissonGaussian
from dp_core.noise import OsEntropySource, SeededSource
from dp_core.plan import Performance
from dp_core.planner import PlanRequest, sampling_probability
from dp_core.ports import ChunkPermit
from dp_core.records import IGNORED, PaddedRows, PatientRecords, patient_losses
from dp_core.sampling import PoissonSampler, microbatches, padded
from tests.dp_core.models import VOCABULARY, adapted, tiny_llama
from tests.dp_core.test_refusals import plan

PERMIT = ChunkPermit(attempt=1, chunk_index=0, first_step=0, steps=2, reference="test#0")


def rows_of(tokens: torch.Tensor, targets: torch.Tensor) -> PaddedRows:
    """One row for each patient."""
    return PaddedRows(
        tokens=tokens,
        targets=targets,
        slot_mask=torch.ones(len(tokens)),
        row_share=torch.ones(len(tokens)),
    )


def flat_gradient(loss: torch.Tensor, model: Any) -> torch.Tensor:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])


def test_d3_one_non_finite_row_spoils_no_other() -> None:
    rows = torch.ones(3, 4)
    rows[1, 2] = float("nan")
    assert not bool(torch.isfinite(rows.sum(dim=0)).all()), "what a plain sum does"
    summed = clip_and_sum([rows], 1.0, torch.ones(3)).raw_sums[0]
    alone = clip_and_sum([rows[[0, 2]]], 1.0, torch.ones(2)).raw_sums[0]
    assert torch.equal(summed, alone)


@pytest.mark.filterwarnings("ignore")  # of Opacus, about hooks that never fire
def test_d4_hooks_under_non_reentrant_checkpointing_are_refused() -> None:
    model = adapted("llama").train()
    enable_checkpointing(model, Performance(checkpointing="non_reentrant"))
    hooks = GradSampleHooks(model, batch_first=True, loss_reduction="sum", strict=False)
    model(input_ids=torch.arange(12).view(2, 6)).logits.sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert any(getattr(p, "grad_sample", None) is None for p in trained), "the trap is there"
    hooks.cleanup()
    with pytest.raises(PlanInvalid, match="one_backward"):
        Performance(engine="opacus_hooks", checkpointing="non_reentrant")


def test_d5_the_loss_of_a_patient_is_not_divided_by_the_tokens_of_the_batch() -> None:
    model = adapted("llama").train()
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, (9, 10), generator=generator)
    own_targets = torch.full_like(tokens, IGNORED)
    own_targets[0, :-1] = tokens[0, 1:]

    def library(rows: int) -> torch.Tensor:
        counted = model.base_model.model.loss_function(
            model(input_ids=tokens[:rows]).logits,
            tokens[:rows],
            VOCABULARY,
            shift_labels=own_targets[:rows],
            num_items_in_batch=9 * rows,
        )
        return flat_gradient(counted, model)

    def ours(rows: int) -> torch.Tensor:
        whole = rows_of(tokens[:rows], tokens[:rows].roll(-1, dims=1))
        return flat_gradient(patient_losses(model(input_ids=whole.tokens).logits, whole)[0], model)

    assert float((library(9) - library(2)).norm()) > 0.5 * float(library(2).norm())
    assert float((ours(9) - ours(2)).norm()) <= 1e-6 * float(ours(2).norm())


def test_d6_an_empty_draw_runs_one_microbatch_of_padding() -> None:
    model = tiny_llama()
    with pytest.raises(Exception):  # noqa: B017 - whatever the library makes of no rows
        model(input_ids=torch.zeros(0, 0, dtype=torch.long))
    records = PatientRecords(raw_rows=[[np.array([5, 6, 7])]], tokens_per_row=4, pad_id=2)
    (only,) = microbatches(padded(np.zeros((0, 3), dtype=np.int64), 3), 3)
    assert only.is_last
    batch = records.batch(only.raw_slots)
    assert batch.tokens.shape == (6, 4)
    losses = patient_losses(model(input_ids=batch.tokens).logits, batch) * batch.slot_mask
    assert losses.tolist() == [0.0, 0.0, 0.0]


def test_d7_a_free_slot_holds_nothing_of_an_earlier_patient() -> None:
    collate = wrap_collate_with_empty(collate_fn=torch.stack)
    real = collate([torch.tensor([5, 6])])
    assert torch.equal(collate.first_batch, real), "the trap is there"
    records = PatientRecords(raw_rows=[[np.array([5, 6, 7])]], tokens_per_row=4, pad_id=2)
    records.batch(np.array([[0, 0], [0, 0]]))
    free = records.batch(np.array([[-1, -1], [-1, -1]]))
    assert bool((free.tokens == 2).all())
    assert bool((free.targets == IGNORED).all())


@pytest.mark.parametrize(
    "fields", [{"target_modules": ["embed_tokens"]}, {"use_dora": True}], ids=["embedding", "dora"]
)
def test_d8_adapters_without_a_per_row_gradient_are_refused(fields: dict[str, Any]) -> None:
    fields = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | fields
    model = get_peft_model(tiny_llama(), LoraConfig(**fields))
    with pytest.raises(UnsupportedAdapter):
        check_supported(model)


def test_d10_secure_noise_needs_no_further_package() -> None:
    assert OsEntropySource().draw(PERMIT, 3).shape == (3,)
    assert OsEntropySource.is_private


def test_d11_rate_and_divisor_come_from_declared_numbers() -> None:
    names = {field.name for field in dataclasses.fields(PlanRequest)}
    assert not names & {"patients", "records", "rows", "dataset_size", "loader"}
    assert sampling_probability(10, 100) == "0.1"
    small, large = (
        PoissonSampler(sampling_probability="0.1", raw_population_size=n) for n in (7, 7000)
    )
    assert small._threshold == large._threshold == np.uint64(int(0.1 * 2**53))


@pytest.mark.parametrize("sampler", ["shuffled", "drop_last", "fixed_size", "distributed"])
def test_d13_shuffled_batches_are_not_accounted_as_poisson(sampler: str) -> None:
    with pytest.raises(SamplerNotPoisson, match="poisson"):
        plan(sampler=sampler)()


def test_d14_nothing_is_imported_by_star() -> None:
    with pytest.raises(AttributeError):
        exec("from opacus.optimizers import *", {})
    (folder,) = dp_core.__path__
    for path in Path(folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != "*" for alias in node.names), path.name


@pytest.mark.parametrize("make", [OsEntropySource, lambda: SeededSource(1)], ids=["os", "seeded"])
def test_d15_noise_shares_no_generator_with_the_program(make: Any) -> None:
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    first = make().draw(PERMIT, 5)
    assert torch.equal(torch.rand(2), expected), "the draw moved the global generator"
    torch.manual_seed(4)
    again = make().draw(PERMIT, 5)
    assert torch.equal(first, again) == isinstance(make(), SeededSource)


def test_d17_the_end_of_a_step_is_part_of_its_last_microbatch() -> None:
    flags: list[bool] = []

    class Optimizer:
        def signal_skip_step(self, do_skip: bool) -> None:
            flags.append(do_skip)

    batches = iter(
        BatchSplittingSampler(
            sampler=[[1, 2, 3, 4], [5, 6]], max_batch_size=2, optimizer=Optimizer()
        )
    )
    next(batches), next(batches)
    assert flags == [True, False], "a queue beside the batches, filled ahead by workers"
    for drawn in (0, 1, 3, 4, 7):
        step = list(microbatches(padded(np.arange(drawn), 3), 3))
        assert [batch.is_last for batch in step] == [False] * (len(step) - 1) + [True]


def test_o1_noise_is_refused_before_it_is_drawn() -> None:
    source = SeededSource(1)
    source.draw(PERMIT, 3)
    source.draw(PERMIT, 3)
    state = source._generator.get_state()
    with pytest.raises(PermitExhausted):
        source.draw(PERMIT, 3)
    assert torch.equal(source._generator.get_state(), state)


def test_o3_a_checkpoint_is_never_unpickled() -> None:
    class Opened:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("a pickle was opened",))

    with pytest.raises(CheckpointMismatch):
        from_files({"state.json": pickle.dumps(Opened())}, plan_digest="0" * 64)


def test_o4_an_adaptive_history_is_bounded_by_the_filter_and_not_by_an_accountant() -> None:
    silent = PRVAccountant()
    for noise in (2.0, 1.0, 0.7):  # chosen one after the other: nothing is said
        silent.step(noise_multiplier=noise, sample_rate=0.01)
    budget = RdpFilter(limit_pico=limit_pico("8", "1e-5", 8), alpha=8)
    event = PoissonGaussian(q="0.1", noise_multiplier="1.000", steps=1)
    for _ in range(budget.free_pico // step_pico("0.1", "1.000", 8)):
        budget.charge(event)
    with pytest.raises(BudgetExhausted):
        budget.charge(event)


def test_o5_the_certificate_is_not_limited_by_the_orders_of_a_table() -> None:
    library = RDPAccountant()
    library.history = [(4.0, 0.01, 100)]
    with pytest.warns(UserWarning, match="Optimal order is the largest"):
        stopped = library.get_epsilon(delta=1e-5)
    ours = float(pld_epsilon([PoissonGaussian(q="0.01", noise_multiplier="4", steps=100)], "1e-5"))
    assert stopped > 1.4 * ours


@pytest.mark.parametrize("levels", [("0",), ("0.000",), ("-1",)])
def test_o6_no_noise_is_no_plan_and_noise_is_float32(levels: tuple[str, ...]) -> None:
    assert SeededSource(1).draw(PERMIT, 3).dtype == torch.float32
    with pytest.raises(PlanInvalid, match="noise_levels"):
        plan(noise_levels=levels)()


def test_o7_a_clip_bit_moves_its_sum_by_one_half() -> None:
    rows = torch.tensor([[0.1, 0.0], [5.0, 0.0], [0.2, 0.0]])
    everyone = clip_and_sum([rows], 1.0, torch.ones(3)).raw_bits
    for absent in range(3):
        mask = torch.ones(3)
        mask[absent] = 0
        assert abs(float(everyone - clip_and_sum([rows], 1.0, mask).raw_bits)) == 0.5
