"""Public notes and inserted texts as rows for the attacks of `dp_core.audit.text_scores`.

Every note is read in one row, as training reads rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from controller.benchmark.inserted import TextCanary
from dp_core.audit.text_scores import Rows
from dp_core.records import pad_token_id


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
    return Rows(tokens=tokens, is_scored=is_scored, owners=np.arange(len(texts)))
