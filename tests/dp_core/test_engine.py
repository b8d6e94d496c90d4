"""The clipped sums against an independent slow oracle, and their sensitivity
(GRAD, MICRO, NANS, SENS, ROWS; M6-M10, M17-M20)."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dp_core.clipping import clip_and_sum, clipped_loss_sum
from dp_core.errors import InvariantViolation, PermitExhausted, PlanViolation
from dp_core.lora import clip_groups, layout_of
from dp_core.mechanism import StepSettings, admit
from dp_core.noise import NoiseSource
from dp_core.optimizer import PrivateOptimizer
from dp_core.plan import OptimizerPlan
from dp_core.ports import ChunkPermit, GroupActions
from dp_core.records import IGNORED, PaddedRows, patient_losses
from dp_core.schedule import make_optimizer
from dp_core.selfcheck import check_engine
from dp_core.step import attach_hooks
from tests.dp_core.conftest import VOCABULARY, adapted, make_plan

PERMIT = ChunkPermit(attempt=1, chunk_index=0, first_step=0, steps=50, reference="test#0")


class NoNoise(NoiseSource):
    """Counts draws and returns zeros, so that sums can be compared exactly."""

    name, is_private = "none_test", False

    def __init__(self) -> None:
        super().__init__()
        self.draws = 0

    def _gaussian(self, length: int) -> torch.Tensor:
        self.draws += 1
        return torch.zeros(length)


def random_rows(patients: int, rows_each: int, length: int = 9, seed: int = 1) -> PaddedRows:
    """Rows of uneven length; with several rows a patient, each weighs 1/rows_each."""
    generator = torch.Generator().manual_seed(seed)
    total = patients * rows_each
    tokens = torch.randint(0, VOCABULARY, (total, length), generator=generator)
    targets = tokens.roll(-1, dims=1)
    for row in range(total):
        targets[row, 3 + (row * 5) % (length - 3) :] = IGNORED
    return PaddedRows(
        tokens=tokens,
        targets=targets,
        slot_mask=torch.ones(patients),
        row_share=torch.full((total,), 1 / rows_each),
    )


def part(rows: PaddedRows, patients: slice, rows_each: int) -> PaddedRows:
    lines = slice(patients.start * rows_each, patients.stop * rows_each)
    return PaddedRows(
        tokens=rows.tokens[lines],
        targets=rows.targets[lines],
        slot_mask=rows.slot_mask[patients],
        row_share=rows.row_share[lines],
    )


def step_settings(groups: Any, clip: str, grouping: str) -> StepSettings:
    from dp_core.plan import ClippingPlan

    plan = make_plan(clipping=ClippingPlan(clip_norm=clip, clip_min="0.00001", grouping=grouping))  # type: ignore[arg-type]
    count = len(groups)
    return admit(plan, layout_of(groups), (float(clip),) * count, GroupActions.neutral(count))


def engine_sums(
    model: Any, rows: PaddedRows, *, microbatch: int, rows_each: int, clip: str, grouping: str
) -> tuple[list[torch.Tensor], int]:
    """Released sums without noise, one step in microbatches, and the number of draws."""
    groups = clip_groups(model, grouping)  # type: ignore[arg-type]
    noise = NoNoise()
    optimizer = PrivateOptimizer(
        make_optimizer(groups, OptimizerPlan()),
        groups=groups,
        noise_source=noise,
        batch_size_expected=10,
    )
    hooks = attach_hooks(model)
    optimizer.arm(PERMIT, step_settings(groups, clip, grouping))
    patients = len(rows.slot_mask)
    for start in range(0, patients, microbatch):
        piece = part(rows, slice(start, min(start + microbatch, patients)), rows_each)
        losses = patient_losses(model(input_ids=piece.tokens).logits, piece)
        (losses * piece.slot_mask).sum().backward()
        optimizer.take_microbatch(
            raw_losses=losses, slot_mask=piece.slot_mask, rows_per_patient=rows_each
        )
        optimizer.signal_skip_step(start + microbatch < patients)
        optimizer.step()
        optimizer.zero_grad()
    hooks.cleanup()
    assert optimizer.released is not None
    return list(optimizer.released.sums), noise.draws


def oracle_sums(
    model: Any, rows: PaddedRows, *, rows_each: int, clip: float, grouping: str
) -> list[torch.Tensor]:
    """One float64 backward per patient, clipped and summed by the definition."""
    precise = copy.deepcopy(model).double()
    groups = clip_groups(precise, grouping)  # type: ignore[arg-type]
    sums = [torch.zeros(g.size, dtype=torch.float64) for g in groups]
    for patient in range(len(rows.slot_mask)):
        precise.zero_grad()
        single = part(rows, slice(patient, patient + 1), rows_each)
        logits = precise(input_ids=single.tokens).logits
        per_row = []
        for line in range(rows_each):
            keep = single.targets[line] != IGNORED
            log_probabilities = logits[line].log_softmax(-1)
            picked = log_probabilities[keep].gather(1, single.targets[line][keep][:, None])
            per_row.append(-picked.mean())
        torch.stack(per_row).mean().backward()
        for total, group in zip(sums, groups, strict=True):
            flat = torch.cat([p.grad.reshape(-1) for p in group.parameters if p.grad is not None])
            total += flat * min(1.0, clip / (float(flat.norm()) + 1e-6))
    return sums


class TestGradients:
    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    @pytest.mark.parametrize("grouping", ["tensor", "pair"])
    @pytest.mark.parametrize("rows_each", [1, 3])
    def test_equal_to_single_patient_backward(
        self, kind: str, grouping: str, rows_each: int
    ) -> None:
        rows = random_rows(5, rows_each)
        for clip in ("0.003", "0.05", "10"):
            expected = oracle_sums(
                adapted(kind), rows, rows_each=rows_each, clip=float(clip), grouping=grouping
            )
            found, _ = engine_sums(
                adapted(kind),
                rows,
                microbatch=5,
                rows_each=rows_each,
                clip=clip,
                grouping=grouping,
            )
            for a, b in zip(found, expected, strict=True):
                assert float((a.double() - b).norm()) <= 2e-5 * float(b.norm())

    @pytest.mark.parametrize("microbatch", [1, 2, 3, 7])
    def test_the_microbatch_size_changes_nothing_and_noise_is_drawn_once(
        self, microbatch: int
    ) -> None:
        rows = random_rows(7, 1)
        whole, _ = engine_sums(
            adapted("gpt2"), rows, microbatch=7, rows_each=1, clip="0.02", grouping="tensor"
        )
        cut, draws = engine_sums(
            adapted("gpt2"),
            rows,
            microbatch=microbatch,
            rows_each=1,
            clip="0.02",
            grouping="tensor",
        )
        assert draws == 1
        for a, b in zip(cut, whole, strict=True):
            assert float((a - b).norm()) <= 1e-5 * float(b.norm())

    def test_a_patients_contribution_ignores_the_other_patients(self) -> None:
        rows = random_rows(4, 1)
        other = random_rows(4, 1, seed=9)
        other.tokens[0], other.targets[0] = rows.tokens[0], rows.targets[0]
        without = PaddedRows(
            tokens=other.tokens,
            targets=other.targets,
            slot_mask=torch.tensor([0.0, 1, 1, 1]),
            row_share=other.row_share,
        )
        arguments = {"microbatch": 4, "rows_each": 1, "clip": "10", "grouping": "tensor"}
        alone, _ = engine_sums(adapted("llama"), part(rows, slice(0, 1), 1), **arguments)  # type: ignore[arg-type]
        full, _ = engine_sums(adapted("llama"), other, **arguments)  # type: ignore[arg-type]
        rest, _ = engine_sums(adapted("llama"), without, **arguments)  # type: ignore[arg-type]
        for a, f, r in zip(alone, full, rest, strict=True):
            assert float((f - r - a).norm()) <= 1e-4 * float(a.norm())

    def test_self_check_passes_and_leaves_the_weights(self) -> None:
        model = adapted("gpt2")
        groups = clip_groups(model)
        before = [p.detach().clone() for g in groups for p in g.parameters]
        check_engine(model, groups, vocabulary=VOCABULARY, seed=1)
        after = [p for g in groups for p in g.parameters]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


class TestClipAndSum:
    def test_each_row_of_the_table(self) -> None:
        nan, inf = float("nan"), float("inf")
        raw = torch.tensor([[0.3, 0.4], [30, 40], [nan, 1], [inf, 0], [3e38, 3e38], [9, 9]])
        mask = torch.tensor([1.0, 1, 1, 1, 1, 0])
        result = clip_and_sum([raw], 1.0, mask)
        expected = torch.tensor([0.3 + 0.6, 0.4 + 0.8])
        assert torch.allclose(result.raw_sums[0], expected, atol=1e-5)
        assert float(result.raw_bits) == 0.5 - 0.5

    def test_an_unusable_patient_leaves_the_others_bit_equal(self) -> None:
        raw = torch.randn(6, 40, generator=torch.Generator().manual_seed(2))
        spoiled = raw.clone()
        spoiled[2] = float("nan")
        kept = torch.ones(6)
        kept[2] = 0
        with_nan = clip_and_sum([spoiled], 0.7, torch.ones(6))
        without = clip_and_sum([raw], 0.7, kept)
        assert torch.equal(with_nan.raw_sums[0], without.raw_sums[0])
        assert torch.equal(with_nan.raw_bits, without.raw_bits)

    @settings(max_examples=200, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        scale=st.floats(1e-6, 1e6),
        clip=st.floats(1e-4, 10),
        patients=st.integers(1, 9),
    )
    def test_one_patient_moves_the_joint_release_by_at_most_the_promise(
        self, seed: int, scale: float, clip: float, patients: int
    ) -> None:
        """sqrt(sum_j |diff_j|^2 / s_j^2) <= (1 + 1e-5) / sigma, telemetry included."""
        generator = torch.Generator().manual_seed(seed)
        raw = [torch.randn(patients, d, generator=generator) * scale for d in (3, 50)]
        losses = torch.rand(patients, generator=generator) * 20 - 5
        layout = layout_of_sizes((3, 50))
        chosen = admit(make_plan(), layout, (clip, clip), GroupActions.neutral(2))
        absent = torch.ones(patients)
        absent[seed % patients] = 0
        total = 0.0
        for k, gradients in enumerate(raw):
            a = clip_and_sum([gradients], chosen.clip_norms[k], torch.ones(patients))
            b = clip_and_sum([gradients], chosen.clip_norms[k], absent)
            moved = (a.raw_sums[0].double() - b.raw_sums[0].double()).norm()
            total += float(moved / chosen.noise_stds[k]) ** 2
            total += float((a.raw_bits - b.raw_bits) / chosen.bit_std) ** 2
        moved_loss = clipped_loss_sum(losses, chosen.loss_cap, torch.ones(patients))
        moved_loss = moved_loss - clipped_loss_sum(losses, chosen.loss_cap, absent)
        total += float(moved_loss / chosen.loss_std) ** 2
        assert math.sqrt(total) <= (1 + 1e-5) / float(chosen.noise_multiplier)

    def test_loss_sum_is_centred_bounded_and_skips_what_is_not_finite(self) -> None:
        losses = torch.tensor([0.0, 99.0, 3.0, float("nan"), 5.0])
        mask = torch.tensor([1.0, 1, 1, 1, 0])
        assert float(clipped_loss_sum(losses, 6.0, mask)) == -3 + 3 + 0
        assert float(clipped_loss_sum(losses, 6.0, mask, centre=1.0)) == -1 + 3 + 2


def layout_of_sizes(sizes: tuple[int, ...]) -> Any:
    from dp_core.mechanism import GroupLayout

    return GroupLayout(ids=tuple(f"{i:02d}" for i in range(len(sizes))), sizes=sizes)


class TestOptimizerRules:
    def optimizer(self, steps: int = 50) -> tuple[PrivateOptimizer, Any]:
        model = adapted("gpt2")
        groups = clip_groups(model)
        made = PrivateOptimizer(
            make_optimizer(groups, OptimizerPlan()),
            groups=groups,
            noise_source=NoNoise(),
            batch_size_expected=10,
        )
        return made, groups

    def test_opacus_knobs_cannot_be_written_on_a_bound_run(self) -> None:
        made, _ = self.optimizer()
        for name in ("noise_multiplier", "max_grad_norm"):
            with pytest.raises(PlanViolation, match=name):
                setattr(made, name, 0.1)

    def test_an_attached_accountant_reads_the_charged_multiplier(self) -> None:
        made, groups = self.optimizer()
        chosen = step_settings(groups, "0.05", "tensor")
        made.arm(PERMIT, chosen)
        assert made.noise_multiplier == float(chosen.noise_multiplier)
        assert made.accumulated_iterations == 1

    def test_without_settings_nothing_runs(self) -> None:
        made, _ = self.optimizer()
        with pytest.raises(InvariantViolation):
            made.clip_and_accumulate()

    def test_noise_beyond_the_permit_is_refused_before_the_draw(self) -> None:
        source = NoNoise()
        permit = ChunkPermit(attempt=1, chunk_index=4, first_step=8, steps=2, reference="x")
        source.draw(permit, 3)
        source.draw(permit, 3)
        with pytest.raises(PermitExhausted):
            source.draw(permit, 3)
        assert source.draws == 2
