"""Synthetic patients: deterministic, correlated, streaming, short, and two different houses."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from service.demo import models, patients
from service.demo.phrases import STYLES

COUNT = 1500
TOKENS_MAX = 256


@pytest.fixture(scope="module")
def cohort() -> list[patients.Patient]:
    return [patients.make_patient("private", number, 1) for number in range(COUNT)]


def _share(cohort: list[patients.Patient], condition: str) -> float:
    return sum(condition in patient.conditions for patient in cohort) / len(cohort)


class TestRecords:
    def test_same_seed_gives_the_same_records(self) -> None:
        assert list(patients.records("private", 50, 3)) == list(patients.records("private", 50, 3))

    def test_another_seed_gives_other_records(self) -> None:
        assert list(patients.records("private", 50, 3)) != list(patients.records("private", 50, 4))

    def test_a_patient_does_not_depend_on_how_many_follow(self) -> None:
        few = list(patients.records("public", 20, 1))
        many = list(itertools.islice(patients.records("public", 10**9, 1), len(few)))
        assert few == many

    def test_records_stream(self) -> None:
        first = next(patients.records("private", 10**12))
        assert set(first) == {"patient_id", "text"}

    def test_patients_have_one_to_five_encounters_and_many_have_several(self) -> None:
        rows = patients.records("private", COUNT)
        counts = [
            len(list(notes)) for _, notes in itertools.groupby(rows, lambda r: r["patient_id"])
        ]
        assert len(counts) == COUNT
        assert (min(counts), max(counts)) == (1, patients.ENCOUNTERS_MAX)
        assert sum(count > 1 for count in counts) > COUNT / 3

    def test_an_unknown_population_is_refused(self) -> None:
        with pytest.raises(ValueError, match="public, private"):
            next(patients.records("nowhere", 1))

    def test_every_template_is_filled(self) -> None:
        for population in patients.PROFILES:
            for row in patients.records(population, 400):
                assert "{" not in row["text"] and "  " not in row["text"]

    def test_nearly_all_notes_fit_the_models_context(self) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(models.path() / "tokenizer.json"))
        for population in patients.PROFILES:
            texts = [row["text"] for row in patients.records(population, COUNT)]
            lengths = [len(encoded.ids) for encoded in tokenizer.encode_batch(texts)]
            assert sum(length < TOKENS_MAX for length in lengths) / len(lengths) > 0.99


class TestCorrelation:
    """COUNT patients: a share has a standard error below 0.013, the margins are 5 of these."""

    def test_heart_failure_follows_coronary_disease(self, cohort: list[patients.Patient]) -> None:
        with_coronary = [p for p in cohort if "coronary" in p.conditions]
        without = [p for p in cohort if "coronary" not in p.conditions]
        difference = _share(with_coronary, "heart_failure") - _share(without, "heart_failure")
        assert difference > 0.1

    def test_older_patients_have_more_conditions(self, cohort: list[patients.Patient]) -> None:
        old = [len(p.conditions) for p in cohort if p.age > 80]
        young = [len(p.conditions) for p in cohort if p.age < 60]
        assert sum(old) / len(old) > sum(young) / len(young) + 0.5

    def test_smokers_have_more_airway_disease(self, cohort: list[patients.Patient]) -> None:
        smokers = [p for p in cohort if p.is_smoker]
        others = [p for p in cohort if not p.is_smoker]
        assert _share(smokers, "copd") > _share(others, "copd") + 0.2

    def test_drugs_belong_to_the_patients_conditions(self) -> None:
        formulary = STYLES["private"].formulary
        insulin = [drug for drug, _ in formulary["diabetes"]]
        for number in range(200):
            patient = patients.make_patient("private", number, 1)
            if "diabetes" not in patient.conditions:
                notes = " ".join(patients.encounters("private", patient, number, 1))
                assert not [drug for drug in insulin if drug in notes]


class TestPopulations:
    def test_they_differ_in_prevalence(self, cohort: list[patients.Patient]) -> None:
        public = [patients.make_patient("public", number, 1) for number in range(COUNT)]
        assert _share(cohort, "heart_failure") > 2 * _share(public, "heart_failure")

    def test_they_share_no_drug_and_no_opening(self) -> None:
        public, private = STYLES["public"], STYLES["private"]
        drugs = [
            {d for options in s.formulary.values() for d, _ in options} for s in (public, private)
        ]
        assert not drugs[0] & drugs[1]
        assert not set(public.opening) & set(private.opening)

    def test_both_styles_know_every_condition_and_reason(self) -> None:
        reasons = {*patients.RISKS, *patients.ACUTE_REASONS}
        for style in STYLES.values():
            assert set(style.condition_names) == set(style.formulary) == set(patients.RISKS)
            assert set(style.reasons) == reasons


def test_write_jsonl_writes_one_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    count = patients.write_jsonl(patients.records("private", 20), path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == count
    assert all(set(json.loads(line)) == {"patient_id", "text"} for line in lines)
