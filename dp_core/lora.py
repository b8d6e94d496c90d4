"""LoRA adapters through PEFT, and their clip groups.

GPT-2, Llama, Mistral, Qwen, Gemma and Phi are the families that tests prove; another causal
model runs if the engine's self-check passes on it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from dp_core.adapter_checks import LORA_NAME, check_supported
from dp_core.base_model import enable_checkpointing
from dp_core.errors import InvariantViolation, TrainableOutsideAdapters, UnsupportedAdapter
from dp_core.mechanism import GroupLayout
from dp_core.plan import AdapterPlan, Grouping, Performance

_BLOCK = re.compile(r"\.(?P<layer>\d+)\.(?P<path>.+)$")


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


def attach_adapters(
    model: Any, plan: AdapterPlan, *, seed: int, performance: Performance = Performance()
) -> Any:
    """The model with freshly initialised LoRA adapters, the only trainable tensors.

    Adapters are float32 whatever the dtype of the base (E5). A is uniform and B zero, from
    the public seed alone (L5).

    Raises:
        UnsupportedAdapter: a target is not a linear layer of a block, or none was found.
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
    _check_targets(peft_model, targets)
    enable_checkpointing(peft_model, performance)
    return peft_model


def _linear_modules(model: Any) -> dict[str, nn.Module]:
    """Linear layers of the text decoder's blocks: no head, embedding, router or expert.

    A layer inside a mixture of experts sees tokens, not rows: which patient a token belongs
    to is lost there, so it cannot be clipped per patient.
    """
    decoder = set(model.get_decoder().modules())
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module in decoder
        and _BLOCK.search(name)
        and not _is_routed(model, name)
    }


def _is_routed(model: Any, name: str) -> bool:
    parents = name.split(".")[:-1]
    return any(
        hasattr(model.get_submodule(".".join(parents[:depth])), routed)
        for depth in range(1, len(parents) + 1)
        for routed in ("experts", "router")
    )


def _target_modules(model: Any, plan: AdapterPlan) -> list[str]:
    linear = _linear_modules(model)
    wanted = plan.target_modules
    chosen = [n for n in linear if not wanted or n.rsplit(".", 1)[-1] in wanted]
    if not chosen or set(wanted) - _suffixes(chosen):
        raise UnsupportedAdapter(
            "adapter.target_modules: not all of them are linear layers of this model's blocks. "
            "Use 'auto', or names such as " + ", ".join(sorted(_suffixes(linear))) + "."
        )
    return chosen


def _check_targets(peft_model: Any, targets: list[str]) -> None:
    # PEFT matches names by their ends, so a longer path could be adapted unasked.
    adapted = {
        name.removeprefix("base_model.model.")
        for name, module in peft_model.named_modules()
        if isinstance(module, LoraLayer)
    }
    if adapted != set(targets):
        raise InvariantViolation("PEFT adapted other layers than the targets.")


def _suffixes(names: Any) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in names}


def _fan_in_fan_out(model: Any, targets: list[str]) -> bool:
    kinds = {isinstance(_linear_modules(model)[name], Conv1D) for name in targets}
    if len(kinds) > 1:
        raise UnsupportedAdapter("Linear and Conv1D targets cannot be mixed in one adapter.")
    return kinds.pop()


def clip_groups(model: nn.Module, grouping: Grouping = "tensor") -> tuple[ClipGroup, ...]:
    """The clip groups of an adapted model, sorted by id: `003.attn.c_attn.A` (G1).

    Raises:
        TrainableOutsideAdapters: a trainable tensor would belong to no group.
        UnsupportedAdapter: two stacks of blocks name their layers alike.
    """
    members: dict[str, list[nn.Parameter]] = defaultdict(list)
    facts: dict[str, tuple[str, int, str]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        match = LORA_NAME.match(name)
        if match is None:
            raise TrainableOutsideAdapters(f"{name} is trainable and not a LoRA tensor.")
        layer, path = _layer_and_path(match["path"])
        suffix = f".{match['tensor']}" if grouping == "tensor" else ""
        group_id = f"{layer:03d}.{path}{suffix}"
        fact = (path.rsplit(".", 1)[-1] + suffix, layer, match["path"])
        if facts.setdefault(group_id, fact) != fact:
            raise UnsupportedAdapter(
                f"adapter.target_modules: two adapters would be named {group_id}. Adapt the "
                "blocks of one stack only; 'auto' does."
            )
        members[group_id].append(parameter)
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
    match = _BLOCK.search(path)
    return (int(match["layer"]), match["path"]) if match else (0, path)


def layout_of(groups: tuple[ClipGroup, ...]) -> GroupLayout:
    return GroupLayout(ids=tuple(g.id for g in groups), sizes=tuple(g.size for g in groups))
