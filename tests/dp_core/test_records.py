"""Rows of a patient: windows, padding, losses, blocks (ROWS, TEXT; M10, M11, M30)."""

from __future__ import annotations

import functools
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dp_core.clipping import clip_and_sum, clipped_loss_sum
from dp_core.errors import RecordsUnreadable
from dp_core.records import (
    IGNORED,
    Blocks,
    PaddedRows,
    PatientRecords,
    load_blocks,
    patient_losses,
)
from dp_core.sampling import PoissonSampler
from tests.dp_core.conftest import SPLIT_KEY, WordTokenizer, write_version
from tests.dp_core.models import FAMILIES, VOCABULARY, adapted


class BareTokenizer(WordTokenizer):
    """A tokenizer without tokens for the start and the end of a text."""

    bos_token_id = None  # type: ignore[assignment]
    eos_token_id = None  # type: ignore[assignment]


def write_lines(path: Path, lines: list[tuple[str, str]]) -> tuple[Path, str]:
    content = "".join(json.dumps({"unit": u, "text": t}) + "\n" for u, t in lines).encode()
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def load(
    path: Path,
    digest: str,
    fraction: str | None = None,
    length: int = 8,
    tokenizer: WordTokenizer | None = None,
) -> Blocks:
    return load_blocks(
        partial(path.open, "rb"),
        expected_sha256=digest,
        tokenizer=tokenizer or WordTokenizer(),
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
        assert whole.training.raw_size == 50
        assert whole.validation is None
        sizes = (split.training.raw_size, split.validation.raw_size)
        assert sum(sizes) == 50
        assert min(sizes) > 0

    def test_a_long_note_becomes_windows_of_the_same_patient(self, tmp_path: Path) -> None:
        text = " ".join("abcdefgh"[: 1 + k % 8] for k in range(30))
        content = json.dumps({"unit": "p", "text": text}).encode()
        path = tmp_path / "v.jsonl"
        path.write_bytes(content)
        blocks = load(path, hashlib.sha256(content).hexdigest())
        assert blocks.training.raw_size == 1
        rows = blocks.training.raw_rows_of(0)
        assert all(len(r) <= 8 for r in rows)
        targets = [t for row in rows for t in row[1:]]
        tokens = WordTokenizer()([text], add_special_tokens=False)["input_ids"][0]
        assert targets == [*tokens, 1], "each token is a target exactly once"

    def test_notes_that_lie_apart_in_the_file_stay_with_their_patient(self, tmp_path: Path) -> None:
        lines = [("a", "x"), ("b", "xx"), ("a", "xxx"), ("c", "xxxx"), ("b", "xxxxx")]
        training = load(*write_lines(tmp_path / "v.jsonl", lines)).training
        found = [
            [row.tolist() for row in training.raw_rows_of(patient)]
            for patient in range(training.raw_size)
        ]
        assert found == [
            [[0, 10, 1], [0, 24, 1]],
            [[0, 17, 1], [0, 38, 1]],
            [[0, 31, 1]],
        ]

    def test_no_row_mixes_two_records(self, tmp_path: Path) -> None:
        """Every row is a stretch of one record, whatever their lengths (L4)."""
        texts = [" ".join(["x" * (1 + n % 6)] * (n % 23)) for n in range(40)]
        path, digest = write_lines(tmp_path / "v.jsonl", [("p", t) for t in texts])
        training = load(path, digest).training
        whole = [
            [0, *ids, 1] for ids in WordTokenizer()(texts, add_special_tokens=False)["input_ids"]
        ]
        rows = iter(training.raw_rows_of(0))
        for record in whole:
            rebuilt = [record[0]]
            while len(rebuilt) < len(record):
                row = next(rows).tolist()
                assert row[0] == rebuilt[-1]
                rebuilt += row[1:]
            assert rebuilt == record
        assert next(rows, None) is None

    def test_records_of_fewer_than_two_tokens_give_no_row_but_their_patient_stays(
        self, tmp_path: Path
    ) -> None:
        lines = [("a", ""), ("b", "word"), ("c", "one two"), ("c", " ")]
        path, digest = write_lines(tmp_path / "v.jsonl", lines)
        training = load(path, digest, tokenizer=BareTokenizer()).training
        assert training.raw_size == 3
        assert [len(training.raw_rows_of(p)) for p in range(3)] == [0, 0, 1]

    @pytest.mark.parametrize(
        "record",
        [
            {"unit": None, "text": "a"},
            {"unit": "", "text": "a"},
            {"unit": 7, "text": "a"},
            {"unit": "p", "text": ["a"]},
            {"unit": "p", "text": None},
            ["p", "a"],
        ],
    )
    def test_a_record_without_an_id_of_its_own_is_refused(
        self, tmp_path: Path, record: object
    ) -> None:
        """Records without an id would become one patient, whose clip covers many people."""
        content = json.dumps(record).encode()
        path = tmp_path / "v.jsonl"
        path.write_bytes(content)
        with pytest.raises(RecordsUnreadable, match="not a record"):
            load(path, hashlib.sha256(content).hexdigest())

    def test_a_version_without_records_is_an_empty_block(self, tmp_path: Path) -> None:
        path, digest = write_lines(tmp_path / "v.jsonl", [])
        assert load(path, digest).training.raw_size == 0

    def test_another_digest_or_a_broken_line_is_refused_without_content(
        self, tmp_path: Path
    ) -> None:
        path, digest = write_version(tmp_path / "v.jsonl", 3)
        with pytest.raises(RecordsUnreadable, match="digest"):
            load(path, "0" * 64)
        secret = b'{"unit": "p1", "text": "SECRETNOTE"}\n{"unit": "p2"}\n'
        path.write_bytes(secret)
        with pytest.raises(RecordsUnreadable) as caught:
            load(path, hashlib.sha256(secret).hexdigest())
        assert "SECRETNOTE" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert digest


def drawn_rows(made: PatientRecords, patients: np.ndarray, rows_each: int) -> PaddedRows:
    sampler = PoissonSampler(sampling_probability="1", raw_population_size=1)
    return made.batch(made.choose_rows(patients, sampler, rows_each))


class TestDraw:
    def test_one_array_holds_patients_and_rows_and_fills_up_with_free_slots(self) -> None:
        raw = [[np.arange(3, dtype=np.int32)] * n for n in (1, 4, 2)]
        made = PatientRecords(raw_rows=raw, tokens_per_row=6, pad_id=2)
        sampler = PoissonSampler(sampling_probability="1", raw_population_size=3)
        drawn = made.draw(sampler, rows_per_patient=2, slots_at_once=4).reveal_inside_step()
        assert drawn.shape == (4, 3)
        assert drawn[:, 0].tolist() == [0, 1, 2, -1]
        assert drawn[0].tolist() == [0, 0, -1]
        assert 0 <= drawn[1, 1] < drawn[1, 2] < 4
        assert drawn[2].tolist() == [2, 0, 1]
        assert (drawn[3] == -1).all()

    def test_the_digest_sees_order_and_borders(self) -> None:
        def digest(*rows: list[list[int]]) -> bytes:
            raw = [[np.asarray(r, dtype=np.int32) for r in each] for each in rows]
            return PatientRecords(raw_rows=raw, tokens_per_row=6, pad_id=2).raw_digest()

        several = [
            digest([[1, 2], [3]]),
            digest([[1, 2]], [[3]]),
            digest([[3]], [[1, 2]]),
            digest([[1], [2, 3]]),
        ]
        assert len(set(several)) == 4
        assert digest([[1, 2], [3]]) == several[0]


class TestBatch:
    def test_free_slots_are_masked_padding(self) -> None:
        batch = records([[0, 5, 6, 1]]).batch(np.array([[0, 0, -1], [-1, -1, -1]]))
        assert batch.tokens.shape == (4, 6)
        assert batch.slot_mask.tolist() == [1.0, 0.0]
        assert batch.row_share.tolist() == [1.0, 0.0, 0.0, 0.0]
        assert batch.targets[0].tolist() == [5, 6, 1, IGNORED, IGNORED, IGNORED]
        assert (batch.targets[1:] == IGNORED).all()

    @settings(max_examples=150, deadline=None)
    @given(
        rows_each=st.integers(1, 8),
        owned=st.lists(st.lists(st.integers(2, 6), max_size=12), min_size=1, max_size=5),
        drawn=st.lists(st.integers(-1, 4), min_size=1, max_size=5),
    )
    def test_a_slot_holds_min_r_own_rows_of_its_patient_and_nothing_else(
        self, rows_each: int, owned: list[list[int]], drawn: list[int]
    ) -> None:
        """Row r of patient p holds the token 100 p + r + 10, so that its owner can be read."""
        raw = [
            [np.full(length, 100 * p + r + 10, dtype=np.int32) for r, length in enumerate(lengths)]
            for p, lengths in enumerate(owned)
        ]
        made = PatientRecords(raw_rows=raw, tokens_per_row=6, pad_id=2)
        slots = np.array([d if d < len(owned) else -1 for d in drawn])
        batch = drawn_rows(made, slots, rows_each)
        assert batch.tokens.shape == (len(slots) * rows_each, 6)
        for slot, patient in enumerate(slots):
            lines = slice(slot * rows_each, (slot + 1) * rows_each)
            first = batch.tokens[lines, 0].tolist()
            used = [token for token in first if token != 2]
            expected = 0 if patient < 0 else min(rows_each, len(owned[patient]))
            assert len(used) == len(set(used)) == expected
            assert all((token - 10) // 100 == patient for token in used)
            shares = batch.row_share[lines]
            assert float(shares.sum()) == pytest.approx(1.0 if used else 0.0)
            assert float(batch.slot_mask[slot]) == float(patient >= 0)

    def test_rows_are_picked_anew_and_each_equally_often(self) -> None:
        """600 picks of 2 of 4 rows: each row 300 times, sd 12.3; 5 sd miss 1 run in 1e6."""
        raw = [[np.full(3, 10 + r, dtype=np.int32) for r in range(4)]]
        made = PatientRecords(raw_rows=raw, tokens_per_row=3, pad_id=2)
        counts = np.zeros(4)
        for _ in range(600):
            batch = drawn_rows(made, np.array([0]), 2)
            counts[batch.tokens[:, 0].numpy() - 10] += 1
        assert np.abs(counts - 300).max() < 5 * 12.3

    @pytest.mark.parametrize("rows_each", [1, 8])
    def test_a_patient_without_rows_is_drawn_and_adds_nothing(self, rows_each: int) -> None:
        made = PatientRecords(raw_rows=[[], [np.array([0, 5, 1])]], tokens_per_row=4, pad_id=2)
        batch = drawn_rows(made, np.array([0, 1]), rows_each)
        assert batch.slot_mask.tolist() == [1.0, 1.0]
        model = adapted("llama")
        losses = patient_losses(model(input_ids=batch.tokens).logits, batch)
        assert losses.detach()[0] == 0.0 < losses.detach()[1]
        trained = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(losses[0], trained, allow_unused=True)
        assert all(g is None or float(g.abs().max()) == 0.0 for g in gradients)

    def test_an_empty_patient_fills_a_slot_like_a_free_one(self) -> None:
        """Shapes, tokens and targets tell the two apart in nothing; only the mask does."""
        made = PatientRecords(raw_rows=[[]], tokens_per_row=4, pad_id=2)
        drawn = drawn_rows(made, np.array([0]), 3)
        free = drawn_rows(made, np.array([-1]), 3)
        assert torch.equal(drawn.tokens, free.tokens)
        assert torch.equal(drawn.targets, free.targets)
        assert torch.equal(drawn.row_share, free.row_share)


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

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_a_row_that_is_not_finite_spoils_its_own_patient_only(self, bad: float) -> None:
        """Loss, then telemetry sum, then gradient sum: the others stay bit-equal (F1)."""
        logits = torch.randn(6, 4, 7, generator=torch.Generator().manual_seed(1))
        rows = random_batch(3, 2, length=4, vocabulary=7)
        spoiled = logits.clone()
        spoiled[2, 1] = bad  # a row of patient 1
        spoiled.requires_grad_()
        clean, losses = patient_losses(logits, rows), patient_losses(spoiled, rows)
        assert not bool(torch.isfinite(losses[1]))
        assert torch.equal(losses[[0, 2]], clean[[0, 2]])
        without = torch.tensor([1.0, 0.0, 1.0])
        assert torch.equal(
            clipped_loss_sum(losses, 6.0, torch.ones(3)), clipped_loss_sum(clean, 6.0, without)
        )
        (gradient,) = torch.autograd.grad(losses.sum(), spoiled)
        per_patient = gradient.reshape(3, -1)
        assert bool(torch.isfinite(per_patient[[0, 2]]).all()), "0 * NaN would spread"
        found = clip_and_sum([per_patient], 0.1, torch.ones(3)).raw_sums[0]
        expected = clip_and_sum([per_patient.nan_to_num()], 0.1, without).raw_sums[0]
        assert torch.equal(found, expected)

    def test_a_loss_that_overflows_counts_nowhere(self) -> None:
        logits = torch.zeros(1, 2, 3)
        logits[0, 0, 0] = 3e38
        logits[0, 0, 1] = -3e38
        rows = PaddedRows(
            tokens=torch.zeros(1, 2, dtype=torch.long),
            targets=torch.tensor([[1, IGNORED]]),
            slot_mask=torch.ones(1),
            row_share=torch.ones(1),
        )
        losses = patient_losses(logits, rows)
        assert not bool(torch.isfinite(losses).any())
        assert float(clipped_loss_sum(losses, 6.0, rows.slot_mask)) == 0.0


def random_batch(
    patients: int, rows_each: int, *, length: int = 12, vocabulary: int = VOCABULARY, seed: int = 1
) -> PaddedRows:
    """Patients with rows of uneven length, each row right-padded."""
    generator = torch.Generator().manual_seed(seed)
    total = patients * rows_each
    tokens = torch.randint(0, vocabulary, (total, length), generator=generator)
    targets = tokens.roll(-1, dims=1)
    for row in range(total):
        targets[row, 2 + (row * 5 + seed) % (length - 2) :] = IGNORED
    return PaddedRows(
        tokens=tokens,
        targets=targets,
        slot_mask=torch.ones(patients),
        row_share=torch.full((total,), 1 / rows_each),
    )


def in_company(own: PaddedRows, others: PaddedRows, slot: int, rows_each: int) -> PaddedRows:
    """The one patient of `own` at place `slot` among the patients of `others`."""
    cut = slot * rows_each

    def join(a: torch.Tensor, b: torch.Tensor, at: int) -> torch.Tensor:
        return torch.cat([b[:at], a, b[at:]])

    return PaddedRows(
        tokens=join(own.tokens, others.tokens, cut),
        targets=join(own.targets, others.targets, cut),
        slot_mask=join(own.slot_mask, others.slot_mask, slot),
        row_share=join(own.row_share, others.row_share, cut),
    )


def contribution(model: Any, rows: PaddedRows, slot: int) -> torch.Tensor:
    """The gradient of one patient's loss, as the batch around it gives it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    losses = patient_losses(model(input_ids=rows.tokens).logits, rows)
    return torch.cat([g.flatten() for g in torch.autograd.grad(losses[slot], trained)])


@functools.cache
def trained_model(family: str) -> Any:
    return adapted(family).train()


class TestRowsApart:
    """ROWS: other patients' text, order and number move a contribution by <= 1e-6."""

    @pytest.mark.parametrize("family", FAMILIES)
    @settings(max_examples=6, deadline=None)
    @given(
        rows_each=st.sampled_from([1, 3]),
        others=st.integers(0, 4),
        slot=st.integers(0, 4),
        seed=st.integers(2, 10**6),
    )
    def test_a_contribution_does_not_depend_on_the_company(
        self, family: str, rows_each: int, others: int, slot: int, seed: int
    ) -> None:
        model, own = trained_model(family), random_batch(1, rows_each)
        alone = contribution(model, in_company(own, random_batch(3, rows_each), 0, rows_each), 0)
        place = min(slot, others)
        company = random_batch(others, rows_each, seed=seed)
        found = contribution(model, in_company(own, company, place, rows_each), place)
        assert float((found - alone).norm()) <= 1e-6 * float(alone.norm())


class TestUnit:
    """TEXT: a note longer than a row is one patient, with one clip."""

    def long_note(self, tmp_path: Path, copies: int) -> PatientRecords:
        note = " ".join("abcdefgh"[: 1 + k % 8] for k in range(40))
        lines = [("canary", note)] * copies
        return load(*write_lines(tmp_path / "v.jsonl", lines)).training

    def test_a_long_note_is_drawn_as_one_unit(self, tmp_path: Path) -> None:
        training = self.long_note(tmp_path, 1)
        assert training.raw_size == 1
        assert len(training.raw_rows_of(0)) == 6
        batch = drawn_rows(training, np.array([0]), 8)
        assert batch.slot_mask.tolist() == [1.0]
        assert float(batch.row_share.sum()) == pytest.approx(1.0)

    @pytest.mark.parametrize("copies", [1, 5])
    def test_its_whole_contribution_is_clipped_once(self, tmp_path: Path, copies: int) -> None:
        """Six windows, or thirty: the sum moves by at most C, not by C for each window."""
        training = self.long_note(tmp_path, copies)
        model = adapted("llama").train()
        batch = drawn_rows(training, np.array([0]), 8)
        whole = contribution(model, batch, 0)
        clip = float(whole.norm()) / 10
        summed = clip_and_sum([whole[None]], clip, batch.slot_mask).raw_sums[0]
        assert float(summed.norm()) <= clip * (1 + 1e-6)
        assert float(summed.norm()) > 0.99 * clip
