"""Both engines against an independent slow oracle (GRAD, MICRO, ROWS; M6-M10, M17-M20)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from dp_core import engine
from dp_core.errors import (
    AdapterReused,
    BatchCoupledModel,
    GradientMissing,
    InvariantViolation,
    PlanInvalid,
    PrecisionTooLow,
    SelfCheckFailed,
    UnsupportedAdapter,
)
from dp_core.lora import clip_groups, layout_of
from dp_core.per_sample import OneBackwardEngine
from dp_core.plan import Performance
from dp_core.raw_sums import RawSums
from dp_core.records import PaddedRows
from dp_core.selfcheck import check_engine
from dp_core.step import make_engine, summed_backward
from tests.dp_core.conftest import MODELS, VOCABULARY, adapted
from tests.dp_core.engine_cases import (
    clipped_by_definition,
    in_float64,
    oracle_gradients,
    oracle_sums,
    part,
    random_rows,
    run_step,
    settings_for,
    without,
    worst_difference,
)

FAMILIES = sorted(MODELS)
FLOAT32, FLOAT64 = 1e-5, 1e-10
CLIP = {"grouping": "tensor"}
RULES = [
    {"grouping": "tensor"},
    {"grouping": "pair"},
    {"grouping": "tensor", "rule": "whitened"},
    {"grouping": "pair", "rule": "whitened"},
    {"grouping": "tensor", "rule": "whitened", "factor": "auto_s"},
]


def checkpointed(model: Any, mode: str) -> Any:
    if mode != "off":
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": mode == "reentrant"}
        )
        model.enable_input_require_grads()
    return model


class TestGradients:
    """Sums equal a loop of single-patient backwards, whatever the model and the settings."""

    @pytest.mark.parametrize("kind", FAMILIES)
    @pytest.mark.parametrize("rows_each", [1, 3])
    def test_every_family_and_rule_in_float64(self, kind: str, rows_each: int) -> None:
        model = in_float64(adapted(kind))
        rows = random_rows(5, rows_each, dtype=torch.float64)
        gradients = oracle_gradients(model, rows, rows_each=rows_each)
        for clipping in RULES:
            for clip in (0.003, 0.05, 5.0):
                step = run_step(
                    model,
                    rows,
                    clip=clip,
                    rows_each=rows_each,
                    clipping=clipping,
                    sum_dtype="float64",
                )
                expected = clipped_by_definition(
                    gradients, rows, step.settings, grouping=clipping["grouping"]
                )
                assert worst_difference(step.sums, expected) <= FLOAT64, (clipping, clip)

    @pytest.mark.parametrize("kind", FAMILIES)
    @pytest.mark.parametrize("mode", ["off", "reentrant", "non_reentrant"])
    def test_checkpointing_changes_nothing(self, kind: str, mode: str) -> None:
        rows = random_rows(5, 2)
        for dtype, tolerance, sums in (
            (torch.float32, FLOAT32, "float32"),
            (torch.float64, FLOAT64, "float64"),
        ):
            convert = in_float64 if dtype == torch.float64 else torch.nn.Module.float
            model = checkpointed(convert(adapted(kind)), mode)
            step = run_step(model, rows, clip=0.02, rows_each=2, sum_dtype=sums)
            plain = convert(adapted(kind))
            expected = oracle_sums(plain, rows, step.settings, rows_each=2, grouping="tensor")
            assert worst_difference(step.sums, expected) <= tolerance

    @pytest.mark.parametrize("kind", FAMILIES)
    @pytest.mark.parametrize("mode", ["off", "reentrant"])
    def test_equal_to_opacus_hooks(self, kind: str, mode: str) -> None:
        rows = random_rows(4, 2)
        hooks = Performance(engine="opacus_hooks")
        for clipping in RULES:
            arguments: dict[str, Any] = {"clip": 0.02, "rows_each": 2, "clipping": clipping}
            ours = run_step(checkpointed(adapted(kind), mode), rows, **arguments)
            theirs = run_step(
                checkpointed(adapted(kind), mode), rows, performance=hooks, **arguments
            )
            assert worst_difference(ours.sums, [s.double() for s in theirs.sums]) <= FLOAT32
            assert torch.equal(ours.released.bit_sums, theirs.released.bit_sums)

    @pytest.mark.parametrize("rank", [1, 2, 7])
    def test_any_rank(self, rank: int) -> None:
        model, rows = in_float64(adapted("llama", rank=rank)), random_rows(4, 1)
        step = run_step(model, rows, sum_dtype="float64")
        expected = oracle_sums(model, rows, step.settings, rows_each=1, grouping="tensor")
        assert worst_difference(step.sums, expected) <= FLOAT64

    def test_padding_tokens_and_free_slots_add_nothing(self) -> None:
        rows = random_rows(6, 1)
        free = without(without(rows, 1), 4)
        step = run_step(adapted("gpt2").double(), free, sum_dtype="float64")
        expected = oracle_sums(adapted("gpt2"), free, step.settings, rows_each=1, grouping="tensor")
        assert worst_difference(step.sums, expected) <= FLOAT64
        longer = PaddedRows(
            tokens=torch.nn.functional.pad(rows.tokens, (0, 5), value=7),
            targets=torch.nn.functional.pad(rows.targets, (0, 5), value=-100),
            slot_mask=rows.slot_mask,
            row_share=rows.row_share,
        )
        padded = run_step(adapted("gpt2"), longer)
        plain = run_step(adapted("gpt2"), rows)
        assert worst_difference(padded.sums, [s.double() for s in plain.sums]) <= FLOAT32

    def test_an_empty_draw_releases_zero_sums_and_draws_noise(self) -> None:
        rows = random_rows(3, 1)
        for patient in range(3):
            rows = without(rows, patient)
        step = run_step(adapted("gpt2"), rows)
        assert step.draws == 1
        assert float(step.released.gradient.abs().max()) == 0.0
        assert float(step.released.bit_sums.abs().max()) == 0.0
        assert step.released.loss_sum == 0.0

    @pytest.mark.parametrize("mode", ["off", "reentrant", "non_reentrant"])
    def test_dropout_masks_are_those_of_the_forward_pass(self, mode: str) -> None:
        """Same masks, same sums: dropout is recomputed, not drawn again (E4)."""
        rows = random_rows(4, 1)
        sums = []
        for each in ("off", mode):
            model = checkpointed(adapted("gpt2"), each)
            for module in model.modules():
                if hasattr(module, "lora_dropout"):
                    module.lora_dropout["default"] = torch.nn.Dropout(0.4)
            torch.manual_seed(11)
            sums.append(run_step(model, rows).sums)
        assert worst_difference(sums[1], [s.double() for s in sums[0]]) <= FLOAT32
        undropped = run_step(adapted("gpt2"), rows).sums
        assert worst_difference(sums[1], [s.double() for s in undropped]) > 0.05

    def test_autocast_measures_what_it_sums(self) -> None:
        """bf16 products differ from float32 by bf16's rounding, and stay below the clip (G11)."""
        rows = random_rows(5, 1)
        performance = Performance(autocast=True)
        for clip in (0.003, 0.05):
            step = run_step(adapted("llama"), rows, clip=clip, performance=performance)
            expected = oracle_sums(
                adapted("llama"), rows, step.settings, rows_each=1, grouping="tensor"
            )
            assert worst_difference(step.sums, expected) <= 5e-2
            assert all(s.dtype == torch.float32 for s in step.sums)
            alone = run_step(
                adapted("llama"), part(rows, slice(0, 1), 1), clip=clip, performance=performance
            )
            for total, bound in zip(alone.sums, alone.settings.clip_norms, strict=True):
                assert float(total.double().norm()) <= bound * (1 + 2.0**-16)

    def test_a_bf16_base_keeps_float32_adapters_and_sums(self) -> None:
        model, rows = adapted("llama"), random_rows(5, 1)
        for name, parameter in model.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.to(torch.bfloat16)
        step = run_step(model, rows)
        expected = oracle_sums(
            adapted("llama"), rows, step.settings, rows_each=1, grouping="tensor"
        )
        assert worst_difference(step.sums, expected) <= 5e-2
        assert all(s.dtype == torch.float32 for s in step.sums)


class TestMicrobatches:
    @pytest.mark.parametrize("size", [1, 2, 5, 7])
    def test_their_size_changes_nothing_and_noise_is_drawn_once(self, size: int) -> None:
        rows = random_rows(7, 1)
        for dtype, sums, tolerance in (
            (torch.float32, "float32", 1e-5),
            (torch.float64, "float64", 1e-12),
        ):
            whole = run_step(adapted("gpt2").to(dtype), rows, sum_dtype=sums)
            cut = run_step(adapted("gpt2").to(dtype), rows, microbatch=size, sum_dtype=sums)
            assert cut.draws == 1
            assert worst_difference(cut.sums, [s.double() for s in whole.sums]) <= tolerance
            assert torch.equal(cut.released.bit_sums, whole.released.bit_sums)
            assert cut.released.loss_sum == pytest.approx(whole.released.loss_sum, rel=1e-5)

    def test_same_shape_groups_stacked_or_one_by_one_give_the_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = random_rows(6, 1)
        monkeypatch.setitem(engine._STACK_BYTES, "cpu", 0)
        single = run_step(adapted("llama").double(), rows, sum_dtype="float64")
        for depth_bytes in (4_000, 40_000, 2 * 2**20):
            monkeypatch.setitem(engine._STACK_BYTES, "cpu", depth_bytes)
            stacked = run_step(adapted("llama").double(), rows, sum_dtype="float64")
            assert worst_difference(stacked.sums, single.sums) <= 1e-12
            assert torch.equal(stacked.released.bit_sums, single.released.bit_sums)


class TestRows:
    @pytest.mark.parametrize("kind", FAMILIES)
    def test_a_patients_contribution_ignores_the_other_patients(self, kind: str) -> None:
        rows, other = random_rows(4, 1), random_rows(4, 1, seed=9)
        other.tokens[0], other.targets[0] = rows.tokens[0], rows.targets[0]
        model = in_float64(adapted(kind))
        alone = run_step(model, part(rows, slice(0, 1), 1), clip=5.0, sum_dtype="float64")
        full = run_step(model, other, clip=5.0, sum_dtype="float64")
        rest = run_step(model, without(other, 0), clip=5.0, sum_dtype="float64")
        for a, f, r in zip(alone.sums, full.sums, rest.sums, strict=True):
            assert float((f - r - a).norm()) <= 1e-9 * float(a.norm())


class TestGrid:
    """The hardened option: rows on a public grid, integer sums (G12)."""

    def test_sums_are_bit_equal_for_every_microbatch_split_of_equal_gradients(self) -> None:
        from dp_core.clipping import clip_factors, row_norms, weighted_sum

        raw = torch.randn(2, 9, 40, generator=torch.Generator().manual_seed(3))
        clips, quanta = torch.tensor([[0.7], [0.2]]), torch.tensor([1e-4, 3e-5])
        norms = row_norms(raw)
        factors = clip_factors(norms, clips, torch.ones(9), "clip")
        whole = weighted_sum(raw.clone(), factors, norms, quanta)
        for cut in (1, 4):
            pieces = [
                weighted_sum(
                    raw[:, a : a + cut].clone(),
                    factors[:, a : a + cut],
                    norms[:, a : a + cut],
                    quanta,
                )
                for a in range(0, 9, cut)
            ]
            assert torch.equal(torch.stack(pieces).sum(0), whole)
        assert whole.dtype == torch.int64

    def test_rounding_towards_zero_never_lengthens_a_patient(self) -> None:
        from dp_core.clipping import clip_factors, row_norms, weighted_sum

        for seed in range(20):
            raw = torch.randn(1, 1, 300, generator=torch.Generator().manual_seed(seed))
            norms = row_norms(raw)
            factors = clip_factors(norms, torch.tensor([[0.5]]), torch.ones(1), "clip")
            whole = weighted_sum(raw.clone(), factors, norms, torch.tensor([0.01]))
            assert float((whole.double() * 0.01).norm()) <= 0.5 * (1 + 2.0**-16)

    def test_the_engine_sums_the_same_up_to_the_grid(self) -> None:
        rows = random_rows(5, 1)
        model = adapted("gpt2")
        groups = clip_groups(model)
        chosen = settings_for(groups, 0.02)
        sums = RawSums(layout_of(groups), dtype="integer_grid", device="cpu")
        sums.clear(chosen)
        engine = make_engine(model, groups, Performance())
        engine.open(settings=chosen, slot_mask=rows.slot_mask, rows_per_patient=1, sums=sums)
        summed_backward(model, rows, Performance())
        engine.close()
        engine.detach()
        plain = run_step(adapted("gpt2"), rows, clip=0.02)
        released = sums.in_units()[: sums.coordinates]
        quanta = torch.cat(
            [
                torch.full((size,), std / 2**14)
                for size, std in zip(chosen.layout.sizes, chosen.noise_stds, strict=True)
            ]
        )
        assert bool(((released - plain.released.gradient).abs() <= 5 * quanta + 1e-6).all())


class TestMisuse:
    """What would break one clip per patient stops the job instead."""

    def test_a_reused_adapter_is_refused(self) -> None:
        model, rows = adapted("gpt2"), random_rows(2, 1)
        layers = model.base_model.model.transformer.h
        layers[1] = layers[0]
        groups = tuple(g for g in clip_groups(model) if g.layer == 0)
        engine = make_engine(model, groups, Performance())
        sums = RawSums(layout_of(groups), dtype="float32", device="cpu")
        chosen = settings_for(groups, 0.1)
        sums.clear(chosen)
        engine.open(settings=chosen, slot_mask=rows.slot_mask, rows_per_patient=1, sums=sums)
        with pytest.raises(AdapterReused, match="used twice"):
            summed_backward(model, rows, Performance())

    def test_a_group_without_a_gradient_is_refused(self) -> None:
        model, rows = adapted("gpt2"), random_rows(2, 1)
        groups = clip_groups(model)
        engine = make_engine(model, groups, Performance())
        sums = RawSums(layout_of(groups), dtype="float32", device="cpu")
        chosen = settings_for(groups, 0.1)
        sums.clear(chosen)
        engine.open(settings=chosen, slot_mask=rows.slot_mask, rows_per_patient=1, sums=sums)
        with pytest.raises(GradientMissing, match="received no gradient"):
            engine.close()

    def test_rows_that_were_flattened_together_are_refused(self) -> None:
        model, rows = adapted("llama"), random_rows(3, 1)
        attention = model.base_model.model.model.layers[0].mlp
        plain = attention.gate_proj.forward
        attention.gate_proj.forward = lambda x: plain(x.flatten(0, 1)).view(*x.shape[:2], -1)
        with pytest.raises(BatchCoupledModel, match="one line per row"):
            run_step(model, rows)

    def test_a_forward_with_gradients_outside_a_microbatch_is_refused(self) -> None:
        model, rows = adapted("gpt2"), random_rows(2, 1)
        engine = make_engine(model, clip_groups(model), Performance())
        with pytest.raises(InvariantViolation, match="outside a microbatch"):
            model(input_ids=rows.tokens)
        with torch.no_grad():
            model(input_ids=rows.tokens)
        engine.detach()
        model(input_ids=rows.tokens).logits.sum().backward()
        assert all(p.grad is not None for g in clip_groups(model) for p in g.parameters)

    def test_an_adapter_with_a_bias_is_refused(self) -> None:
        model = adapted("gpt2")
        module = model.base_model.model.transformer.h[0].attn.c_attn
        module.lora_B["default"].bias = torch.nn.Parameter(torch.zeros(48))
        groups = tuple(g for g in clip_groups_ignoring_bias(model))
        with pytest.raises(UnsupportedAdapter, match="without bias"):
            make_engine(model, groups, Performance())

    def test_reduced_float32_products_are_refused(self) -> None:
        torch.set_float32_matmul_precision("high")
        try:
            with pytest.raises(PrecisionTooLow, match="highest"):
                run_step(adapted("gpt2"), random_rows(2, 1))
        finally:
            torch.set_float32_matmul_precision("highest")

    def test_hooks_under_non_reentrant_checkpointing_are_refused_by_name(self) -> None:
        with pytest.raises(PlanInvalid, match="one_backward"):
            Performance(engine="opacus_hooks", checkpointing="non_reentrant")
        model = checkpointed(adapted("gpt2"), "non_reentrant")
        with pytest.raises(GradientMissing):
            run_step(model, random_rows(2, 1), performance=Performance(engine="opacus_hooks"))


def clip_groups_ignoring_bias(model: Any) -> Any:
    module = model.base_model.model.transformer.h[0].attn.c_attn
    bias = module.lora_B["default"].bias
    module.lora_B["default"].bias = None
    groups = clip_groups(model)
    module.lora_B["default"].bias = bias
    return groups


class TestSelfCheck:
    @pytest.mark.parametrize("kind", FAMILIES)
    @pytest.mark.parametrize("engine", ["one_backward", "opacus_hooks"])
    def test_passes_and_leaves_the_model_as_it_was(self, kind: str, engine: str) -> None:
        model = adapted(kind)
        before = copy.deepcopy(model.state_dict())
        check_engine(
            model,
            clip_groups(model),
            vocabulary=VOCABULARY,
            seed=1,
            performance=Performance(engine=engine),  # type: ignore[arg-type]
        )
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name])
        assert all(p.grad is None for p in model.parameters())
        model(input_ids=random_rows(2, 1).tokens)

    def test_a_model_that_mixes_rows_is_refused(self) -> None:
        model = adapted("gpt2")
        head = model.base_model.model.lm_head
        plain = head.forward
        head.forward = lambda x: plain(x + 0.01 * x.mean(dim=0, keepdim=True))
        with pytest.raises(BatchCoupledModel):
            check_engine(model, clip_groups(model), vocabulary=VOCABULARY, seed=1)

    def test_sums_that_are_off_by_a_few_hundred_thousandths_are_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model, take = adapted("llama"), OneBackwardEngine.take

        def louder(
            self: OneBackwardEngine, group: int, tensor: int, x: torch.Tensor, grad: torch.Tensor
        ) -> None:
            take(self, group, tensor, x, grad * (1 + 1e-4))  # half of the patients are clipped

        monkeypatch.setattr(OneBackwardEngine, "take", louder)
        with pytest.raises(SelfCheckFailed, match="differ"):
            check_engine(model, clip_groups(model), vocabulary=VOCABULARY, seed=1)

    def test_sums_that_are_no_numbers_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, take = adapted("llama"), OneBackwardEngine.take

        def broken(
            self: OneBackwardEngine, group: int, tensor: int, x: torch.Tensor, grad: torch.Tensor
        ) -> None:
            take(self, group, tensor, x, grad)
            self._clipper._sums.vector.fill_(float("nan"))

        monkeypatch.setattr(OneBackwardEngine, "take", broken)
        with pytest.raises(SelfCheckFailed, match="differ"):
            check_engine(model, clip_groups(model), vocabulary=VOCABULARY, seed=1)

    def test_an_adapter_no_token_reaches_is_refused(self) -> None:
        model = adapted("gpt2")
        module = model.base_model.model.transformer.h[1].mlp.c_proj
        module.scaling["default"] = 0.0
        with pytest.raises(GradientMissing, match=r"001\.mlp\.c_proj"):
            check_engine(model, clip_groups(model), vocabulary=VOCABULARY, seed=1)
