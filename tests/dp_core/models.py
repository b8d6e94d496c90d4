"""Tiny random models of every supported family, and adapters on them.

Fixed seeds, vocabulary 61, two blocks, no dropout; `set_lora_dropout` switches that of the
adapters on. The sizes are unequal wherever a family allows it, so that no test can pass by
mixing up two axes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from dp_core.lora import attach_adapters
from dp_core.plan import AdapterPlan

VOCABULARY = 61
CONTEXT = 32

# Sizes that all decoders of the Llama kind name alike.
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def build(config: PreTrainedConfig) -> Any:
    """A frozen model of random weights; the same ones for the same configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.config.use_cache = False
    return model.requires_grad_(False)


def tiny_gpt2() -> Any:
    """Conv1D linear layers with biases, learned positions, tied embeddings."""
    return build(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=CONTEXT,
            bos_token_id=0,
            eos_token_id=1,
            n_embd=16,
            n_layer=2,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def tiny_llama() -> Any:
    """nn.Linear layers and grouped key-value heads."""
    return build(LlamaConfig(**COMMON))


def tiny_mistral() -> Any:
    """A sliding window shorter than the rows."""
    return build(MistralConfig(**COMMON, sliding_window=8))


def tiny_qwen2() -> Any:
    """Biases on query, key and value."""
    return build(Qwen2Config(**COMMON))


def tiny_qwen3() -> Any:
    """Norms on query and key, heads wider than hidden size / heads."""
    return build(Qwen3Config(**COMMON, head_dim=8))


def tiny_gemma() -> Any:
    """Tied and scaled embeddings, heads wider than hidden size / heads."""
    return build(GemmaConfig(**COMMON, head_dim=8))


def tiny_gemma2() -> Any:
    """Soft-capped logits, a sliding window on every other layer."""
    return build(Gemma2Config(**COMMON, head_dim=8, query_pre_attn_scalar=8, sliding_window=8))


def tiny_gemma3() -> Any:
    """The text model: two rotary bases, norms on query and key."""
    return build(Gemma3TextConfig(**COMMON, head_dim=8, query_pre_attn_scalar=8, sliding_window=8))


def tiny_phi() -> Any:
    """Phi-1 and Phi-2: biases everywhere, attention and MLP side by side, half-rotary heads."""
    return build(PhiConfig(**COMMON, resid_pdrop=0.0, embd_pdrop=0.0))


def tiny_phi3() -> Any:
    """One fused layer for query, key and value, one for gate and up."""
    return build(Phi3Config(**COMMON, resid_pdrop=0.0, embd_pdrop=0.0))


FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
    "mistral": tiny_mistral,
    "qwen2": tiny_qwen2,
    "qwen3": tiny_qwen3,
    "gemma": tiny_gemma,
    "gemma2": tiny_gemma2,
    "gemma3": tiny_gemma3,
    "phi": tiny_phi,
    "phi3": tiny_phi3,
}


def adapted(family: str, *, rank: int = 3) -> Any:
    """The tiny model with adapters whose B is random, so that A has a gradient too."""
    model = attach_adapters(FAMILIES[family](), AdapterPlan(r=rank, alpha=2 * rank), seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def set_lora_dropout(model: Any, probability: float) -> None:
    """Dropout at the input of every adapter, as `lora_dropout` of PEFT would set it."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_dropout["default"] = torch.nn.Dropout(probability)
