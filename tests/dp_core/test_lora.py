"""Adapters and clip groups of every family (G1, E5, L5)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MixtralConfig, Qwen2MoeConfig

from dp_core.errors import TrainableOutsideAdapters, UnsupportedAdapter
from dp_core.lora import attach_adapters, clip_groups, layout_of
from dp_core.plan import AdapterPlan
from dp_core.selfcheck import check_engine
from tests.dp_core.models import COMMON, FAMILIES, VOCABULARY, adapted, build

ATTENTION = ("self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj")
MLP = ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")
LAYERS: dict[str, tuple[str, ...]] = {
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "phi": (
        "mlp.fc1",
        "mlp.fc2",
        "self_attn.dense",
        "self_attn.k_proj",
        "self_attn.q_proj",
        "self_attn.v_proj",
    ),
    "phi3": ("mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj", "self_attn.qkv_proj"),
} | dict.fromkeys(
    ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"), MLP + ATTENTION
)


class TestClipGroups:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_auto_is_every_linear_layer_of_the_blocks(self, family: str) -> None:
        groups = clip_groups(adapted(family))
        expected = [
            f"{layer:03d}.{path}.{half}"
            for layer in (0, 1)
            for path in LAYERS[family]
            for half in ("A", "B")
        ]
        assert [g.id for g in groups] == sorted(expected)
        for group in groups:
            assert group.layer == int(group.id[:3])
            assert group.kind == ".".join(group.id.split(".")[-2:])

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_pair_holds_a_and_b_of_one_adapter(self, family: str) -> None:
        model = adapted(family)
        tensors = {g.id: g.parameters[0] for g in clip_groups(model)}
        for pair in clip_groups(model, "pair"):
            members = [tensors[f"{pair.id}.{half}"] for half in ("A", "B")]
            assert [id(p) for p in pair.parameters] == [id(p) for p in members]

    @pytest.mark.parametrize("family", FAMILIES)
    def test_sizes_are_rank_times_the_axes_of_the_base_layer(self, family: str) -> None:
        model = adapted(family, rank=5)
        layout = layout_of(clip_groups(model))
        named = dict(model.named_modules())
        for group_id, size in zip(layout.ids, layout.sizes, strict=True):
            layer, path, half = group_id[:3], group_id[4:-2], group_id[-1]
            (base,) = [
                m for n, m in named.items() if n.endswith(f".{int(layer)}.{path}.base_layer")
            ]
            rows, columns = base.weight.shape
            if family == "gpt2":  # Conv1D stores (in, out)
                rows, columns = columns, rows
            assert size == 5 * (columns if half == "A" else rows)

    @pytest.mark.parametrize("rank", [1, 2, 7, 64])
    def test_any_rank(self, rank: int) -> None:
        sizes = layout_of(clip_groups(adapted("phi3", rank=rank))).sizes
        assert all(size % rank == 0 for size in sizes)

    def test_two_stacks_with_equal_names_are_refused(self) -> None:
        model = adapted("llama")
        other = adapted("llama")
        model.base_model.model.vision = other.base_model.model.model
        with pytest.raises(UnsupportedAdapter, match="one stack"):
            clip_groups(model)

    def test_a_trainable_tensor_without_a_group_is_refused(self) -> None:
        model = adapted("llama")
        model.base_model.model.model.norm.weight.requires_grad_(True)
        with pytest.raises(TrainableOutsideAdapters, match=r"norm\.weight"):
            clip_groups(model)


class TestAttach:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_fresh_adapter_changes_nothing_and_the_seed_decides_it(self, family: str) -> None:
        tokens = torch.arange(20).view(2, 10) % VOCABULARY
        base = FAMILIES[family]().eval()
        plain = base(input_ids=tokens).logits
        plan = AdapterPlan(r=3, alpha=6)
        first = attach_adapters(FAMILIES[family](), plan, seed=3).eval()
        assert torch.equal(first(input_ids=tokens).logits, plain)
        again = attach_adapters(FAMILIES[family](), plan, seed=3)
        other = attach_adapters(FAMILIES[family](), plan, seed=4)
        for a, b, c in zip(*(clip_groups(m) for m in (first, again, other)), strict=True):
            assert torch.equal(a.parameters[0], b.parameters[0])
            assert torch.equal(a.parameters[0], c.parameters[0]) == a.id.endswith(".B")

    def test_attaching_leaves_the_global_generator_alone(self) -> None:
        torch.manual_seed(9)
        expected = torch.rand(3)
        torch.manual_seed(9)
        attach_adapters(FAMILIES["llama"](), AdapterPlan(r=3, alpha=6), seed=1)
        assert torch.equal(torch.rand(3), expected)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_row_gradient_equals_that_of_the_merged_weights_definition(self, family: str) -> None:
        """y = W x + (alpha / r) B A x: the scale and the orientation of Conv1D."""
        model = adapted(family).eval()
        tokens = torch.arange(20).view(2, 10) % VOCABULARY
        with_adapters = model(input_ids=tokens).logits
        merged = model.merge_and_unload().eval()(input_ids=tokens).logits
        assert torch.allclose(with_adapters, merged, atol=1e-5)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_engine_proves_itself_on_every_family(self, family: str) -> None:
        model = adapted(family)
        check_engine(model, clip_groups(model), vocabulary=VOCABULARY, seed=1)

    def test_named_targets(self) -> None:
        plan = AdapterPlan(r=3, alpha=6, target_modules=("q_proj", "up_proj"))
        groups = clip_groups(attach_adapters(FAMILIES["gemma3"](), plan, seed=1))
        assert {g.kind for g in groups} == {"q_proj.A", "q_proj.B", "up_proj.A", "up_proj.B"}

    @pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "q_norm", "no_such_layer"])
    def test_what_is_no_linear_layer_of_a_block_is_refused_with_those_that_are(
        self, target: str
    ) -> None:
        plan = AdapterPlan(r=3, alpha=6, target_modules=("q_proj", target))
        with pytest.raises(UnsupportedAdapter, match=r"target_modules.*'auto'.*down_proj"):
            attach_adapters(FAMILIES["qwen3"](), plan, seed=1)


def mixtral() -> Any:
    return build(MixtralConfig(**COMMON, num_local_experts=4))


def qwen2_moe() -> Any:
    return build(
        Qwen2MoeConfig(
            **COMMON, num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=8
        )
    )


class TestMixtureOfExperts:
    @pytest.mark.parametrize("make", [mixtral, qwen2_moe])
    def test_auto_leaves_routers_and_experts_alone(self, make: Any) -> None:
        groups = clip_groups(attach_adapters(make(), AdapterPlan(r=3, alpha=6), seed=1))
        assert {g.id[4:-2] for g in groups} == set(ATTENTION)

    @pytest.mark.parametrize("target", ["gate_proj", "shared_expert_gate"])
    def test_named_layers_of_experts_are_refused(self, target: str) -> None:
        plan = AdapterPlan(r=3, alpha=6, target_modules=(target,))
        with pytest.raises(UnsupportedAdapter, match="target_modules"):
            attach_adapters(qwen2_moe(), plan, seed=1)
