"""Before private data are opened: the engine proves itself on public rows (E12, L3).

On random token ids and randomised adapters, the clipped sums of one microbatch must
equal a loop of single-patient backwards, no group may stay without gradient, and a
row's output must not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dp_core.clipping import clip_and_sum, row_norms
from dp_core.errors import BatchCoupledModel, GradientMissing, SelfCheckFailed
from dp_core.lora import ClipGroup, layout_of
from dp_core.mechanism import StepSettings
from dp_core.plan import Performance
from dp_core.raw_sums import RawSums
from dp_core.records import PaddedRows
from dp_core.step import arithmetic, make_engine, summed_backward, to_device

# Relative, of the sums (E12) and of a row's logits (L3). Reduced precision: a batch of four and
# a batch of one may take other kernels with other roundings; on a GPU that is not measured.
SUMS_TOLERANCE, ROWS_TOLERANCE, REDUCED_TOLERANCE = 1e-5, 1e-4, 5e-2
_PATIENTS, _LENGTH = 4, 24


def check_engine(
    model: Any,
    groups: Sequence[ClipGroup],
    *,
    vocabulary: int,
    seed: int,
    performance: Performance | None = None,
) -> None:
    """Runs the checks and leaves the model as it was.

    Raises:
        GradientMissing: a group's gradient is zero for randomised adapters.
        SelfCheckFailed: engine and single-patient loop disagree.
        BatchCoupledModel: a row's logits move when the other rows change.
    """
    performance = performance or Performance()
    saved = [p.detach().clone() for g in groups for p in g.parameters]
    generator = torch.Generator().manual_seed(seed)
    model.train()
    try:
        _randomise(groups, generator)
        rows = to_device(_public_rows(vocabulary, generator), performance.device)
        _check_rows_independent(model, rows, vocabulary, generator, performance)
        _check_sums(model, groups, rows, performance)
    finally:
        with torch.no_grad():
            for parameter, value in zip(
                (p for g in groups for p in g.parameters), saved, strict=True
            ):
                parameter.copy_(value)
                parameter.grad = None


def _tolerance(performance: Performance, in_float32: float) -> float:
    """Relative difference that rounding alone explains."""
    is_full = performance.base_dtype == "float32" and not performance.autocast
    return in_float32 if is_full else REDUCED_TOLERANCE


def _randomise(groups: Sequence[ClipGroup], generator: torch.Generator) -> None:
    # B starts at zero, which would hide A's gradient from the check.
    with torch.no_grad():
        for group in groups:
            for parameter in group.parameters:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise.to(parameter.device) * 0.02)


def _public_rows(vocabulary: int, generator: torch.Generator) -> PaddedRows:
    tokens = torch.randint(0, vocabulary, (_PATIENTS, _LENGTH), generator=generator)
    return PaddedRows(
        tokens=tokens,
        targets=tokens.roll(-1, dims=1),
        slot_mask=torch.ones(_PATIENTS),
        row_share=torch.ones(_PATIENTS),
    )


def _check_rows_independent(
    model: Any,
    rows: PaddedRows,
    vocabulary: int,
    generator: torch.Generator,
    performance: Performance,
) -> None:
    changed = torch.randint(0, vocabulary, rows.tokens.shape, generator=generator)
    others = torch.cat([rows.tokens[:1], changed[1:].to(rows.tokens.device)])
    with torch.no_grad(), arithmetic(performance):
        before = model(input_ids=rows.tokens).logits[0].float()
        after = model(input_ids=others).logits[0].float()
    allowed = _tolerance(performance, ROWS_TOLERANCE) * float(before.norm())
    if not float((before - after).norm()) <= allowed:
        raise BatchCoupledModel("A row's output depends on the other rows of its batch.")


def _check_sums(
    model: Any, groups: Sequence[ClipGroup], rows: PaddedRows, performance: Performance
) -> None:
    loop = _loop_gradients(model, groups, rows, performance)
    norms = [row_norms(torch.cat([g.flatten(1) for g in tensors], dim=1)) for tensors in loop]
    for group, norm in zip(groups, norms, strict=True):
        if float(norm.sum()) == 0.0:
            raise GradientMissing(f"Group {group.id} receives no gradient.")
    settings = StepSettings.per_layer(
        [float(norm.median()) for norm in norms], 1.0, sizes=[g.size for g in groups]
    )
    found = _engine_sums(model, groups, rows, settings, performance)
    for k, group in enumerate(groups):
        oracle = clip_and_sum(loop[k], settings.clip_norms[k], rows.slot_mask).raw_sums
        expected = torch.cat([s.flatten() for s in oracle])
        allowed = _tolerance(performance, SUMS_TOLERANCE) * float(expected.norm())
        if not float((found[k] - expected).norm()) <= allowed:  # NaN fails too
            raise SelfCheckFailed(f"Group {group.id}: engine and single-patient loop differ.")


def _engine_sums(
    model: Any,
    groups: Sequence[ClipGroup],
    rows: PaddedRows,
    settings: StepSettings,
    performance: Performance,
) -> tuple[torch.Tensor, ...]:
    layout = layout_of(tuple(groups))
    sums = RawSums(layout, dtype="float32", device=performance.device)
    sums.clear(settings)
    engine = make_engine(model, groups, performance)
    try:
        engine.open(settings=settings, slot_mask=rows.slot_mask, rows_per_patient=1, sums=sums)
        summed_backward(model, rows, performance)
        engine.close()
    finally:
        engine.detach()
    return torch.split(sums.vector[: sums.coordinates], list(layout.sizes))


def _loop_gradients(
    model: Any, groups: Sequence[ClipGroup], rows: PaddedRows, performance: Performance
) -> list[list[torch.Tensor]]:
    """Gradients of the groups' tensors, (P, *shape) each, one backward per patient."""
    collected: list[list[list[torch.Tensor]]] = [[[] for _ in g.parameters] for g in groups]
    for index in range(len(rows.slot_mask)):
        single = slice(index, index + 1)
        summed_backward(
            model,
            PaddedRows(
                tokens=rows.tokens[single],
                targets=rows.targets[single],
                slot_mask=rows.slot_mask[single],
                row_share=rows.row_share[single],
            ),
            performance,
        )
        for group, lists in zip(groups, collected, strict=True):
            for parameter, gradients in zip(group.parameters, lists, strict=True):
                grad = parameter.grad
                gradients.append(
                    torch.zeros_like(parameter) if grad is None else grad.detach().clone()
                )
                parameter.grad = None
    return [[torch.stack(gradients) for gradients in lists] for lists in collected]
