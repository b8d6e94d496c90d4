"""Configurations from outside: each field accepted, or refused with its reason (REFUSE)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, VeraConfig
from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig

from dp_core import submission
from dp_core.errors import (
    DpCoreError,
    LeakyQuantity,
    PackedSequences,
    PlanInvalid,
    PrecisionTooLow,
    SamplerNotPoisson,
    TiedWeights,
    UnsupportedAdapter,
    UnsupportedInitialisation,
)
from dp_core.lora import attach_adapters
from dp_core.plan import AdapterPlan
from dp_core.submission import check_adapter_config, check_training_settings
from tests.dp_core.models import tiny_llama

READ_BY_NAME = {"bias", "init_lora_weights", "peft_type", "target_modules", "task_type"}


class TestAdapterConfig:
    @pytest.mark.parametrize(
        "config",
        [
            {},
            LoraConfig(),
            LoraConfig(r=64, lora_alpha=3, use_rslora=True, lora_dropout=0.1),
            LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
            LoraConfig(target_modules=["q_proj", "model.layers.0.mlp.up_proj"]),
            LoraConfig(target_modules=r".*\.(q|v)_proj"),
            LoraConfig(init_lora_weights="gaussian"),
            LoraConfig(init_lora_weights="orthogonal"),
            {"peft_type": "LORA", "bias": None, "rank_pattern": {}, "init_lora_weights": True},
        ],
    )
    def test_plain_lora_is_accepted(self, config: Any) -> None:
        check_adapter_config(config)

    def test_what_our_own_adapters_are_saved_with_is_accepted(self, tmp_path: Path) -> None:
        model = attach_adapters(tiny_llama(), AdapterPlan(r=2, alpha=4), seed=1)
        check_adapter_config(model.peft_config["default"])
        model.peft_config["default"].save_pretrained(tmp_path)
        check_adapter_config(LoraConfig.from_pretrained(tmp_path))

    @pytest.mark.parametrize("name", sorted(submission._ADAPTER_REFUSALS))
    def test_each_refused_field_is_named_with_a_remedy(self, name: str) -> None:
        error, _ = submission._ADAPTER_REFUSALS[name]
        with pytest.raises(error, match=rf"^adapter\.{name}: .*(Set it|Leave it|Use|Save)"):
            check_adapter_config({name: {"any": "value"}})

    def test_no_field_of_the_installed_library_is_unknown(self) -> None:
        known = submission._FREE_FIELDS | set(submission._ADAPTER_REFUSALS) | READ_BY_NAME
        assert {f.name for f in dataclasses.fields(LoraConfig)} <= known

    def test_a_field_of_a_later_library_is_refused_unless_it_is_off(self) -> None:
        check_adapter_config({"use_future_lora": False})
        with pytest.raises(UnsupportedAdapter, match="use_future_lora"):
            check_adapter_config({"use_future_lora": True})

    @pytest.mark.parametrize(
        "config",
        [
            LoraConfig(init_lora_weights="eva", eva_config=EvaConfig()),
            LoraConfig(init_lora_weights="corda", corda_config=CordaConfig()),
            LoraConfig(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()),
            {"init_lora_weights": "EVA"},
            {"init_lora_weights": "corda"},
            {"init_lora_weights": "something_new"},
            {"init_lora_weights": False},
        ],
    )
    def test_initialisations_that_read_data_or_are_unknown(self, config: Any) -> None:
        with pytest.raises(UnsupportedInitialisation, match="init_lora_weights"):
            check_adapter_config(config)

    @pytest.mark.parametrize("name", ["pissa", "pissa_niter_16", "olora", "loftq", "mica"])
    def test_initialisations_from_the_base_alone_are_refused_for_changing_it(
        self, name: str
    ) -> None:
        with pytest.raises(UnsupportedAdapter, match="reads no data"):
            check_adapter_config({"init_lora_weights": name})

    @pytest.mark.parametrize(
        "targets",
        [
            "embed_tokens",
            ["q_proj", "lm_head"],
            {"transformer.wte"},
            ["conv1d"],
            ["x.word_embeddings"],
        ],
    )
    def test_embeddings_heads_and_convolutions_are_no_targets(self, targets: Any) -> None:
        with pytest.raises(UnsupportedAdapter, match="target_modules"):
            check_adapter_config({"target_modules": targets})

    @pytest.mark.parametrize(
        ("config", "field"),
        [
            (LoraConfig(bias="all"), "bias"),
            (LoraConfig(bias="lora_only"), "bias"),
            (LoraConfig(task_type="SEQ_CLS"), "task_type"),
            (VeraConfig(), "peft_type"),
            ({"target_modules": 7}, "target_modules"),
        ],
    )
    def test_other_kinds_of_adapter(self, config: Any, field: str) -> None:
        with pytest.raises(UnsupportedAdapter, match=field):
            check_adapter_config(config)

    def test_values_never_appear_in_the_text(self) -> None:
        for name in ("modules_to_save", "rank_pattern", "init_lora_weights", "unknown"):
            with pytest.raises(DpCoreError) as caught:
                check_adapter_config({name: "CANARY-7391"})
            assert "CANARY" not in str(caught.value)

    def test_tied_adapters(self) -> None:
        with pytest.raises(TiedWeights, match="ensure_weight_tying"):
            check_adapter_config(LoraConfig(ensure_weight_tying=True))


class TestTrainingSettings:
    @pytest.mark.parametrize(
        ("name", "error"),
        [
            ("packing", PackedSequences),
            ("padding_free", PackedSequences),
            ("group_by_length", SamplerNotPoisson),
            ("dataloader_drop_last", SamplerNotPoisson),
            ("noise_seed", PlanInvalid),
            ("num_train_epochs", LeakyQuantity),
            ("load_best_model_at_end", LeakyQuantity),
            ("include_num_input_tokens_seen", LeakyQuantity),
            ("pure_bf16", PrecisionTooLow),
        ],
    )
    def test_each_reason_has_its_type(self, name: str, error: type[DpCoreError]) -> None:
        with pytest.raises(error, match=name):
            check_training_settings({"learning_rate": 0.1, name: True})

    @pytest.mark.parametrize("name", sorted(submission._SETTINGS_REFUSALS))
    def test_each_refused_setting_is_named_with_a_remedy(self, name: str) -> None:
        error, _ = submission._SETTINGS_REFUSALS[name]
        with pytest.raises(error, match=rf"^{name}: .*(Leave it out|Use|State)") as caught:
            check_training_settings({name: "CANARY-7391"})
        assert type(caught.value) is error
        assert "CANARY" not in str(caught.value)

    def test_settings_without_effect_pass(self) -> None:
        check_training_settings(dict.fromkeys(submission._SETTINGS_REFUSALS, False))
        check_training_settings({"learning_rate": "0.01", "warmup_ratio": 0.1})
