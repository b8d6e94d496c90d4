"""Text canaries as the trainer sees them: rows of synthetic patients, and what is learnt of them.

A canary is a patient whose note ends in a secret of 4 to 8 tokens, drawn uniformly from the
rarer half of the vocabulary (audit.md 5). Of ten canaries one has a note longer than a row
and one has its secret spread over several notes. All follow from public values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dp_core.audit.coins import Manifest
from dp_core.audit.errors import AuditInvalid
from dp_core.audit.text_figures import TextLayout, TextScores
from dp_core.audit.text_scores import Rows, scores_of
from dp_core.plan import Performance, RunPlan
from dp_core.records import pad_token_id, whole_record, windows

PREFIX = "Patient {name} was seen for review. The access code given by telephone is"
FILLER = " No change since the last visit; the plan stays as it is."
SECRET_MIN, SECRET_MAX = 4, 8
RARE_MIN = 16  # rare tokens that a vocabulary must have
TEN = 10
LONG, SPREAD = 8, 9  # by the last digit of a canary's number
_WORDS = 2 + SECRET_MAX  # of the construction stream, for each canary


@dataclass(frozen=True, kw_only=True, eq=False)
class _Row:
    tokens: np.ndarray  # (n,) int32, n at most L
    is_secret: np.ndarray  # (n,) bool


def text_layout(plan: RunPlan, tokenizer: Any) -> TextLayout:
    """What the canaries of a job are cut for."""
    return TextLayout(
        base_model_digest=plan.base_model_digest,
        tokens_per_row=plan.tokens_per_row,
        rows_per_patient=plan.rows_per_patient_max,
        vocabulary=len(tokenizer),
        special_ids=tuple(sorted(set(map(int, tokenizer.all_special_ids)))),
        start_id=tokenizer.bos_token_id,
        end_id=tokenizer.eos_token_id,
    )


class TextCanaries:
    """All canaries of a manifest, for the base model's tokenizer.

    Raises:
        AuditInvalid: the manifest was made for other rows, or the vocabulary is too small.
    """

    def __init__(self, manifest: Manifest, layout: TextLayout, tokenizer: Any) -> None:
        if manifest.layout_digest != layout.digest():
            raise AuditInvalid("manifest", "made for other rows")
        common = layout.vocabulary // 2  # the rarer half of a vocabulary made by merges
        rare = np.setdiff1d(np.arange(common, layout.vocabulary), layout.special_ids)
        if len(rare) < RARE_MIN:
            raise AuditInvalid("vocabulary", f"fewer than {RARE_MIN} rare tokens")
        self._layout, self._pad_id = layout, pad_token_id(tokenizer)
        stream = hashlib.shake_256(f"text canaries {manifest.construction_seed}".encode())
        words = np.frombuffer(stream.digest(8 * _WORDS * manifest.m), dtype="<u8")
        draws = words.reshape(manifest.m, _WORDS)
        lengths = SECRET_MIN + draws[:, 1] % np.uint64(SECRET_MAX - SECRET_MIN + 1)
        secrets = rare[draws[:, 2:] % np.uint64(len(rare))]
        names = [f"{TEN**3 + i}-{word % 10_000:04d}" for i, word in enumerate(draws[:, 0].tolist())]
        texts = [PREFIX.format(name=name) for name in names]
        *prefixes, filler = tokenizer([*texts, FILLER], add_special_tokens=False)["input_ids"]
        self._canaries = [
            self._notes(i, prefix, secret[:length].tolist(), filler)
            for i, (prefix, secret, length) in enumerate(
                zip(prefixes, secrets, lengths.tolist(), strict=True)
            )
        ]

    def _notes(
        self, number: int, prefix: list[int], secret: list[int], filler: list[int]
    ) -> list[_Row]:
        """The rows of every note of one canary."""
        most = self._layout.tokens_per_row
        if number % TEN == SPREAD:
            notes = min(len(secret), max(2, self._layout.rows_per_patient))
            pieces = np.array_split(np.asarray(secret), notes)
            return [row for piece in pieces for row in self._rows(prefix, piece.tolist())]
        if number % TEN == LONG:
            prefix = [*prefix, *filler * (1 + most // len(filler))]
        return self._rows(prefix, secret)

    def _rows(self, before: Sequence[int], secret: Sequence[int]) -> list[_Row]:
        start, end = self._layout.start_id, self._layout.end_id
        tokens = whole_record([*before, *secret], start, end)
        first = len(before) + (start is not None)
        marks = [first <= place < first + len(secret) for place in range(len(tokens))]
        most = self._layout.tokens_per_row
        return [
            _Row(tokens=np.asarray(part, dtype=np.int32), is_secret=np.asarray(marked))
            for part, marked in zip(windows(tokens, most), windows(marks, most), strict=True)
        ]

    def patients(self, is_member: np.ndarray) -> list[list[np.ndarray]]:
        """Rows of the canaries that take part, of each as many as a patient may bring (AU6)."""
        taking_part = (self._canaries[i] for i in np.flatnonzero(is_member))
        return [self._filled([row.tokens for row in rows]) for rows in taking_part]

    def _filled(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        return rows * -(-self._layout.rows_per_patient // len(rows))

    def scores(self, model: Any, performance: Performance) -> TextScores:
        """What training did to the secret of every canary. `model`: after the last step.

        2 m forward passes, half of them without the adapter.
        """
        rows = self._scored()
        with model.disable_adapter():
            before = scores_of(model, rows, performance)
        after = scores_of(model, rows, performance)
        return TextScores(loss_drop=before.loss - after.loss, min_k=after.min_k)

    def _scored(self) -> Rows:
        """Every row that holds a piece of a secret; the secret alone is scored (AU23)."""
        held = [
            (owner, row)
            for owner, rows in enumerate(self._canaries)
            for row in rows
            if row.is_secret[1:].any()
        ]
        length = max(len(row.tokens) for _, row in held)
        tokens = torch.full((len(held), length), self._pad_id)
        is_scored = torch.zeros(len(held), length - 1, dtype=torch.bool)
        for line, (_, row) in enumerate(held):
            tokens[line, : len(row.tokens)] = torch.from_numpy(row.tokens.astype(np.int64))
            is_scored[line, : len(row.tokens) - 1] = torch.from_numpy(row.is_secret[1:])
        owners = np.asarray([owner for owner, _ in held])
        return Rows(tokens=tokens, is_scored=is_scored, owners=owners)
