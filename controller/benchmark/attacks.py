"""Scores of membership attacks on public notes: loss against the base model, and Min-K%++.

Higher means "was trained on". Every note is read in one row, as training reads rows. For
benchmarks on public corpora only: such figures of real patients are computed nowhere (AU2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from controller.benchmark.inserted import TextCanary
from dp_core.plan import Performance
from dp_core.records import pad_token_id
from dp_core.step import arithmetic

ROWS_AT_ONCE = 16
LOWEST_SHARE = 0.2  # of a note's tokens that Min-K%++ looks at


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Notes cut to one row each: tokens (R, L), and which of them are scored, by target."""

    tokens: torch.Tensor
    is_scored: torch.Tensor  # (R, L - 1)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Per note: mean loss in nats per scored token, and Min-K%++ (2404.02936)."""

    loss: np.ndarray
    min_k: np.ndarray


def note_rows(texts: Sequence[str], tokenizer: Any, tokens_per_row: int) -> Rows:
    """The first row of every note, as `dp_core.records` cuts it."""
    starts = [0] * len(texts)
    return _rows(texts, starts, tokenizer, tokens_per_row)


def canary_rows(canaries: Sequence[TextCanary], tokenizer: Any, tokens_per_row: int) -> Rows:
    """Rows of canaries in which the secret alone is scored (AU23)."""
    texts, starts = [c.text for c in canaries], [len(c.prefix) for c in canaries]
    return _rows(texts, starts, tokenizer, tokens_per_row)


def _rows(texts: Sequence[str], starts: Sequence[int], tokenizer: Any, length: int) -> Rows:
    tokens = torch.full((len(texts), length), pad_token_id(tokenizer))
    is_scored = torch.zeros(len(texts), length - 1, dtype=torch.bool)
    head = [t for t in (tokenizer.bos_token_id,) if t is not None]
    for line, (text, start) in enumerate(zip(texts, starts, strict=True)):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = [*head, *encoded["input_ids"]][:length]
        tokens[line, : len(ids)] = torch.tensor(ids)
        begins = [0] * len(head) + [first for first, _ in encoded["offset_mapping"]]
        for place in range(1, len(ids)):
            is_scored[line, place - 1] = begins[place] >= start
    return Rows(tokens=tokens, is_scored=is_scored)


@torch.no_grad()
def scores_of(model: Any, rows: Rows, performance: Performance) -> Scores:
    """Both scores of every row. The model is left in the mode it was in."""
    was_training = model.training
    model.eval()
    parts = [
        _part(
            model,
            rows.tokens[at : at + ROWS_AT_ONCE],
            rows.is_scored[at : at + ROWS_AT_ONCE],
            performance,
        )
        for at in range(0, len(rows.tokens), ROWS_AT_ONCE)
    ]
    model.train(was_training)
    return Scores(
        loss=np.concatenate([loss for loss, _ in parts]),
        min_k=np.concatenate([least for _, least in parts]),
    )


def _part(
    model: Any, tokens: torch.Tensor, is_scored: torch.Tensor, performance: Performance
) -> tuple[np.ndarray, np.ndarray]:
    tokens, is_scored = tokens.to(performance.device), is_scored.to(performance.device)
    with arithmetic(performance):
        logits = model(input_ids=tokens).logits
    log_p = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    p = log_p.exp()
    mean = (p * log_p).sum(dim=-1)
    spread = ((p * log_p.square()).sum(dim=-1) - mean.square()).clamp(min=1e-9).sqrt()
    own = log_p.gather(2, tokens[:, 1:, None]).squeeze(2)
    counted = is_scored.sum(dim=1).clamp(min=1)
    loss = -(own * is_scored).sum(dim=1) / counted
    normal = torch.where(is_scored, (own - mean) / spread, torch.inf).sort(dim=1).values
    taken = (counted * LOWEST_SHARE).long().clamp(min=1)
    is_taken = torch.arange(normal.shape[1], device=normal.device)[None] < taken[:, None]
    least = torch.where(is_taken, normal, 0.0).sum(dim=1) / taken
    return loss.double().cpu().numpy(), least.double().cpu().numpy()
