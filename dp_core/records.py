"""The privacy unit: rows of a patient, cut into windows, padded to one public length.

A patient owns all rows of all their records; a row holds text of one record (L4). Which
patients exist, how many, and how many rows they have is secret.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from dp_core.errors import RecordsUnreadable
from dp_core.sampling import PoissonSampler, is_validation_patient, padded
from dp_core.telemetry import Raw

T = TypeVar("T")

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
    """Tokenised rows of one block's patients, drawn by index.

    All tokens lie in one array, since an object for each row costs more than its tokens: row
    j is `tokens[row_starts[j]:row_starts[j + 1]]`, and patient i owns the rows
    `patient_starts[i]` to `patient_starts[i + 1] - 1`. A patient may own none: drawn like any
    other, they fill a slot with padding, and their loss and gradient are zero.
    """

    def __init__(
        self,
        *,
        raw_rows: Iterable[Sequence[np.ndarray]],  # per patient, int32 tokens of each row
        tokens_per_row: int,
        pad_id: int,
    ) -> None:
        tokens, row_ends, patient_ends = array("i"), array("q", [0]), array("q", [0])
        for rows in raw_rows:
            for row in rows:
                tokens.frombytes(np.asarray(row, dtype=np.int32).tobytes())
                row_ends.append(len(tokens))
            patient_ends.append(len(row_ends) - 1)
        self._raw_tokens = np.asarray(tokens, dtype=np.int32)
        self._raw_row_starts = np.asarray(row_ends, dtype=np.int64)
        self._raw_patient_starts = np.asarray(patient_ends, dtype=np.int64)
        self._length = tokens_per_row
        self._pad_id = pad_id

    @property
    def raw_size(self) -> int:
        """Number of patients. Secret: only the sampler may ask."""
        return len(self._raw_patient_starts) - 1

    def raw_rows_of(self, raw_patient: int) -> list[np.ndarray]:
        """The rows of one patient. Secret, their number included."""
        first, end = self._raw_patient_starts[raw_patient : raw_patient + 2]
        starts = self._raw_row_starts[first : end + 1]
        return [self._raw_tokens[a:b] for a, b in itertools.pairwise(starts)]

    def draw(
        self, sampler: PoissonSampler, *, rows_per_patient: int, slots_at_once: int
    ) -> Raw[np.ndarray]:
        """Patients and rows of one step, int64 (S, 1 + R), S a multiple of `slots_at_once`.

        Column 0 is the patient, the others the rows picked (L6); -1 is a free place. All
        randomness of a step but the noise is in it, so that one rank can draw for all.
        """
        raw_drawn = sampler.draw().reveal_inside_step()
        chosen = self.choose_rows(raw_drawn, sampler, rows_per_patient)
        return Raw(padded(chosen, slots_at_once))

    def choose_rows(
        self, raw_patients: np.ndarray, sampler: PoissonSampler, rows_per_patient: int
    ) -> np.ndarray:
        """(n, 1 + R): each patient with min(R, own) of their rows, picked anew (L6)."""
        chosen = np.full((len(raw_patients), 1 + rows_per_patient), -1, dtype=np.int64)
        chosen[:, 0] = raw_patients
        for line, patient in zip(chosen, raw_patients, strict=True):
            if patient < 0:
                continue
            picked = sampler.pick(len(self.raw_rows_of(int(patient))), rows_per_patient)
            line[1 : 1 + len(picked)] = picked
        return chosen

    def batch(self, raw_slots: np.ndarray) -> PaddedRows:
        """Rows of drawn slots, (P, 1 + R); -1 gives a free slot with a public dummy row."""
        slots, rows_per_patient = len(raw_slots), raw_slots.shape[1] - 1
        tokens = torch.full((slots * rows_per_patient, self._length), self._pad_id)
        targets = torch.full_like(tokens, IGNORED)
        mask = torch.zeros(slots)
        share = torch.zeros(slots * rows_per_patient)
        for slot, (patient, *choices) in enumerate(raw_slots.tolist()):
            if patient < 0:
                continue
            rows = self.raw_rows_of(patient)
            picked = [choice for choice in choices if choice >= 0]
            mask[slot] = 1.0
            for offset, choice in enumerate(picked):
                line = slot * rows_per_patient + offset
                row = torch.from_numpy(rows[choice].astype(np.int64))
                tokens[line, : len(row)] = row
                targets[line, : len(row) - 1] = row[1:]
                share[line] = 1.0 / len(picked)
        return PaddedRows(tokens=tokens, targets=targets, slot_mask=mask, row_share=share)

    def with_public_patients(
        self, patients: Sequence[Sequence[np.ndarray]], order: np.random.Generator
    ) -> PatientRecords:
        """These and further patients, whose rows are public, in an order of chance (AU11)."""
        own = self.raw_size

        def rows_at(place: int) -> Sequence[np.ndarray]:
            return self.raw_rows_of(place) if place < own else patients[place - own]

        return PatientRecords(
            raw_rows=map(rows_at, order.permutation(own + len(patients)).tolist()),
            tokens_per_row=self._length,
            pad_id=self._pad_id,
        )

    def raw_digest(self) -> bytes:
        """SHA-256 over every patient's rows in order. Secret; ranks compare it."""
        digest = hashlib.sha256()
        for patient in range(self.raw_size):
            rows = self.raw_rows_of(patient)
            digest.update(np.asarray([len(rows), *map(len, rows)], dtype=np.int64).tobytes())
            for row in rows:
                digest.update(row.astype(np.int32).tobytes())
        return digest.digest()


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Disjoint patients: `training` takes steps, `validation` answers paid queries."""

    training: PatientRecords
    validation: PatientRecords | None


def load_blocks(
    open_rows: Callable[[], IO[bytes]],
    *,
    expected_sha256: str,
    tokenizer: Any,
    tokens_per_row: int,
    split_key: bytes,
    validation_fraction: str | None,
) -> Blocks:
    """Reads a frozen dataset version (JSON lines of `unit` and `text`) into two blocks.

    `open_rows` gives the version's plain bytes from their start; a file that lies encrypted is
    decrypted in there, so that its plaintext never touches a disk.

    Raises:
        RecordsUnreadable: another digest, or not the documented lines. No content is named.
    """
    found = _tokenized(open_rows, expected_sha256, tokenizer, tokens_per_row)
    pad_id = pad_token_id(tokenizer)
    held_out: list[int] = []
    trained: list[int] = []
    for patient_id, patient in found.raw_patients.items():
        to_validation = validation_fraction is not None and is_validation_patient(
            split_key, patient_id, validation_fraction
        )
        (held_out if to_validation else trained).append(patient)

    def block(patients: list[int]) -> PatientRecords:
        rows = found.raw_rows_by_patient(patients)
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


class _RowsInFileOrder:
    """Rows as they come from the file, in which a patient's notes may lie apart."""

    def __init__(self) -> None:
        self.raw_patients: dict[str, int] = {}
        self._tokens = array("i")
        self._row_ends = array("q", [0])
        self._owners = array("q")

    def add(self, patient_id: str, windows: Iterable[Sequence[int]]) -> None:
        """Takes the windows of one record; a record without any still makes its patient."""
        patient = self.raw_patients.setdefault(patient_id, len(self.raw_patients))
        for window in windows:
            self._tokens.extend(window)
            self._row_ends.append(len(self._tokens))
            self._owners.append(patient)

    def raw_rows_by_patient(self, raw_patients: Iterable[int]) -> Iterator[list[np.ndarray]]:
        """The rows of each patient asked for, in file order."""
        tokens = np.asarray(self._tokens, dtype=np.int32)
        owners = np.asarray(self._owners, dtype=np.int64)
        order = np.argsort(owners, kind="stable")
        bounds = np.searchsorted(owners[order], np.arange(len(self.raw_patients) + 1))
        for patient in raw_patients:
            rows = order[bounds[patient] : bounds[patient + 1]]
            yield [tokens[self._row_ends[row] : self._row_ends[row + 1]] for row in rows]


def _tokenized(
    open_rows: Callable[[], IO[bytes]], expected_sha256: str, tokenizer: Any, tokens_per_row: int
) -> _RowsInFileOrder:
    """Reads the file once, so that what was hashed is what was tokenised."""
    found, digest = _RowsInFileOrder(), hashlib.sha256()
    try:
        with open_rows() as stream:
            while lines := list(itertools.islice(stream, _TOKENIZE_BATCH)):
                for line in lines:
                    digest.update(line)
                records = [_record(line) for line in lines if line.strip()]
                _tokenize(found, records, tokenizer, tokens_per_row)
    except OSError:
        raise RecordsUnreadable("The dataset version's file cannot be read.") from None
    except (ValueError, KeyError, TypeError):
        raise RecordsUnreadable("The dataset version holds a line that is not a record.") from None
    if digest.hexdigest() != expected_sha256:
        raise RecordsUnreadable("The dataset version's file has another digest than registered.")
    return found


def _record(line: bytes) -> tuple[str, str]:
    document = json.loads(line)
    unit, text = document["unit"], document["text"]
    # Records without an id would become one patient, whose clip then covers many people.
    if not (isinstance(unit, str) and unit and isinstance(text, str)):
        raise ValueError
    return unit, text


def _tokenize(
    found: _RowsInFileOrder, records: list[tuple[str, str]], tokenizer: Any, tokens_per_row: int
) -> None:
    if not records:
        return
    encoded = tokenizer([text for _, text in records], add_special_tokens=False)["input_ids"]
    for (patient_id, _), ids in zip(records, encoded, strict=True):
        whole = whole_record(ids, tokenizer.bos_token_id, tokenizer.eos_token_id)
        found.add(patient_id, windows(whole, tokens_per_row))


def whole_record(ids: Iterable[int], start_id: int | None, end_id: int | None) -> list[int]:
    """A record's tokens between the tokenizer's tokens for start and end, where it has them."""
    start, end = ([] if each is None else [each] for each in (start_id, end_id))
    return [*start, *ids, *end]


def windows(tokens: Sequence[T], tokens_per_row: int) -> list[Sequence[T]]:
    """Windows of at most L tokens of one record; each continues where the last ended.

    Consecutive windows share one token, so that every token but the first is a target once.
    A record of less than two tokens has nothing to predict and gives no window.
    """
    starts = range(0, len(tokens) - 1, tokens_per_row - 1)
    return [tokens[s : s + tokens_per_row] for s in starts]


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
