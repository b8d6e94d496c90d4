"""What an adapted model must be for the per-patient bound to hold (privacy.md 13, "attach").

The clip functions bound one patient's gradient of one adapter tensor. That is the patient's
whole influence only if nothing else is trained, no tensor appears twice, and no layer lets
one row of a batch see another.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from dp_core.errors import (
    BatchCoupledModel,
    PrecisionTooLow,
    TiedWeights,
    TrainableOutsideAdapters,
    UnsupportedAdapter,
)

LORA_NAME = re.compile(r"^base_model\.model\.(?P<path>.+)\.lora_(?P<tensor>[AB])\.default\.weight$")
# Experts that drop the tokens beyond their capacity choose among all rows of a batch.
_CAPACITY_FIELDS = (
    "expert_capacity",
    "expert_capacity_factor",
    "capacity_factor",
    "moe_capacity_factor",
)


def check_supported(model: nn.Module) -> None:
    """Refuses an attached model that would break the per-patient bound.

    Raises:
        UnsupportedAdapter: an adapter other than plain LoRA on a linear layer.
        TrainableOutsideAdapters: anything else can move.
        TiedWeights: a trainable tensor shares its memory with another tensor.
        PrecisionTooLow: a trainable tensor below float32.
        BatchCoupledModel: a layer or setting lets rows of a batch see each other.
    """
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            _check_adapter(name, module)
        _check_rows_apart(name, module)
    _check_trainable(model)
    _check_experts(model)


def _check_adapter(name: str, layer: LoraLayer) -> None:
    if layer.lora_embedding_A:
        raise UnsupportedAdapter(
            f"target_modules: {name} is an embedding, whose adapter has no per-patient gradient. "
            "Adapt linear layers: 'auto' names them all."
        )
    if not isinstance(layer.get_base_layer(), (nn.Linear, Conv1D)):
        raise UnsupportedAdapter(
            f"target_modules: {name} is no linear layer. Adapt linear layers: 'auto' names them."
        )
    if layer.lora_variant or layer.lora_magnitude_vector:
        raise UnsupportedAdapter(
            f"use_dora and other variants of LoRA (at {name}) have trainable parts that are not "
            "clipped per patient. Use plain LoRA."
        )
    if set(layer.lora_A) != {"default"} or layer.merged or layer.disable_adapters:
        raise UnsupportedAdapter(
            f"{name} has another adapter than 'default', or a merged or disabled one. Attach one "
            "adapter named 'default' to the base model."
        )
    halves = (layer.lora_A["default"], layer.lora_B["default"])
    if not all(isinstance(half, nn.Linear) and half.weight.requires_grad for half in halves):
        raise UnsupportedAdapter(
            f"{name}: A and B must be linear and trainable. Attach the adapter for training."
        )


def _check_rows_apart(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.modules.batchnorm._NormBase):
        # Instance norm is of the same base: with running statistics it mixes rows as well.
        raise BatchCoupledModel(
            f"{name} normalises over the rows of a batch. Use a model with LayerNorm or RMSNorm."
        )
    threshold = getattr(getattr(module, "state", None), "threshold", 0.0)
    if type(module).__name__ == "Linear8bitLt" and threshold > 0:
        raise BatchCoupledModel(
            f"llm_int8_threshold: {name} takes outlier columns of the whole batch out of its "
            "8-bit product. Load with llm_int8_threshold=0."
        )


def _check_trainable(model: nn.Module) -> None:
    named = list(model.named_parameters(remove_duplicate=False))
    uses = Counter(parameter.untyped_storage().data_ptr() for _, parameter in named)
    trainable = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    if not trainable:
        raise UnsupportedAdapter("No adapter tensor is trainable. Attach it for training.")
    for name, parameter in trainable:
        if LORA_NAME.match(name) is None:
            raise TrainableOutsideAdapters(
                f"{name} is trainable and not a LoRA tensor. Freeze it: set bias to 'none', "
                "modules_to_save to none, and the base model's requires_grad to False."
            )
        if uses[parameter.untyped_storage().data_ptr()] > 1:
            raise TiedWeights(
                f"{name} shares its memory with another tensor: it would be clipped once for "
                "each use. Give every layer an adapter of its own, without ensure_weight_tying."
            )
        if parameter.dtype not in (torch.float32, torch.float64):
            raise PrecisionTooLow(
                f"{name} is {parameter.dtype}. Keep adapters in float32; base_dtype alone may "
                "be lower."
            )


def _check_experts(model: nn.Module) -> None:
    """Routing that picks experts token by token keeps rows apart; these settings do not."""
    for config in _configs(model):
        for field in _CAPACITY_FIELDS:
            if getattr(config, field, None):
                raise BatchCoupledModel(
                    f"{field}: experts of limited capacity let rows push each other's tokens "
                    "out. Use a model whose experts take every token routed to them."
                )
        if getattr(config, "output_router_logits", False):
            raise BatchCoupledModel(
                "output_router_logits: the balance loss of the experts is a mean over the batch. "
                "Set it to false; the loss then has no such term."
            )


def _configs(model: nn.Module) -> list[Any]:
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return []
    return [config, config.get_text_config()]
