"""Records of each known format become the upload format; bad files are named, never quoted."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pytest

from service.demo import diabetes130
from service.demo.records import (
    DIABETES_NOTES,
    DIABETES_TABLE,
    MTS_DIALOG,
    OWN,
    RecordsError,
    recognise,
    records,
    write_upload,
)

SECRET = "Zebrafish-9971"
ENCOUNTER = {
    "encounter_id": "1", "patient_nbr": "77", "race": "?", "gender": "Female", "age": "[70-80)",
    "admission_type_id": "1", "discharge_disposition_id": "1", "time_in_hospital": "3",
    "num_lab_procedures": "41", "num_procedures": "0", "num_medications": "9",
    "number_outpatient": "0", "number_emergency": "1", "number_inpatient": "2",
    "diag_1": "428", "diag_2": "250.83", "diag_3": "?", "number_diagnoses": "7",
    "A1Cresult": ">8", "insulin": "Up", "diabetesMed": "Yes", "readmitted": "<30",
    "metformin": "Steady",
}  # fmt: skip


def _jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _csv(*rows: dict[str, str]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(ENCOUNTER))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


class TestFormats:
    def test_own_jsonl_passes_through(self, tmp_path: Path) -> None:
        row = {"patient_id": "p1", "text": "Note.", "ward": "3"}
        path = _jsonl(tmp_path / "notes.bin", row)
        assert recognise(path) is OWN
        assert list(records(path)) == [{"patient_id": "p1", "text": "Note."}]

    def test_a_number_may_be_a_patient_id(self, tmp_path: Path) -> None:
        path = _jsonl(tmp_path / "a", {"patient_id": 12, "text": "Note."})
        assert next(records(path))["patient_id"] == "12"

    def test_diabetes_notes_use_train_and_valid_by_patient(self, tmp_path: Path) -> None:
        rows = [
            {"id": str(i), "patient": f"p{i}", "split": split, "text": f"Note {i}."}
            for i, split in enumerate(("train", "test", "valid"))
        ]
        path = _jsonl(tmp_path / "a", *rows)
        assert recognise(path) is DIABETES_NOTES
        assert [row["patient_id"] for row in records(path)] == ["p0", "p2"]

    def test_gzip_is_seen_by_content(self, tmp_path: Path) -> None:
        plain = _jsonl(tmp_path / "plain", {"patient_id": "p1", "text": "Note."})
        packed = tmp_path / "packed.jsonl"
        packed.write_bytes(gzip.compress(plain.read_bytes()))
        assert list(records(packed)) == list(records(plain))

    def test_encounter_table_keeps_repeating_patients(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_text(_csv(ENCOUNTER, ENCOUNTER | {"encounter_id": "2"}), encoding="utf-8")
        assert recognise(path) is DIABETES_TABLE
        assert [row["patient_id"] for row in records(path)] == ["77", "77"]

    def test_dialog_sections_rest_on_a_statement(self, tmp_path: Path) -> None:
        row = {"id": "mts-1", "split": "train", "section": "GENHX", "text": "Note.", "dialogue": ""}
        path = _jsonl(tmp_path / "a", row)
        assert recognise(path) is MTS_DIALOG
        assert MTS_DIALOG.each_record_is_another_patient
        assert next(records(path)) == {"patient_id": "mts-1", "text": "Note."}

    def test_write_upload_counts_patients_and_notes(self, tmp_path: Path) -> None:
        rows = [{"patient_id": p, "text": "Note."} for p in ("a", "a", "b")]
        done = write_upload(_jsonl(tmp_path / "in", *rows), tmp_path / "out")
        assert (done.patients, done.notes, done.source) == (2, 3, OWN)
        assert len((tmp_path / "out").read_text().splitlines()) == 3


class TestBadFiles:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "holds no records"),
            (b"\n\n", "holds no records"),
            (SECRET.encode(), "neither JSON lines nor"),
            (b'{"a": 1}\n', "needs patient_id"),
            (b"{" + SECRET.encode(), "Line 1 is not JSON"),
            (b'{"patient_id": "p", "text": "n"}\n[]\n', "Line 2 is not a JSON object"),
            (b'{"patient_id": "p", "text": "n"}\n{"patient_id": "p"}\n', "Line 2: the field text"),
            (b'{"patient_id": "p", "text": "n"}\n{"patient_id": " ", "text": "n"}', "Line 2"),
            (b'{"patient_id": "p", "text": "n"}\n\xff\xfe', "not UTF-8"),
            (b"\x1f\x8bbroken", "damaged gzip"),
        ],
    )
    def test_says_where_and_never_what(self, tmp_path: Path, content: bytes, said: str) -> None:
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(RecordsError, match=said) as caught:
            list(records(path))
        assert SECRET not in str(caught.value)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(RecordsError, match="There is no file"):
            recognise(tmp_path / "absent")

    def test_a_short_table_row_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_text(_csv(ENCOUNTER) + "1,2\n", encoding="utf-8")
        with pytest.raises(RecordsError, match="Line 3 has fewer columns"):
            list(records(path))

    def test_a_file_of_test_rows_only_is_refused(self, tmp_path: Path) -> None:
        row = {"id": "1", "patient": "p", "split": "test", "text": "Note."}
        with pytest.raises(RecordsError, match="no row of the splits"):
            write_upload(_jsonl(tmp_path / "a", row), tmp_path / "out")


class TestRender:
    def test_says_the_codes_in_words(self) -> None:
        assert diabetes130.render(ENCOUNTER) == (
            "A woman of 70 to 80 years was admitted as an emergency for 3 days. "
            "The main diagnosis was heart failure, with diabetes mellitus. "
            "Work-up: 41 laboratory tests, 0 procedures, 9 medications. "
            "In the year before: 0 outpatient, 1 emergency, 2 inpatient visits. "
            "Hemoglobin A1c was above 8%. "
            "Diabetes treatment: metformin unchanged, insulin increased. "
            "Discharged home. Readmitted within 30 days."
        )

    def test_leaves_out_what_is_unknown(self) -> None:
        unknown = {"diag_1": "?", "diag_2": "V27", "diag_3": "?", "A1Cresult": "None",
                   "insulin": "No", "metformin": "No"}  # fmt: skip
        note = diabetes130.render(ENCOUNTER | unknown)
        assert "diagnosis" not in note
        assert "No diabetes medication." in note
        assert "?" not in note


class TestRealFiles:
    """The development data, where it lies beside the checkout."""

    @pytest.mark.parametrize(
        ("name", "source", "patients"),
        [
            ("diabetes130/notes_dev.jsonl.gz", DIABETES_NOTES, 32_842),
            ("diabetes130/diabetic_data_dev.csv.gz", DIABETES_TABLE, 35_762),
            ("mts_dialog/mts_dialog_dev.jsonl.gz", MTS_DIALOG, 1_301),
        ],
    )
    def test_every_row_is_usable(
        self, shared: Path, tmp_path: Path, name: str, source: object, patients: int
    ) -> None:
        done = write_upload(shared / "data" / name, tmp_path / "out")
        assert done.source is source
        assert done.patients == patients
        assert done.source.patients_published is not None
        assert done.source.patients_published <= patients
