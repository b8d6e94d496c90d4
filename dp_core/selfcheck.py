"""Before private data are opened: the engine proves itself on public rows (E12, L3).

On random token ids and randomised adapters, the clipped sums of one microbatch must
equal a loop of single-patient backwards, no group may stay without gradient, and a
row's output must not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dp_core.clipping import clip_and_sum
from dp_core.errors import BatchCoupledModel, GradientMissing, SelfCheckFailed
from dp_core.lora import ClipGroup
from dp_core.records import PaddedRows, patient_losses
from dp_core.step import attach_hooks

TOLERANCE = 1e-4  # relative, float32
_PATIENTS, _LENGTH = 4, 24


def check_engine(model: Any, groups: Sequence[ClipGroup], *, vocabulary: int, seed: int) -> None:
    """Runs the checks and leaves the model as it was.

    Raises:
        GradientMissing: a group's gradient is zero for randomised adapters.
        SelfCheckFailed: engine and single-patient loop disagree.
        BatchCoupledModel: a row's logits move when the other rows change.
    """
    saved = [p.detach().clone() for g in groups for p in g.parameters]
    generator = torch.Generator().manual_seed(seed)
    try:
        _randomise(groups, generator)
        rows = _public_rows(vocabulary, generator)
        _check_rows_independent(model, rows, vocabulary, generator)
        _check_sums(model, groups, rows)
    finally:
        with torch.no_grad():
            for parameter, value in zip(
                (p for g in groups for p in g.parameters), saved, strict=True
            ):
                parameter.copy_(value)


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
    model: Any, rows: PaddedRows, vocabulary: int, generator: torch.Generator
) -> None:
    changed = torch.randint(0, vocabulary, rows.tokens.shape, generator=generator)
    changed[0] = rows.tokens[0]
    device = next(model.parameters()).device
    with torch.no_grad():
        before = model(input_ids=rows.tokens.to(device)).logits[0]
        after = model(input_ids=changed.to(device)).logits[0]
    if float((before - after).norm()) > TOLERANCE * float(before.norm()):
        raise BatchCoupledModel("A row's output depends on the other rows of its batch.")


def _check_sums(model: Any, groups: Sequence[ClipGroup], rows: PaddedRows) -> None:
    engine = _engine_gradients(model, groups, rows)
    loop = _loop_gradients(model, groups, rows)
    for group, fast, slow in zip(groups, engine, loop, strict=True):
        if float(sum(g.norm() for g in slow)) == 0.0:
            raise GradientMissing(f"Group {group.id} receives no gradient.")
        clip = float(torch.cat([g.flatten(1) for g in slow], dim=1).norm(dim=1).median())
        ours = clip_and_sum(fast, clip, rows.slot_mask)
        oracle = clip_and_sum(slow, clip, rows.slot_mask)
        for a, b in zip(ours.raw_sums, oracle.raw_sums, strict=True):
            if float((a - b).norm()) > TOLERANCE * float(b.norm()):
                raise SelfCheckFailed(f"Group {group.id}: engine and single-patient loop differ.")


def _engine_gradients(
    model: Any, groups: Sequence[ClipGroup], rows: PaddedRows
) -> list[list[torch.Tensor]]:
    hooks = attach_hooks(model)
    try:
        _backward(model, rows)
        return [[p.grad_sample.detach().cpu() for p in g.parameters] for g in groups]  # type: ignore[attr-defined]
    except AttributeError:
        raise GradientMissing("An adapter tensor has no per-row gradient.") from None
    finally:
        hooks.cleanup()
        _clear(groups)


def _loop_gradients(
    model: Any, groups: Sequence[ClipGroup], rows: PaddedRows
) -> list[list[torch.Tensor]]:
    collected: list[list[list[torch.Tensor]]] = [[[] for _ in g.parameters] for g in groups]
    for index in range(len(rows.slot_mask)):
        single = slice(index, index + 1)
        _backward(
            model,
            PaddedRows(
                tokens=rows.tokens[single],
                targets=rows.targets[single],
                slot_mask=rows.slot_mask[single],
                row_share=rows.row_share[single],
            ),
        )
        for group, lists in zip(groups, collected, strict=True):
            for parameter, gradients in zip(group.parameters, lists, strict=True):
                grad = parameter.grad
                gradients.append(
                    torch.zeros(parameter.shape) if grad is None else grad.detach().cpu()
                )
        _clear(groups)
    return [[torch.stack(gradients) for gradients in lists] for lists in collected]


def _backward(model: Any, rows: PaddedRows) -> None:
    device = next(model.parameters()).device
    logits = model(input_ids=rows.tokens.to(device)).logits
    torch.autograd.backward(patient_losses(logits.cpu(), rows).sum())


def _clear(groups: Sequence[ClipGroup]) -> None:
    for group in groups:
        for parameter in group.parameters:
            parameter.grad = None
