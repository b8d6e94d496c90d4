"""What is refused at the attach: one model for each way to break the bound (REFUSE)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import MixtralConfig

from dp_core.adapter_checks import check_supported
from dp_core.errors import (
    BatchCoupledModel,
    PrecisionTooLow,
    TiedWeights,
    TrainableOutsideAdapters,
    UnsupportedAdapter,
)
from dp_core.lora import attach_adapters
from dp_core.plan import AdapterPlan
from tests.dp_core.models import COMMON, FAMILIES, adapted, build, tiny_llama


def with_config(**fields: Any) -> Any:
    fields = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | fields
    return get_peft_model(tiny_llama(), LoraConfig(**fields))


class TestAdapters:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_plain_lora_passes(self, family: str) -> None:
        check_supported(adapted(family))

    def test_dora(self) -> None:
        with pytest.raises(UnsupportedAdapter, match="use_dora"):
            check_supported(with_config(use_dora=True))

    def test_embeddings(self) -> None:
        with pytest.raises(UnsupportedAdapter, match=r"embed_tokens is an embedding.*'auto'"):
            check_supported(with_config(target_modules=["embed_tokens"]))

    def test_convolutions(self) -> None:
        base = tiny_llama()
        base.model.extra = nn.Conv1d(4, 4, 3)
        model = get_peft_model(base, LoraConfig(target_modules=["extra"], task_type="CAUSAL_LM"))
        with pytest.raises(UnsupportedAdapter, match="extra is no linear layer"):
            check_supported(model)

    @pytest.mark.filterwarnings("ignore")  # of PEFT, about weights of experts
    def test_weights_of_experts(self) -> None:
        base = build(MixtralConfig(**COMMON, num_local_experts=4))
        config = LoraConfig(target_modules=[], target_parameters=["mlp.experts.gate_up_proj"])
        with pytest.raises(UnsupportedAdapter, match="no linear layer"):
            check_supported(get_peft_model(base, config))

    @pytest.mark.parametrize("bias", ["all", "lora_only"])
    def test_biases(self, bias: str) -> None:
        config = LoraConfig(bias=bias, target_modules=["q_proj"], task_type="CAUSAL_LM")  # type: ignore[arg-type]
        fresh = get_peft_model(FAMILIES["qwen2"](), config)
        with pytest.raises(TrainableOutsideAdapters, match=r"bias.*Freeze it"):
            check_supported(fresh)

    @pytest.mark.filterwarnings("ignore:.*lora_bias=True")
    def test_bias_of_b(self) -> None:
        with pytest.raises(TrainableOutsideAdapters, match=r"lora_B\.default\.bias"):
            check_supported(with_config(lora_bias=True))

    def test_modules_to_save(self) -> None:
        with pytest.raises(TrainableOutsideAdapters, match="lm_head"):
            check_supported(with_config(modules_to_save=["lm_head"]))

    def test_trainable_token_rows(self) -> None:
        with pytest.raises(TrainableOutsideAdapters, match="token"):
            check_supported(with_config(trainable_token_indices=[3]))

    def test_an_unfrozen_base_tensor(self) -> None:
        model = adapted("llama")
        model.base_model.model.model.norm.weight.requires_grad_(True)
        with pytest.raises(TrainableOutsideAdapters, match=r"norm\.weight"):
            check_supported(model)

    def test_a_second_adapter(self) -> None:
        model = adapted("llama")
        model.add_adapter("second", LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
        with pytest.raises(UnsupportedAdapter, match="another adapter than 'default'"):
            check_supported(model)

    def test_a_merged_adapter(self) -> None:
        model = adapted("llama")
        model.merge_adapter()
        with pytest.raises(UnsupportedAdapter, match="merged"):
            check_supported(model)

    def test_half_an_adapter_frozen(self) -> None:
        with pytest.raises(UnsupportedAdapter, match="trainable"):
            check_supported(with_config(init_lora_weights="mica"))

    def test_no_adapter_at_all(self) -> None:
        with pytest.raises(UnsupportedAdapter, match="No adapter tensor is trainable"):
            check_supported(tiny_llama())


class TestTiedWeights:
    def layers(self, model: Any) -> tuple[Any, Any]:
        blocks = model.base_model.model.model.layers
        return blocks[0].self_attn.q_proj, blocks[1].self_attn.q_proj

    def test_one_tensor_in_two_layers(self) -> None:
        model = adapted("llama")
        first, second = self.layers(model)
        second.lora_A["default"].weight = first.lora_A["default"].weight
        with pytest.raises(TiedWeights, match="lora_A"):
            check_supported(model)

    def test_one_module_in_two_blocks(self) -> None:
        model = adapted("llama")
        blocks = model.base_model.model.model.layers
        blocks[1] = blocks[0]
        with pytest.raises(TiedWeights, match="shares its memory"):
            check_supported(model)

    def test_two_tensors_over_the_same_memory(self) -> None:
        model = adapted("llama")
        first, second = self.layers(model)
        second.lora_B["default"].weight.data = first.lora_B["default"].weight.data
        with pytest.raises(TiedWeights, match="lora_B"):
            check_supported(model)

    def test_an_adapter_over_the_memory_of_the_base(self) -> None:
        model = adapted("llama")
        first, _ = self.layers(model)
        first.lora_A["default"].weight.data = first.base_layer.weight.data[:3]
        with pytest.raises(TiedWeights, match="lora_A"):
            check_supported(model)

    @pytest.mark.parametrize("family", ["gpt2", "gemma"])
    def test_tied_embeddings_of_the_frozen_base_are_no_matter(self, family: str) -> None:
        model = adapted(family).base_model.model
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
        check_supported(adapted(family))


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_adapters_below_float32(self, dtype: torch.dtype) -> None:
        model = adapted("llama")
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        with pytest.raises(PrecisionTooLow, match=r"Keep adapters in float32; base_dtype"):
            check_supported(model)

    def test_float64_is_above(self) -> None:
        check_supported(adapted("llama").double())


class Linear8bitLt(nn.Linear):
    """Named as the layer of bitsandbytes, whose `state` holds the outlier threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__(2, 2)
        self.requires_grad_(False)
        self.state = type("State", (), {"threshold": threshold})()


class TestRowsApart:
    @pytest.mark.parametrize(
        "layer", [nn.BatchNorm1d(4), nn.SyncBatchNorm(4), nn.InstanceNorm1d(4)], ids=str
    )
    def test_norms_over_the_batch(self, layer: nn.Module) -> None:
        model = adapted("llama")
        model.base_model.model.model.extra = layer.requires_grad_(False)
        with pytest.raises(BatchCoupledModel, match=r"extra.*LayerNorm or RMSNorm"):
            check_supported(model)

    def test_outlier_columns_of_eight_bit_layers(self) -> None:
        model = adapted("llama")
        model.base_model.model.model.extra = Linear8bitLt(threshold=6.0)
        with pytest.raises(BatchCoupledModel, match="llm_int8_threshold=0"):
            check_supported(model)
        model.base_model.model.model.extra = Linear8bitLt(threshold=0.0)
        check_supported(model)

    def experts(self, **fields: Any) -> Any:
        base = build(MixtralConfig(**COMMON, num_local_experts=4))
        for name, value in fields.items():
            setattr(base.config, name, value)
        return base

    def test_token_choice_without_capacity_passes(self) -> None:
        attach_adapters(self.experts(), AdapterPlan(r=2, alpha=4), seed=1)

    @pytest.mark.parametrize("field", ["expert_capacity", "capacity_factor", "moe_capacity_factor"])
    def test_experts_of_limited_capacity(self, field: str) -> None:
        with pytest.raises(BatchCoupledModel, match=field):
            attach_adapters(self.experts(**{field: 2}), AdapterPlan(r=2, alpha=4), seed=1)

    def test_the_balance_loss_of_experts(self) -> None:
        base = self.experts(output_router_logits=True)
        with pytest.raises(BatchCoupledModel, match=r"output_router_logits.*false"):
            attach_adapters(base, AdapterPlan(r=2, alpha=4), seed=1)
