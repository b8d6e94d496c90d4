"""The privacy unit: rows of a patient, cut into windows, padded to one public length.

A patient owns all rows of all their records; a row holds text of one record (L4). Which
patients exist, how many, and how many rows they have is secret.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dp_core.errors import RecordsUnreadable
from dp_core.sampling import PoissonSampler, is_validation_patient

IGNORED = -100  # target of a padding position
_TOKENIZE_BATCH = 512


@dataclass(frozen=True, kw_only=True)
class PaddedRows:
    """One microbatch: `tokens` and `targets` (P*R, L), row p*R+r is row r of slot p."""

    tokens: torch.Tensor
    targets: torch.Tensor
    slot_mask: torch.Tensor  # (P,) 1 for a drawn patient, 0 for a free slot
    row_share: torch.Tensor  # (P*R,) weight of a row in its patient's loss; sums to 1 or 0


class PatientRecords:
    """Tokenised rows of one block's patients, drawn by index."""

    def __init__(
        self, *, raw_rows: list[list[np.ndarray]], tokens_per_row: int, pad_id: int
    ) -> None:
        self._raw_rows = raw_rows
        self._length = tokens_per_row
        self._pad_id = pad_id

    @property
    def raw_size(self) -> int:
        """Number of patients. Secret: only the sampler may ask."""
        return len(self._raw_rows)

    def batch(
        self, raw_patients: np.ndarray, *, rows_per_patient: int, sampler: PoissonSampler
    ) -> PaddedRows:
        """Rows of the drawn patients; -1 gives a free slot with a public dummy row."""
        slots = len(raw_patients)
        tokens = torch.full((slots * rows_per_patient, self._length), self._pad_id)
        targets = torch.full_like(tokens, IGNORED)
        mask = torch.zeros(slots)
        share = torch.zeros(slots * rows_per_patient)
        for slot, patient in enumerate(raw_patients):
            if patient < 0:
                continue
            rows = self._raw_rows[patient]
            picked = sampler.pick(len(rows), rows_per_patient)
            mask[slot] = 1.0
            for offset, choice in enumerate(picked):
                line = slot * rows_per_patient + offset
                row = torch.from_numpy(rows[choice].astype(np.int64))
                tokens[line, : len(row)] = row
                targets[line, : len(row) - 1] = row[1:]
                share[line] = 1.0 / len(picked)
        return PaddedRows(tokens=tokens, targets=targets, slot_mask=mask, row_share=share)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Disjoint patients: `training` takes steps, `validation` answers paid queries."""

    training: PatientRecords
    validation: PatientRecords | None


def load_blocks(
    path: Path,
    *,
    expected_sha256: str,
    tokenizer: Any,
    tokens_per_row: int,
    split_key: bytes,
    validation_fraction: str | None,
) -> Blocks:
    """Reads a frozen dataset version (JSON lines of `unit` and `text`) into two blocks.

    Raises:
        RecordsUnreadable: another digest, or not the documented lines. No content is named.
    """
    patients = _tokenized(path, expected_sha256, tokenizer, tokens_per_row)
    pad_id = pad_token_id(tokenizer)
    held_out: list[list[np.ndarray]] = []
    trained: list[list[np.ndarray]] = []
    for patient_id, rows in patients.items():
        to_validation = validation_fraction is not None and is_validation_patient(
            split_key, patient_id, validation_fraction
        )
        (held_out if to_validation else trained).append(rows)

    def block(rows: list[list[np.ndarray]]) -> PatientRecords:
        return PatientRecords(raw_rows=rows, tokens_per_row=tokens_per_row, pad_id=pad_id)

    return Blocks(
        training=block(trained),
        validation=block(held_out) if validation_fraction is not None else None,
    )


def pad_token_id(tokenizer: Any) -> int:
    """A padding id; which one is irrelevant, since padding is never a target."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def _tokenized(
    path: Path, expected_sha256: str, tokenizer: Any, tokens_per_row: int
) -> dict[str, list[np.ndarray]]:
    patients: dict[str, list[np.ndarray]] = {}
    try:
        raw = path.read_bytes()
    except OSError:
        raise RecordsUnreadable("The dataset version's file cannot be read.") from None
    if hashlib.sha256(raw).hexdigest() != expected_sha256:
        raise RecordsUnreadable("The dataset version's file has another digest than registered.")
    try:
        records = [json.loads(line) for line in raw.splitlines() if line]
        for batch in _batches(records):
            encoded = tokenizer([r["text"] for r in batch], add_special_tokens=False)["input_ids"]
            for record, ids in zip(batch, encoded, strict=True):
                windows = _windows(ids, tokenizer, tokens_per_row)
                patients.setdefault(str(record["unit"]), []).extend(windows)
    except (ValueError, KeyError, TypeError):
        raise RecordsUnreadable("The dataset version holds a line that is not a record.") from None
    return patients


def _batches(records: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(records), _TOKENIZE_BATCH):
        yield records[start : start + _TOKENIZE_BATCH]


def _windows(ids: Iterable[int], tokenizer: Any, tokens_per_row: int) -> list[np.ndarray]:
    """Windows of at most L tokens of one record; each continues where the last ended.

    Consecutive windows share one token, so that every token but the first is a target once.
    """
    start = tokenizer.bos_token_id
    end = tokenizer.eos_token_id
    tokens = [*([] if start is None else [start]), *ids, *([] if end is None else [end])]
    stride = tokens_per_row - 1
    starts = range(0, max(len(tokens) - 1, 1), stride)
    return [np.asarray(tokens[s : s + tokens_per_row], dtype=np.int32) for s in starts]


def patient_losses(logits: torch.Tensor, rows: PaddedRows) -> torch.Tensor:
    """Loss of each slot, shape (P,): mean over a row's own targets, then over its rows (L1).

    Never divides by a number taken over the batch: a patient's loss depends on that
    patient's rows, the weights and public values only (L2, L3). A row without targets
    counts 0.
    """
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    per_token = F.cross_entropy(
        precise.flatten(0, 1), rows.targets.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(rows.targets)
    counts = (rows.targets != IGNORED).sum(dim=1).clamp(min=1)
    per_row = per_token.sum(dim=1) / counts * rows.row_share
    return per_row.view(len(rows.slot_mask), -1).sum(dim=1)
