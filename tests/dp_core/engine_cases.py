"""What the engine's tests share: public rows, one step of any engine, the float64 oracle."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from dp_core.engine import CanaryRows
from dp_core.lora import ClipGroup, clip_groups, layout_of
from dp_core.mechanism import StepSettings, admit
from dp_core.noise import NoiseSource
from dp_core.plan import ClippingPlan, OptimizerPlan, Performance
from dp_core.plan_optimizer import PlanOptimizer, ReleasedStep
from dp_core.ports import ChunkPermit, GroupActions
from dp_core.records import IGNORED, PaddedRows
from dp_core.schedule import make_optimizer
from dp_core.step import make_engine, summed_backward
from tests.dp_core.conftest import VOCABULARY, make_plan

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


def random_rows(
    patients: int,
    rows_each: int,
    length: int = 9,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
) -> PaddedRows:
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
        row_share=torch.full((total,), 1 / rows_each, dtype=dtype),
    )


class ExactNorm(torch.nn.Module):
    """An RMS norm in the dtype of its input; the originals round to float32 inside."""

    def __init__(self, original: torch.nn.Module) -> None:
        super().__init__()
        offset = 1.0 if type(original).__name__.startswith("Gemma") else 0.0
        self.weight = torch.nn.Parameter(
            (original.weight.detach() + offset).double(), requires_grad=False
        )
        self.eps = getattr(original, "variance_epsilon", getattr(original, "eps", 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def in_float64(model: Any) -> Any:
    """The model in float64 throughout, so that rounding cannot hide a difference."""
    precise = model.double()
    for module in list(precise.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, ExactNorm(child))
    return precise


def part(rows: PaddedRows, patients: slice, rows_each: int) -> PaddedRows:
    lines = slice(patients.start * rows_each, patients.stop * rows_each)
    return PaddedRows(
        tokens=rows.tokens[lines],
        targets=rows.targets[lines],
        slot_mask=rows.slot_mask[patients],
        row_share=rows.row_share[lines],
    )


def without(rows: PaddedRows, patient: int) -> PaddedRows:
    """The same rows with one slot free: the neighbouring draw."""
    mask = rows.slot_mask.clone()
    mask[patient] = 0
    return dataclasses.replace(rows, slot_mask=mask)


def settings_for(groups: tuple[ClipGroup, ...], clip: float, **clipping: Any) -> StepSettings:
    """Settings of a real plan with every reference at `clip`."""
    text = format(clip, "f")
    plan = make_plan(
        clipping=ClippingPlan(clip_norm=text, clip_min="0.000001", clip_max="10", **clipping)
    )
    count = len(groups)
    return admit(plan, layout_of(groups), (clip,) * count, GroupActions.neutral(count))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One noiseless step and what it drew."""

    released: ReleasedStep
    settings: StepSettings
    draws: int

    @property
    def sums(self) -> list[torch.Tensor]:
        return list(self.released.sums)


def run_step(
    model: Any,
    rows: PaddedRows,
    *,
    clip: float = 0.02,
    microbatch: int | None = None,
    rows_each: int = 1,
    canaries: CanaryRows | None = None,
    performance: Performance | None = None,
    settings: StepSettings | None = None,
    sum_dtype: str = "float32",
    clipping: Mapping[str, Any] | None = None,
) -> Step:
    """One step over `rows` in microbatches, noise left out."""
    chosen = performance or Performance()
    groups = clip_groups(model, (clipping or {}).get("grouping", "tensor"))
    noise = NoNoise()
    engine = make_engine(model, groups, chosen)
    settings = settings or settings_for(groups, clip, **(clipping or {}))
    optimizer = PlanOptimizer(
        make_optimizer(groups, OptimizerPlan()),
        groups=groups,
        engine=engine,
        noise_source=noise,
        batch_size_expected=10,
        noise_levels=(settings.noise_multiplier,),
        sum_dtype=sum_dtype,  # type: ignore[arg-type]
    )
    before = {p: p.detach().clone() for g in groups for p in g.parameters}
    optimizer.arm(PERMIT, settings, canaries)
    patients = len(rows.slot_mask)
    size = microbatch or patients
    try:
        for start in range(0, patients, size):
            piece = part(rows, slice(start, min(start + size, patients)), rows_each)
            optimizer.open_microbatch(slot_mask=piece.slot_mask, rows_per_patient=rows_each)
            optimizer.take_losses(summed_backward(model, piece, chosen))
            if chosen.engine == "one_backward":
                assert all(p.grad is None for p in before), "no gradient before its noise (E2)"
            optimizer.signal_skip_step(start + size < patients)
            optimizer.step()
            optimizer.zero_grad()
    finally:
        engine.detach()
        with torch.no_grad():
            for parameter, value in before.items():
                parameter.copy_(value)
    assert optimizer.released is not None
    return Step(released=optimizer.released, settings=settings, draws=noise.draws)


def oracle_gradients(model: Any, rows: PaddedRows, *, rows_each: int) -> list[list[torch.Tensor]]:
    """Per group and tensor, (P, d) float64: one backward per patient, by the definition."""
    precise = copy.deepcopy(model).double()
    precise.train(model.training)
    groups = clip_groups(precise, "pair")
    found: list[list[list[torch.Tensor]]] = [[[] for _ in g.parameters] for g in groups]
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
        for group, tensors in zip(groups, found, strict=True):
            for parameter, gradients in zip(group.parameters, tensors, strict=True):
                assert parameter.grad is not None
                gradients.append(parameter.grad.flatten().clone())
    return [[torch.stack(gradients) for gradients in tensors] for tensors in found]


def oracle_sums(
    model: Any, rows: PaddedRows, settings: StepSettings, *, rows_each: int, grouping: str
) -> list[torch.Tensor]:
    """Clipped sums in float64 of the model's own gradients."""
    pairs = oracle_gradients(model, rows, rows_each=rows_each)
    return clipped_by_definition(pairs, rows, settings, grouping=grouping)


def clipped_by_definition(
    pairs: list[list[torch.Tensor]], rows: PaddedRows, settings: StepSettings, *, grouping: str
) -> list[torch.Tensor]:
    """Clipped sums in float64, written down from privacy.md 2 and 2.2."""
    if grouping == "pair":
        per_group = [torch.cat(tensors, dim=1) for tensors in pairs]
    else:
        per_group = [g for tensors in pairs for g in tensors]
    totals = [torch.zeros(g.shape[1], dtype=torch.float64) for g in per_group]
    for patient in range(len(rows.slot_mask)):
        own = [g[patient] for g in per_group]
        if settings.rule == "whitened":
            joint = sum(
                share * float(g.norm() / clip) ** 2
                for g, clip, share in zip(own, settings.clip_norms, settings.shares, strict=True)
            )
            factors = [defined_factor(1.0, joint**0.5, settings.factor)] * len(own)
        else:
            factors = [
                defined_factor(clip, float(g.norm()), settings.factor)
                for g, clip in zip(own, settings.clip_norms, strict=True)
            ]
        for total, g, factor in zip(totals, own, factors, strict=True):
            total += factor * g * float(rows.slot_mask[patient])
    return totals


def defined_factor(clip: float, norm: float, factor: str) -> float:
    """The closed set of privacy.md G11."""
    if factor == "auto_s":
        return clip / (norm + 0.01)
    if factor == "psac":
        return clip / (norm + 0.01 / (norm + 0.01))
    return min(1.0, clip / (norm + 1e-6))


def worst_difference(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Largest relative difference over the groups."""
    return max(
        float((a.double() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)
    )
