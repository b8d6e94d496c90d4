"""Scores of membership attacks on texts: loss against the base model, and Min-K%++.

Higher means "was trained on". For public texts only, inserted ones and benchmark corpora: such
figures of real patients are computed nowhere (audit.md AU2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dp_core.plan import Performance
from dp_core.step import arithmetic

ROWS_AT_ONCE = 16
LOWEST_SHARE = 0.2  # of a text's tokens that Min-K%++ looks at


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Texts in rows: tokens (R, L), which of them are scored, by target, and whose row it is."""

    tokens: torch.Tensor
    is_scored: torch.Tensor  # (R, L - 1)
    owners: np.ndarray  # (R,) texts, numbered from 0; each has a row


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Per text: mean loss in nats per scored token, and Min-K%++ (2404.02936)."""

    loss: np.ndarray
    min_k: np.ndarray


@torch.no_grad()
def scores_of(model: Any, rows: Rows, performance: Performance) -> Scores:
    """Both scores of every text. The model is left in the mode it was in."""
    was_training = model.training
    model.eval()
    parts = [
        _token_scores(
            model,
            rows.tokens[at : at + ROWS_AT_ONCE],
            rows.is_scored[at : at + ROWS_AT_ONCE],
            performance,
        )
        for at in range(0, len(rows.tokens), ROWS_AT_ONCE)
    ]
    model.train(was_training)
    loss, normal = (np.concatenate([part[which] for part in parts]) for which in (0, 1))
    owners = np.repeat(rows.owners, rows.is_scored.sum(dim=1).numpy())
    return _by_text(owners, loss, normal, texts=int(rows.owners.max()) + 1)


def _token_scores(
    model: Any, tokens: torch.Tensor, is_scored: torch.Tensor, performance: Performance
) -> tuple[np.ndarray, np.ndarray]:
    """Loss and normalised log-likelihood of every scored token, row after row."""
    tokens, is_scored = tokens.to(performance.device), is_scored.to(performance.device)
    with arithmetic(performance):
        logits = model(input_ids=tokens).logits
    log_p = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    p = log_p.exp()
    mean = (p * log_p).sum(dim=-1)
    spread = ((p * log_p.square()).sum(dim=-1) - mean.square()).clamp(min=1e-9).sqrt()
    own = log_p.gather(2, tokens[:, 1:, None]).squeeze(2)
    loss, normal = -own[is_scored], ((own - mean) / spread)[is_scored]
    return loss.double().cpu().numpy(), normal.double().cpu().numpy()


def _by_text(owners: np.ndarray, loss: np.ndarray, normal: np.ndarray, *, texts: int) -> Scores:
    """Means over the tokens of each text; a text without scored tokens has 0."""
    counts = np.bincount(owners, minlength=texts)
    total = np.bincount(owners, weights=loss, minlength=texts)
    order = np.lexsort((normal, owners))  # of each text its lowest first
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    taken = np.maximum(1, (counts * LOWEST_SHARE).astype(int))
    is_low = rank < taken[owners[order]]
    lowest = np.bincount(owners[order][is_low], weights=normal[order][is_low], minlength=texts)
    return Scores(loss=total / np.maximum(counts, 1), min_k=lowest / taken)
