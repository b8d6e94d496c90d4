"""Rows of a patient: windows, padding, losses, blocks (ROWS, TEXT; M10, M11, M30)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dp_core.errors import RecordsUnreadable
from dp_core.records import IGNORED, PaddedRows, PatientRecords, load_blocks, patient_losses
from dp_core.sampling import PoissonSampler
from tests.dp_core.conftest import SPLIT_KEY, WordTokenizer, write_version

SAMPLER = PoissonSampler(sampling_probability="1", raw_population_size=1)


def load(path: Path, digest: str, fraction: str | None = None, length: int = 8) -> object:
    return load_blocks(
        path,
        expected_sha256=digest,
        tokenizer=WordTokenizer(),
        tokens_per_row=length,
        split_key=SPLIT_KEY,
        validation_fraction=fraction,
    )


def records(rows: list[list[int]]) -> PatientRecords:
    raw = [[np.asarray(r, dtype=np.int32)] for r in rows]
    return PatientRecords(raw_rows=raw, tokens_per_row=6, pad_id=2)


class TestLoading:
    def test_patients_keep_all_their_notes_and_blocks_are_disjoint(self, tmp_path: Path) -> None:
        path, digest = write_version(tmp_path / "v.jsonl", 50, notes_each=3)
        whole = load(path, digest)
        split = load(path, digest, "0.3")
        assert whole.training.raw_size == 50  # type: ignore[attr-defined]
        assert whole.validation is None  # type: ignore[attr-defined]
        sizes = (split.training.raw_size, split.validation.raw_size)  # type: ignore[attr-defined]
        assert sum(sizes) == 50
        assert min(sizes) > 0

    def test_a_long_note_becomes_windows_of_the_same_patient(self, tmp_path: Path) -> None:
        text = " ".join("abcdefgh"[: 1 + k % 8] for k in range(30))
        content = json.dumps({"unit": "p", "text": text}).encode()
        path = tmp_path / "v.jsonl"
        path.write_bytes(content)
        import hashlib

        blocks = load(path, hashlib.sha256(content).hexdigest())
        assert blocks.training.raw_size == 1  # type: ignore[attr-defined]
        rows = blocks.training.raw_rows_of(0)  # type: ignore[attr-defined]
        assert all(len(r) <= 8 for r in rows)
        targets = [t for row in rows for t in row[1:]]
        tokens = WordTokenizer()([text], add_special_tokens=False)["input_ids"][0]
        assert targets == [*tokens, 1], "each token is a target exactly once"

    def test_another_digest_or_a_broken_line_is_refused_without_content(
        self, tmp_path: Path
    ) -> None:
        path, digest = write_version(tmp_path / "v.jsonl", 3)
        with pytest.raises(RecordsUnreadable, match="digest"):
            load(path, "0" * 64)
        secret = b'{"unit": "p1", "text": "SECRETNOTE"}\n{"unit": "p2"}\n'
        path.write_bytes(secret)
        import hashlib

        with pytest.raises(RecordsUnreadable) as caught:
            load(path, hashlib.sha256(secret).hexdigest())
        assert "SECRETNOTE" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert digest


class TestBatch:
    def test_free_slots_are_masked_padding(self) -> None:
        batch = records([[0, 5, 6, 1]]).batch(
            np.array([0, -1]), rows_per_patient=2, sampler=SAMPLER
        )
        assert batch.tokens.shape == (4, 6)
        assert batch.slot_mask.tolist() == [1.0, 0.0]
        assert batch.row_share.tolist() == [1.0, 0.0, 0.0, 0.0]
        assert batch.targets[0].tolist() == [5, 6, 1, IGNORED, IGNORED, IGNORED]
        assert (batch.targets[1:] == IGNORED).all()


class TestPatientLosses:
    def test_mean_over_own_targets_then_rows_and_nothing_over_the_batch(self) -> None:
        logits = torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(0))
        targets = torch.tensor([[1, 2, 3], [4, IGNORED, IGNORED], [5, 6, IGNORED], [IGNORED] * 3])
        rows = PaddedRows(
            tokens=targets,
            targets=targets,
            slot_mask=torch.ones(2),
            row_share=torch.tensor([0.5, 0.5, 1.0, 0.0]),
        )
        nll = -logits.log_softmax(-1)
        first = nll[0, [0, 1, 2], [1, 2, 3]].mean()
        second = nll[1, 0, 4]
        third = nll[2, [0, 1], [5, 6]].mean()
        losses = patient_losses(logits, rows)
        assert torch.allclose(losses, torch.stack([(first + second) / 2, third]))

    def test_a_row_without_targets_counts_zero(self) -> None:
        targets = torch.full((1, 3), IGNORED)
        rows = PaddedRows(
            tokens=torch.zeros(1, 3, dtype=torch.long),
            targets=targets,
            slot_mask=torch.ones(1),
            row_share=torch.ones(1),
        )
        assert patient_losses(torch.randn(1, 3, 5), rows).tolist() == [0.0]
