"""Base model from a local directory, LoRA adapters through PEFT, and their clip groups.

Nothing is downloaded and no code of a model directory is run: safetensors only,
`trust_remote_code` off. Adapter initialisation depends on a public seed alone (L5).
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from dp_core.errors import (
    BatchCoupledModel,
    PrecisionTooLow,
    TiedWeights,
    TrainableOutsideAdapters,
    UnsupportedAdapter,
)
from dp_core.mechanism import GroupLayout
from dp_core.plan import AdapterPlan, Grouping

_LORA_NAME = re.compile(
    r"^base_model\.model\.(?P<path>.+)\.lora_(?P<tensor>[AB])\.default\.weight$"
)
_COUPLED = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass(frozen=True, kw_only=True)
class ClipGroup:
    """Tensors clipped together: one LoRA tensor, or the A and B of one adapter."""

    id: str
    kind: str  # projection and tensor, for example "c_attn.A"
    layer: int
    parameters: tuple[nn.Parameter, ...]

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.parameters)


def load_base(directory: Path) -> tuple[Any, Any]:
    """Model (float32, frozen, dropout as configured) and tokenizer of a local directory."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model.config.use_cache = False
    model.requires_grad_(False)
    return model, tokenizer


def attach_adapters(model: Any, plan: AdapterPlan, *, seed: int) -> Any:
    """The model with freshly initialised LoRA adapters, the only trainable tensors.

    Raises:
        UnsupportedAdapter: a target is not a linear layer, or none was found.
        TrainableOutsideAdapters, TiedWeights, PrecisionTooLow, BatchCoupledModel.
    """
    targets = _target_modules(model, plan)
    config = LoraConfig(
        r=plan.r,
        lora_alpha=plan.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=targets,
        fan_in_fan_out=_fan_in_fan_out(model, targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft_model = get_peft_model(model, config)
    check_supported(peft_model)
    # Hooks of the first adapted layer want an input with a gradient to compare against.
    peft_model.enable_input_require_grads()
    return peft_model


def _linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }


def _target_modules(model: nn.Module, plan: AdapterPlan) -> list[str]:
    linear = _linear_modules(model)
    wanted = plan.target_modules
    if wanted:
        chosen = [n for n in linear if n.rsplit(".", 1)[-1] in wanted]
        missing = set(wanted) - {n.rsplit(".", 1)[-1] for n in chosen}
        if missing:
            raise UnsupportedAdapter(
                "Some of adapter.target_modules are no linear layer of this model. "
                "Use 'auto', or names such as " + ", ".join(sorted(_suffixes(linear))) + "."
            )
        return chosen
    if not linear:
        raise UnsupportedAdapter("The base model has no linear layer to adapt.")
    return list(linear)


def _suffixes(names: Any) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in names}


def _fan_in_fan_out(model: nn.Module, targets: list[str]) -> bool:
    kinds = {isinstance(_linear_modules(model)[name], Conv1D) for name in targets}
    if len(kinds) > 1:
        raise UnsupportedAdapter("Linear and Conv1D targets cannot be mixed in one adapter.")
    return kinds.pop()


def check_supported(model: nn.Module) -> None:
    """Refuses what would break the per-patient bound (privacy.md 13)."""
    seen: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            continue
        if _LORA_NAME.match(name) is None:
            raise TrainableOutsideAdapters(f"{name} is trainable and not a LoRA tensor.")
        if id(parameter) in seen:
            raise TiedWeights(f"{name} is shared between modules.")
        if parameter.dtype not in (torch.float32, torch.float64):
            raise PrecisionTooLow(f"{name} is {parameter.dtype}; adapters must be float32.")
        seen.add(id(parameter))
    for name, module in model.named_modules():
        if isinstance(module, _COUPLED):
            raise BatchCoupledModel(f"{name} mixes the rows of a batch.")


def clip_groups(model: nn.Module, grouping: Grouping = "tensor") -> tuple[ClipGroup, ...]:
    """The clip groups of an adapted model, sorted by id: `003.attn.c_attn.A` (G1)."""
    members: dict[str, list[nn.Parameter]] = defaultdict(list)
    facts: dict[str, tuple[str, int]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        match = _LORA_NAME.match(name)
        if match is None:
            raise TrainableOutsideAdapters(f"{name} is trainable and not a LoRA tensor.")
        layer, path = _layer_and_path(match["path"])
        suffix = f".{match['tensor']}" if grouping == "tensor" else ""
        group_id = f"{layer:03d}.{path}{suffix}"
        members[group_id].append(parameter)
        facts[group_id] = (path.rsplit(".", 1)[-1] + suffix, layer)
    return tuple(
        ClipGroup(
            id=group_id,
            kind=facts[group_id][0],
            layer=facts[group_id][1],
            parameters=tuple(members[group_id]),
        )
        for group_id in sorted(members)
    )


def _layer_and_path(path: str) -> tuple[int, str]:
    """`transformer.h.3.attn.c_attn` -> (3, "attn.c_attn")."""
    match = re.search(r"\.(\d+)\.(.+)$", path)
    return (int(match[1]), match[2]) if match else (0, path)


def layout_of(groups: tuple[ClipGroup, ...]) -> GroupLayout:
    return GroupLayout(ids=tuple(g.id for g in groups), sizes=tuple(g.size for g in groups))
