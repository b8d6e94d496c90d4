"""Parquet uploads, with files that pyarrow writes: rows, faults, refusals and limits."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.datasets import parquet
from service.datasets.parquet import REFUSALS, ParquetInvalid, ParquetUnavailable
from service.datasets.rows import MESSAGES
from tests.service.datasets.test_validation import found, kept, run
from tests.service.hospital import Hospital

CANARY = "qzcanaryxk"
TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]


def table(**columns: Any) -> bytes:
    return packed(pa.table(columns))


def packed(content: pa.Table, **options: Any) -> bytes:
    target = io.BytesIO()
    pq.write_table(content, target, **options)
    return target.getvalue()


class TestRows:
    def test_of_text_become_unit_and_text_in_order(self, tmp_path: Path) -> None:
        content = packed(
            pa.table(
                {
                    "ward": [["a"], ["b"], ["c"]],  # not needed, hence never read
                    "text": ["A\nnote.", "B", "C"],
                    "patient_id": pa.array([7, 8, 7], pa.int32()),
                }
            ),
            row_group_size=2,
        )
        outcome = run(tmp_path, content)
        assert (outcome.kind, outcome.errors_total) == ("parquet", 0)
        assert kept(tmp_path) == [
            {"unit": "7", "text": "A\nnote."},
            {"unit": "8", "text": "B"},
            {"unit": "7", "text": "C"},
        ]

    def test_of_chats_and_of_prompts_are_taken(self, tmp_path: Path) -> None:
        run(tmp_path, table(patient_id=["p1"], messages=[TURNS]))
        assert kept(tmp_path) == [{"unit": "p1", "text": "User: Why?\nAssistant: Because."}]

    def test_of_prompts_with_dictionary_columns_and_large_strings(self, tmp_path: Path) -> None:
        prompts = pa.array(["Why?"]).dictionary_encode()
        completions = pa.array(["Because."], pa.large_string())
        run(tmp_path, table(patient_id=["p1"], prompt=prompts, completion=completions))
        assert kept(tmp_path) == [{"unit": "p1", "text": "Why?\nBecause."}]

    def test_without_a_unit_field_are_units_of_their_own(self, tmp_path: Path) -> None:
        run(tmp_path, table(text=["a", "b"]), unit_field=None)
        assert [row["unit"] for row in kept(tmp_path)] == ["row-1", "row-2"]

    def test_have_the_faults_of_other_kinds_at_their_number(self, tmp_path: Path) -> None:
        texts = [None, "", "good", "x" * 1_100_000, "good"]
        outcome = run(tmp_path, table(patient_id=["p1", "p2", None, "p4", " "], text=texts))
        assert found(outcome) == [
            (1, "/text", "field_missing"),
            (2, "/text", "field_missing"),
            (3, "/patient_id", "unit_missing"),
            (4, "", "row_too_large"),
            (5, "/patient_id", "unit_empty"),
        ]
        assert not (tmp_path / "target").exists()

    def test_of_chats_have_their_faults_too(self, tmp_path: Path) -> None:
        wrong = [{"role": CANARY, "content": CANARY}]
        outcome = run(tmp_path, table(patient_id=["p1", "p2", "p3"], messages=[wrong, [], TURNS]))
        assert found(outcome) == [
            (1, "/messages/0/role", "role_invalid"),
            (2, "/messages", "messages_empty"),
        ]
        assert CANARY not in str([f.fault for f in outcome.faults])

    def test_that_are_not_utf8_spoil_no_other(self, tmp_path: Path) -> None:
        raw = pa.array([b"good", b"\xff" + CANARY.encode(), b"good"])
        column = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
        outcome = run(tmp_path, table(patient_id=["p1", "p2", "p3"], text=column))
        assert found(outcome) == [(2, "", "utf8_invalid")]

    def test_none_at_all_is_a_fault(self, tmp_path: Path) -> None:
        empty = table(patient_id=pa.array([], pa.string()), text=pa.array([], pa.string()))
        assert found(run(tmp_path, empty)) == [(1, "", "file_empty")]


class TestColumns:
    @pytest.mark.parametrize(
        ("columns", "expected"),
        [
            ({"patient_id": ["p"], "note": ["a"]}, ("/text", "field_missing", "form_missing")),
            ({"id": ["p"], "text": ["a"]}, ("/patient_id", "unit_missing", "unit_missing")),
            ({"patient_id": [1.5], "text": ["a"]}, ("/patient_id", "field_type", "unit_type")),
            ({"patient_id": [["p"]], "text": ["a"]}, ("/patient_id", "field_type", "unit_type")),
            ({"patient_id": ["p"], "text": [["a"]]}, ("/text", "field_type", "column_nested")),
            ({"patient_id": ["p"], "text": [{"a": 1}]}, ("/text", "field_type", "column_nested")),
            ({"patient_id": ["p"], "text": [5]}, ("/text", "field_type", "field_type")),
            ({"patient_id": ["p"], "text": [b"a"]}, ("/text", "field_type", "field_type")),
            (
                {"patient_id": ["p"], "messages": [[["deeper"]]]},
                ("/messages", "field_type", "messages_type"),
            ),
            (
                {"patient_id": ["p"], "messages": ["text"]},
                ("/messages", "field_type", "messages_type"),
            ),
        ],
    )
    def test_that_do_not_fit_are_the_only_fault(
        self, tmp_path: Path, columns: dict[str, Any], expected: tuple[str, str, str]
    ) -> None:
        outcome = run(tmp_path, table(**columns))
        (fault,) = [f.fault for f in outcome.faults]
        pointer, code, message = expected
        assert (fault.pointer, fault.code, fault.message) == (pointer, code, MESSAGES[message])

    def test_a_name_that_the_user_chose_is_not_repeated(self, tmp_path: Path) -> None:
        outcome = run(tmp_path, table(**{CANARY: [1.5], "text": ["a"]}), unit_field=CANARY)
        assert found(outcome) == [(1, "/*", "field_type")]

    def test_a_column_that_stands_twice(self, tmp_path: Path) -> None:
        twice = pa.Table.from_arrays(
            [pa.array(["a"]), pa.array(["b"]), pa.array(["p"])], ["text", "text", "patient_id"]
        )
        assert found(run(tmp_path, packed(twice))) == [(1, "", "columns_mismatch")]


class TestRefusals:
    def refused(self, tmp_path: Path, content: bytes, limit: int = 100_000_000) -> str:
        with pytest.raises(ParquetInvalid) as raised:
            run(tmp_path, content, limit=limit)
        assert (raised.value.status, raised.value.code) == (422, "file_invalid")
        assert CANARY not in str(raised.value.extra) and raised.value.__cause__ is None
        assert not (tmp_path / "target").exists()
        (told,) = raised.value.extra["errors"]
        assert told["message"] == REFUSALS[told["code"]]
        return str(told["code"])

    @pytest.mark.parametrize("kind", ["magic only", "cut", "footer", "page", "encrypted footer"])
    def test_of_damaged_files(self, tmp_path: Path, kind: str) -> None:
        whole = packed(
            pa.table({"patient_id": ["p"] * 500, "text": [CANARY] * 500}), compression="gzip"
        )
        content = {
            "magic only": b"PAR1",
            "cut": whole[: len(whole) // 2],
            "footer": whole[:-40] + b"\xff" * 32 + whole[-8:],
            "page": whole[:4] + b"\xff" * 60 + whole[64:],
            "encrypted footer": whole[:-4] + b"PARE",
        }[kind]
        assert self.refused(tmp_path, content) == "parquet_unreadable"

    def test_of_what_is_declared_too_large(self, tmp_path: Path) -> None:
        """A few kilobytes in the file; refused by its own footer, before a page is opened."""
        notes = pa.table({"patient_id": ["p"] * 16, "text": ["x" * 500_000] * 16})
        content = packed(notes, compression="zstd", use_dictionary=False)
        assert len(content) < 20_000
        assert self.refused(tmp_path, content, limit=5_000_000) == "parquet_too_large"

    def test_of_what_turns_out_too_large(self, tmp_path: Path) -> None:
        """Repeated values: small as declared, since each is stored once."""
        notes = pa.table({"patient_id": ["p"] * 300, "text": ["x" * 100_000] * 300})
        content = packed(notes, compression="zstd", use_dictionary=True)
        declared = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).total_byte_size
        assert declared < 1_000_000
        assert self.refused(tmp_path, content, limit=5_000_000) == "parquet_too_large"

    @pytest.mark.ci  # makes a text of 300 MB first
    def test_of_what_needs_too_much_memory(self, tmp_path: Path) -> None:
        """One value of 300 MB in a few kilobytes of file: its copies pass the decoder's limit."""
        big = pa.array(["x" * 300_000_000], pa.large_string())
        content = packed(
            pa.table({"patient_id": ["p"], "text": big}), compression="zstd", use_dictionary=False
        )
        del big
        assert len(content) < 1_000_000
        assert self.refused(tmp_path, content, limit=2_000_000_000) == "parquet_memory"

    def test_of_too_many_row_groups(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        content = packed(
            pa.table({"patient_id": ["p"] * 10_001, "text": ["a"] * 10_001}), row_group_size=1
        )
        assert self.refused(tmp_path, content) == "parquet_row_groups"

    def test_where_no_decoder_is_installed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parquet, "MODULE", "a_module_that_is_not_there")
        with pytest.raises(ParquetUnavailable) as raised:
            run(tmp_path, table(patient_id=["p"], text=["a"]))
        assert raised.value.status == 415 and "rldp[parquet]" in str(raised.value)


class TestOverHttp:
    def test_a_good_file_becomes_a_version(self, hospital: Hospital) -> None:
        dataset = hospital.dataset(hospital.people["steward"])
        content = table(patient_id=["p1", "p2"], text=["a", "b"])
        answer = hospital.upload(
            hospital.people["submitter"], content, name="notes.parquet", dataset=dataset
        )
        assert answer.status_code == 200 and answer.json()["status"] == "processed"
        shown = hospital.client.get(
            f"/v1/files/{answer.json()['id']}/content", headers=hospital.people["steward"].headers
        )
        assert [json.loads(line)["text"] for line in shown.text.splitlines()] == ["a", "b"]

    def test_a_damaged_one_is_refused_and_leaves_nothing(self, hospital: Hospital) -> None:
        answer = hospital.upload(hospital.people["submitter"], b"PAR1" + CANARY.encode())
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["code"] == "parquet_unreadable"
        assert CANARY not in answer.text
        assert list(hospital.settings.files_dir.iterdir()) == []
