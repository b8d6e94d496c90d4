"""One case for each row of the table of refusals: type, setting, remedy, no data (REFUSE)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from dp_core.adapter_checks import check_supported
from dp_core.errors import (
    BatchCoupledModel,
    DpCoreError,
    LeakyQuantity,
    PackedSequences,
    PlanInvalid,
    PlanViolation,
    PrecisionTooLow,
    SamplerNotPoisson,
    TiedWeights,
    TrainableOutsideAdapters,
    UnsupportedAdapter,
    UnsupportedInitialisation,
)
from dp_core.lora import clip_groups
from dp_core.mechanism import StepSettings
from dp_core.noise import SeededSource
from dp_core.plan import OptimizerPlan, Performance, RunPlan
from dp_core.plan_optimizer import PlanOptimizer
from dp_core.schedule import make_optimizer
from dp_core.selfcheck import check_engine
from dp_core.step import make_engine
from dp_core.submission import check_adapter_config, check_training_settings
from tests.dp_core.engine_cases import PERMIT, settings_for
from tests.dp_core.models import VOCABULARY, adapted, tiny_llama

CANARY = "CANARY-7391"
PLAN_FIELDS: dict[str, Any] = {
    "unit": "patient",
    "patients_public": 100,
    "target_epsilon": "8",
    "delta": "1e-4",
    "sampling_probability": "0.1",
    "batch_size_expected": 10,
    "steps_planned": 6,
    "steps_started_max": 10,
    "steps_per_chunk": 2,
    "noise_levels": ("1.000",),
    "job_limit": 10,
    "epsilon_certified": "8",
    "seed": 3,
    "controller_type": "reference",
    "base_model_digest": "0" * 64,
    "dataset_version": "dsv_test",
}


def adapter_field(**fields: Any) -> Callable[[], None]:
    return lambda: check_adapter_config(fields)


def setting(**fields: Any) -> Callable[[], None]:
    return lambda: check_training_settings(fields)


def plan(**changes: Any) -> Callable[[], object]:
    return lambda: RunPlan(**(PLAN_FIELDS | changes))


def unfrozen() -> None:
    model = adapted("llama")
    model.base_model.model.model.norm.weight.requires_grad_(True)
    check_supported(model)


def trained_head() -> None:
    config = LoraConfig(
        target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    )
    check_supported(get_peft_model(tiny_llama(), config))


def tied() -> None:
    model = adapted("llama")
    blocks = model.base_model.model.model.layers
    shared = blocks[0].mlp.up_proj.lora_A["default"].weight
    blocks[1].mlp.up_proj.lora_A["default"].weight = shared
    check_supported(model)


def batch_norm() -> None:
    model = adapted("llama")
    model.base_model.model.model.extra = nn.BatchNorm1d(4).requires_grad_(False)
    check_supported(model)


def limited_experts() -> None:
    model = adapted("llama")
    model.config.expert_capacity = 4
    check_supported(model)


class SeesTheBatch(nn.Module):
    """A norm layer that also looks at the other rows, as a contrast with negatives does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(hidden)
        return out - 0.1 * out.mean(dim=0, keepdim=True)


def in_batch_negatives() -> None:
    model = adapted("llama")
    decoder = model.base_model.model.model
    decoder.norm = SeesTheBatch(decoder.norm)
    check_supported(model)
    check_engine(model, clip_groups(model), vocabulary=VOCABULARY, seed=1)


def low_precision() -> None:
    model = adapted("llama")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    check_supported(model)


def bound_run() -> tuple[PlanOptimizer, StepSettings]:
    model = adapted("llama")
    groups = clip_groups(model)
    settings = settings_for(groups, 0.02)
    bound = PlanOptimizer(
        make_optimizer(groups, OptimizerPlan()),
        groups=groups,
        engine=make_engine(model, groups, Performance()),
        noise_source=SeededSource(1),
        batch_size_expected=10,
        noise_levels=(settings.noise_multiplier,),
    )
    return bound, settings


def written_on_a_bound_run() -> None:
    bound, _ = bound_run()
    bound.noise_multiplier = 0.5


def sigma_off_the_menu() -> None:
    bound, settings = bound_run()
    bound.arm(PERMIT, dataclasses.replace(settings, noise_multiplier="0.100"))


def settings_changed_inside_a_chunk() -> None:
    bound, settings = bound_run()
    bound.arm(PERMIT, settings)
    bound._permit = None  # as if the step had ended
    bound.arm(
        PERMIT, dataclasses.replace(settings, clip_norms=tuple(2 * c for c in settings.clip_norms))
    )


ROWS: dict[str, tuple[type[DpCoreError], Callable[[], object]]] = {
    "DoRA": (UnsupportedAdapter, adapter_field(use_dora=True)),
    "LoRA on embeddings": (UnsupportedAdapter, adapter_field(target_modules=["embed_tokens"])),
    "LoRA on convolutions": (UnsupportedAdapter, adapter_field(target_modules=["conv1d"])),
    "bias other than none": (UnsupportedAdapter, adapter_field(bias="all")),
    "modules_to_save": (UnsupportedAdapter, adapter_field(modules_to_save=[CANARY])),
    "EVA": (UnsupportedInitialisation, adapter_field(init_lora_weights="eva")),
    "CorDA": (UnsupportedInitialisation, adapter_field(init_lora_weights="corda")),
    "LoRA-GA": (UnsupportedInitialisation, adapter_field(init_lora_weights="lora_ga")),
    "trainable tensor outside": (TrainableOutsideAdapters, unfrozen),
    "trained head": (TrainableOutsideAdapters, trained_head),
    "tied adapter weights": (TiedWeights, tied),
    "BatchNorm": (BatchCoupledModel, batch_norm),
    "expert capacity limits": (BatchCoupledModel, limited_experts),
    "in-batch negatives": (BatchCoupledModel, in_batch_negatives),
    "packed sequences": (PackedSequences, setting(packing=True)),
    "padding-free batches": (PackedSequences, setting(padding_free=True)),
    "adapter tensors below float32": (PrecisionTooLow, low_precision),
    "bfloat16 sums": (PlanInvalid, plan(sum_dtype="bfloat16")),
    "sampler other than Poisson": (SamplerNotPoisson, plan(sampler="shuffled")),
    "length-grouped batches": (SamplerNotPoisson, setting(group_by_length=True)),
    "user seed for noise": (PlanInvalid, setting(noise_seed=CANARY)),
    "delta too large": (PlanInvalid, plan(delta="0.5")),
    "unknown unit": (PlanInvalid, plan(unit="note")),
    "unknown relation": (PlanInvalid, plan(relation="replace_one")),
    "steps from a count": (LeakyQuantity, setting(num_train_epochs=3)),
    "early stop on private loss": (LeakyQuantity, setting(early_stopping_patience=2)),
    "best checkpoint on private loss": (LeakyQuantity, setting(load_best_model_at_end=True)),
    "exact counts among the outputs": (LeakyQuantity, setting(include_num_input_tokens_seen=True)),
    "optimiser fields written on a bound run": (PlanViolation, written_on_a_bound_run),
    "sigma off the menu": (PlanViolation, sigma_off_the_menu),
    "settings changed inside a chunk": (PlanViolation, settings_changed_inside_a_chunk),
}


class TestRefusals:
    def test_the_plan_without_the_change_is_valid(self) -> None:
        plan()()

    @pytest.mark.parametrize("row", ROWS)
    def test_typed_and_without_data(self, row: str) -> None:
        error, attempt = ROWS[row]
        with pytest.raises(error) as caught:
            attempt()
        assert type(caught.value) is error
        assert CANARY not in str(caught.value)

    def test_every_class_of_the_table_has_a_case(self) -> None:
        table = {
            UnsupportedAdapter,
            UnsupportedInitialisation,
            TrainableOutsideAdapters,
            TiedWeights,
            BatchCoupledModel,
            PackedSequences,
            PrecisionTooLow,
            SamplerNotPoisson,
            PlanInvalid,
            LeakyQuantity,
            PlanViolation,
        }
        assert {error for error, _ in ROWS.values()} == table
