"""Renders one encounter of the Diabetes-130 table as a short clinical note.

The table holds codes; the note says them in plain words, with our own template. A note is
a function of its row alone: no count, no other row and no randomness goes into it.

Data: J. Clore, K. Cios, J. DeShazo, B. Strack, "Diabetes 130-US hospitals for years
1999-2008", UCI Machine Learning Repository, 2014 (CC BY 4.0).
"""

from __future__ import annotations

from collections.abc import Mapping

COLUMNS = frozenset(
    [
        "encounter_id",
        "patient_nbr",
        "race",
        "gender",
        "age",
        "admission_type_id",
        "discharge_disposition_id",
        "time_in_hospital",
        "num_lab_procedures",
        "num_procedures",
        "num_medications",
        "number_outpatient",
        "number_emergency",
        "number_inpatient",
        "diag_1",
        "diag_2",
        "diag_3",
        "number_diagnoses",
        "A1Cresult",
        "insulin",
        "diabetesMed",
        "readmitted",
    ]
)
ADMISSIONS = {"1": "as an emergency", "2": "urgently", "3": "as planned", "7": "after trauma"}
DISCHARGES = {
    "1": "Discharged home.",
    "3": "Discharged to a skilled nursing facility.",
    "6": "Discharged home with home health service.",
    "11": "The patient died in hospital.",
    "13": "Discharged to hospice care at home.",
    "14": "Discharged to hospice care.",
    "18": "",
}
READMISSIONS = {
    "NO": "Not readmitted.",
    "<30": "Readmitted within 30 days.",
    ">30": "Readmitted later than 30 days.",
}
A1C = {
    "Norm": "Hemoglobin A1c was normal.",
    ">7": "Hemoglobin A1c was above 7%.",
    ">8": "Hemoglobin A1c was above 8%.",
}
DOSES = {"Steady": "unchanged", "Up": "increased", "Down": "lowered"}
DRUGS = [
    "metformin",
    "repaglinide",
    "nateglinide",
    "glimepiride",
    "glipizide",
    "glyburide",
    "pioglitazone",
    "rosiglitazone",
    "acarbose",
    "insulin",
]
# ICD-9 ranges, first match wins; single codes stand before their chapter.
DIAGNOSES: tuple[tuple[int, int, str], ...] = (
    (250, 250, "diabetes mellitus"),
    (276, 276, "a fluid or electrolyte disorder"),
    (401, 405, "hypertensive disease"),
    (410, 410, "acute myocardial infarction"),
    (411, 414, "ischemic heart disease"),
    (427, 427, "a cardiac rhythm disorder"),
    (428, 428, "heart failure"),
    (430, 438, "cerebrovascular disease"),
    (480, 487, "pneumonia"),
    (490, 496, "chronic obstructive lung disease"),
    (584, 586, "renal failure"),
    (599, 599, "a urinary tract disorder"),
    (682, 682, "cellulitis"),
    (715, 715, "osteoarthritis"),
    (1, 139, "an infectious disease"),
    (140, 239, "a neoplasm"),
    (240, 279, "an endocrine or metabolic disorder"),
    (280, 289, "a blood disorder"),
    (290, 319, "a mental disorder"),
    (320, 389, "a disorder of the nervous system or senses"),
    (390, 459, "a circulatory disease"),
    (460, 519, "a respiratory disease"),
    (520, 579, "a digestive disease"),
    (580, 629, "a genitourinary disease"),
    (630, 679, "a complication of pregnancy"),
    (680, 709, "a skin disease"),
    (710, 739, "a musculoskeletal disease"),
    (740, 759, "a congenital anomaly"),
    (780, 799, "symptoms without a final diagnosis"),
    (800, 999, "an injury or poisoning"),
)


def render(row: Mapping[str, str]) -> str:
    """The note of one encounter; columns that hold `?` are left out."""
    sentences = (
        _arrival(row),
        _diagnoses(row),
        f"Work-up: {row['num_lab_procedures']} laboratory tests, {row['num_procedures']} "
        f"procedures, {row['num_medications']} medications.",
        _visits(row),
        A1C.get(row["A1Cresult"], ""),
        _treatment(row),
        DISCHARGES.get(row["discharge_disposition_id"], "Discharged to another facility."),
        READMISSIONS.get(row["readmitted"], ""),
    )
    return " ".join(sentence for sentence in sentences if sentence)


def _arrival(row: Mapping[str, str]) -> str:
    low, _, high = row["age"].strip("[)").partition("-")
    people = {"Female": "woman", "Male": "man"}
    person = people.get(row["gender"], "person")
    admitted = ADMISSIONS.get(row["admission_type_id"], "")
    days = row["time_in_hospital"]
    stay = "1 day" if days == "1" else f"{days} days"
    start = f"A {person} of {low} to {high} years was admitted"
    return f"{start} {admitted} for {stay}." if admitted else f"{start} for {stay}."


def _diagnoses(row: Mapping[str, str]) -> str:
    named = [_diagnosis(row[column]) for column in ("diag_1", "diag_2", "diag_3")]
    main, *others = [name for name in dict.fromkeys(named) if name] or [""]
    if not main:
        return ""
    also = f", with {' and '.join(others)}" if others else ""
    return f"The main diagnosis was {main}{also}."


def _diagnosis(code: str) -> str:
    number = code.partition(".")[0]
    if not number.isdigit():  # V and E codes, or unknown
        return ""
    return next((name for low, high, name in DIAGNOSES if low <= int(number) <= high), "")


def _visits(row: Mapping[str, str]) -> str:
    counts = [row[f"number_{kind}"] for kind in ("outpatient", "emergency", "inpatient")]
    if set(counts) == {"0"}:
        return "No hospital visits in the year before."
    return "In the year before: {} outpatient, {} emergency, {} inpatient visits.".format(*counts)


def _treatment(row: Mapping[str, str]) -> str:
    given = [f"{drug} {DOSES[row[drug]]}" for drug in DRUGS if row.get(drug) in DOSES]
    if not given:
        return "No diabetes medication."
    return f"Diabetes treatment: {', '.join(given)}."
