"""Exact loss of a model on public notes, token by token: all tokens, and those of slots.

Reads whole notes in rows cut as `dp_core.records` cuts them, so that every token but a
note's first is predicted once. Nothing here is private and nothing reaches an arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from controller.benchmark.corpora import Note
from controller.benchmark.results import DIVERGED
from controller.benchmark.slots import slot_tokens
from dp_core.plan import Performance
from dp_core.records import IGNORED, pad_token_id
from dp_core.step import arithmetic

ROWS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Rows of public notes: tokens, targets and slots (R, L), the note of each row (R,)."""

    tokens: torch.Tensor
    targets: torch.Tensor
    is_slot: torch.Tensor  # of the target at that position
    note: torch.Tensor
    notes: int

    def first(self, notes: int) -> EvaluationSet:
        """The rows of the first so many notes."""
        kept = self.note < notes
        return EvaluationSet(
            tokens=self.tokens[kept],
            targets=self.targets[kept],
            is_slot=self.is_slot[kept],
            note=self.note[kept],
            notes=min(notes, self.notes),
        )


def make_set(
    notes: Sequence[Note], tokenizer: Any, *, tokens_per_row: int, has_slots: bool
) -> EvaluationSet:
    """Cuts notes into rows that share one token, as training does."""
    rows: list[tuple[int, list[int], list[bool]]] = []
    for index, note in enumerate(notes):
        encoded = tokenizer(note.text, add_special_tokens=False, return_offsets_mapping=True)
        ids = list(encoded["input_ids"])
        slots = [False] * len(ids)
        if has_slots:
            slots = slot_tokens(note.text, encoded["offset_mapping"])
        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        head, tail = [t for t in (start,) if t is not None], [t for t in (end,) if t is not None]
        ids = [*head, *ids, *tail]
        slots = [*[False] * len(head), *slots, *[False] * len(tail)]
        for at in range(0, len(ids) - 1, tokens_per_row - 1):
            rows.append((index, ids[at : at + tokens_per_row], slots[at : at + tokens_per_row]))
    tokens = torch.full((len(rows), tokens_per_row), pad_token_id(tokenizer))
    targets = torch.full_like(tokens, IGNORED)
    is_slot = torch.zeros(tokens.shape, dtype=torch.bool)
    for line, (_, row, slot) in enumerate(rows):
        tokens[line, : len(row)] = torch.tensor(row)
        targets[line, : len(row) - 1] = torch.tensor(row[1:])
        is_slot[line, : len(row) - 1] = torch.tensor(slot[1:])
    return EvaluationSet(
        tokens=tokens,
        targets=targets,
        is_slot=is_slot,
        note=torch.tensor([index for index, *_ in rows]),
        notes=len(notes),
    )


@torch.no_grad()
def note_losses(model: Any, rows: EvaluationSet, performance: Performance) -> list[list[float]]:
    """(M, 4) per note: loss in nats and tokens, over all tokens and over slot tokens."""
    totals = torch.zeros(rows.notes, 4, dtype=torch.float64)
    was_training = model.training
    model.eval()
    for at in range(0, len(rows.tokens), ROWS_AT_ONCE):
        part = slice(at, at + ROWS_AT_ONCE)
        with arithmetic(performance):
            logits = model(input_ids=rows.tokens[part].to(performance.device)).logits
        loss = F.cross_entropy(
            logits.float().flatten(0, 1),
            rows.targets[part].flatten().to(performance.device),
            ignore_index=IGNORED,
            reduction="none",
        )
        loss = loss.cpu().double().view_as(rows.targets[part])
        loss = loss.nan_to_num(DIVERGED, DIVERGED, DIVERGED)
        counted = (rows.targets[part] != IGNORED).double()
        slots = rows.is_slot[part].double()
        figures = torch.stack(
            [(loss * counted).sum(1), counted.sum(1), (loss * slots).sum(1), slots.sum(1)], dim=1
        )
        totals.index_add_(0, rows.note[part], figures)
    model.train(was_training)
    return [[round(x, 4) for x in line] for line in totals.tolist()]
