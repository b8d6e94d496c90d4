"""Synthetic patients with several encounters each: a public and a private population.

    python -m service.demo.patients private 6000 OUT.jsonl [--seed N]

Attributes are correlated the way they are on a ward: age, weight and smoking drive the
conditions, conditions drive drugs, laboratory values and the reasons for coming back, and
a patient's later encounters continue the earlier ones (age, drugs, trend of the values).
The two populations differ in prevalence, drugs and house style (`phrases`), so that a model
that knows the public one has something to learn from the private one.

Guarantee: the same population, seed and number give the same bytes on every machine, and
patient number n is the same whatever the total. Nobody described here exists.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from service.demo.phrases import STYLES, EncounterFacts, Observations, write_note

ENCOUNTERS_MAX = 5


@dataclass(frozen=True, kw_only=True)
class Risk:
    """Log-odds of one condition at age 65, body mass index 28, woman, non-smoker."""

    base: float
    age_decade: float = 0.0
    bmi_five: float = 0.0
    smoker: float = 0.0
    man: float = 0.0
    given: Mapping[str, float] = field(default_factory=dict)  # added by earlier conditions


# In this order: a condition may depend on those above it.
RISKS: Mapping[str, Risk] = {
    "hypertension": Risk(base=0.4, age_decade=0.5, bmi_five=0.4),
    "diabetes": Risk(base=-1.0, age_decade=0.15, bmi_five=0.8, given={"hypertension": 0.5}),
    "kidney": Risk(base=-2.2, age_decade=0.5, given={"hypertension": 0.5, "diabetes": 0.8}),
    "coronary": Risk(
        base=-1.8, age_decade=0.5, smoker=0.6, man=0.6, given={"hypertension": 0.4, "diabetes": 0.4}
    ),
    "heart_failure": Risk(
        base=-2.8, age_decade=0.6, given={"coronary": 1.2, "hypertension": 0.4, "kidney": 0.6}
    ),
    "fibrillation": Risk(base=-2.6, age_decade=0.7, given={"heart_failure": 0.9}),
    "copd": Risk(base=-3.0, age_decade=0.3, smoker=2.3),
    "depression": Risk(base=-1.7, age_decade=-0.1, man=-0.5, given={"heart_failure": 0.4}),
    "arthrosis": Risk(base=-1.0, age_decade=0.5, bmi_five=0.4, man=-0.3),
    "thyroid": Risk(base=-2.3, age_decade=0.1, man=-1.3),
}
ACUTE_REASONS: Mapping[str, float] = {"pneumonia": 0.5, "urinary": 0.35, "fall": 0.3}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What makes one population different from the other, apart from how it writes."""

    age_mean: float
    age_std: float
    smoker_share: float
    encounters_mean: float
    shifts: Mapping[str, float]  # log-odds added to the risks


PROFILES: Mapping[str, Profile] = {
    "public": Profile(
        age_mean=56,
        age_std=16,
        smoker_share=0.18,
        encounters_mean=1.8,
        shifts={"depression": 0.5, "thyroid": 0.3, "heart_failure": -0.8},
    ),
    "private": Profile(
        age_mean=71,
        age_std=12,
        smoker_share=0.27,
        encounters_mean=2.4,
        shifts={"heart_failure": 0.9, "kidney": 0.6, "fibrillation": 0.5, "copd": 0.4},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Patient:
    """Attributes that stay with a patient over all encounters."""

    patient_id: str
    age: int  # at the first encounter
    is_man: bool
    is_smoker: bool
    bmi: float
    frailty: float  # 0 robust .. 1 frail: moves laboratory values, stays and returns together
    conditions: tuple[str, ...]


def make_patient(population: str, number: int, seed: int) -> Patient:
    """Patient `number` of a population; a function of its three arguments."""
    profile, random = PROFILES[population], _generator(population, seed, number, "patient")
    age = int(min(95, max(19, random.gauss(profile.age_mean, profile.age_std))))
    is_man = random.random() < 0.5
    is_smoker = random.random() < profile.smoker_share * (1.3 if age < 70 else 0.5)
    bmi = min(48.0, max(17.0, random.gauss(28 - (age - 65) * 0.05, 5)))
    conditions: list[str] = []
    for name, risk in RISKS.items():
        odds = risk.base + profile.shifts.get(name, 0.0) + risk.age_decade * (age - 65) / 10
        odds += risk.bmi_five * (bmi - 28) / 5 + risk.smoker * is_smoker + risk.man * is_man
        odds += sum(risk.given.get(earlier, 0.0) for earlier in conditions)
        if random.random() < 1 / (1 + math.exp(-odds)):
            conditions.append(name)
    frailty = (age - 40) / 90 + 0.05 * len(conditions) + random.gauss(0, 0.12)
    return Patient(
        patient_id=f"{population}-{number:06d}",
        age=age,
        is_man=is_man,
        is_smoker=is_smoker,
        bmi=bmi,
        frailty=min(1.0, max(0.0, frailty)),
        conditions=tuple(conditions),
    )


def encounters(population: str, patient: Patient, number: int, seed: int) -> Iterator[str]:
    """The patient's notes in order of time: 1 to 5 of them."""
    profile, style = PROFILES[population], STYLES[population]
    random = _generator(population, seed, number, "encounters")
    count = 1 + sum(
        random.random() < (profile.encounters_mean - 1) / 4 * (0.5 + patient.frailty)
        for _ in range(ENCOUNTERS_MAX - 1)
    )
    drugs = _first_drugs(population, patient, random)
    control, months_total = random.gauss(0.5 - 0.3 * patient.frailty, 0.15), 0
    for index in range(count):
        months = 0 if index == 0 else random.randint(1, 14)
        months_total += months
        reason = _reason(patient, control, random)
        changed = _changed_drug(population, patient, drugs, random)
        facts = EncounterFacts(
            number=index + 1,
            months_since_last=months,
            age=min(99, patient.age + months_total // 12),
            is_man=patient.is_man,
            is_smoker=patient.is_smoker,
            reason=reason,
            conditions=patient.conditions[:4],
            drugs=tuple(drugs),
            changed_drug=changed,
            days=max(1, round(random.gauss(3 + 6 * patient.frailty, 2))),
            disposition=_disposition(patient, random),
            observed=_observe(patient, reason, control, random),
        )
        yield write_note(style, facts, random)
        if changed is not None:  # the next encounter starts with the changed list
            drugs = [*drugs, changed][-3:]
            control += 0.1
        control -= 0.04 * patient.frailty


def records(population: str, patients: int, seed: int = 1) -> Iterator[dict[str, str]]:
    """`{"patient_id", "text"}` of every encounter, one at a time, ordered by patient.

    Raises:
        ValueError: an unknown population.
    """
    if population not in PROFILES:
        raise ValueError(f"population is one of {', '.join(PROFILES)}")
    for number in range(patients):
        patient = make_patient(population, number, seed)
        for text in encounters(population, patient, number, seed):
            yield {"patient_id": patient.patient_id, "text": text}


def write_jsonl(rows: Iterable[Mapping[str, str]], path: Path) -> int:
    """Streams rows to a file, one JSON object a line; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=True) + "\n")
            count += 1
    return count


def _generator(population: str, seed: int, number: int, purpose: str) -> Random:
    return Random(f"{population}/{seed}/{number}/{purpose}")


def _weighted(options: Iterable[tuple[str, float]], random: Random) -> str:
    names, weights = zip(*options, strict=True)
    return str(random.choices(names, weights)[0])


def _first_drugs(population: str, patient: Patient, random: Random) -> list[str]:
    formulary = STYLES[population].formulary
    chosen = [
        _weighted(formulary[name], random) for name in patient.conditions if random.random() < 0.85
    ]
    return chosen[:3]


def _changed_drug(
    population: str, patient: Patient, drugs: list[str], random: Random
) -> str | None:
    if not patient.conditions or random.random() < 0.55:
        return None
    drug = _weighted(STYLES[population].formulary[random.choice(patient.conditions)], random)
    return None if drug in drugs else drug


def _reason(patient: Patient, control: float, random: Random) -> str:
    severity = 1.3 - min(1.0, max(0.0, control))
    weights = dict.fromkeys(patient.conditions, severity)
    for name, weight in ACUTE_REASONS.items():
        weights[name] = weight * (0.5 + patient.frailty)
    return _weighted(weights.items(), random)


def _disposition(patient: Patient, random: Random) -> str:
    frail = patient.frailty
    return _weighted(
        (("home", 1.2 - frail), ("support", 0.2 + frail), ("care", frail**2), ("transfer", 0.06)),
        random,
    )


def _observe(patient: Patient, reason: str, control: float, random: Random) -> Observations:
    has, poor = set(patient.conditions), 1 - min(1.0, max(0.0, control))
    systolic = 122 + 18 * ("hypertension" in has) * poor + 40 * (reason == "hypertension")
    systolic = max(84, round(random.gauss(systolic - 22 * (reason == "urinary"), 11)))
    is_fast = reason in ("fibrillation", "pneumonia", "urinary", "heart_failure")
    airless = 4 * ("copd" in has) + 5 * (reason in ("pneumonia", "copd", "heart_failure"))
    return Observations(
        systolic=systolic,
        diastolic=max(44, round(random.gauss(systolic * 0.6, 6))),
        pulse=max(44, round(random.gauss(76 + 28 * is_fast, 9))),
        saturation=min(100, max(78, round(random.gauss(97 - airless, 1.5)))),
        values=tuple(_laboratory(patient, reason, poor, random))[:3],
    )


def _laboratory(
    patient: Patient, reason: str, poor: float, random: Random
) -> Iterator[tuple[str, str]]:
    """Values that belong to the conditions, worse where control is poor."""
    has = set(patient.conditions)
    if "diabetes" in has:
        yield "hba1c", f"{max(5.4, random.gauss(6.4 + 2.6 * poor, 0.5)):.1f}%"
    if "kidney" in has or random.random() < 0.4:
        level = 0.9 + 0.9 * ("kidney" in has) + 0.8 * (reason == "kidney") + 0.4 * poor
        yield "creatinine", f"{max(0.5, random.gauss(level, 0.2)):.1f}"
    if "heart_failure" in has:
        level = 900 + 2600 * poor + 2200 * (reason == "heart_failure")
        yield "bnp", str(max(12, round(random.gauss(level, 500) / 10)) * 10)
    if "thyroid" in has:
        yield "tsh", f"{max(0.2, random.gauss(3.2 + 2 * poor, 1.2)):.1f}"
    if random.random() < 0.4:
        yield "haemoglobin", f"{max(7.0, random.gauss(14.2 - 3 * patient.frailty, 1)):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Synthetic patients as JSON lines")
    parser.add_argument("population", choices=sorted(PROFILES))
    parser.add_argument("patients", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rows = records(arguments.population, arguments.patients, arguments.seed)
    print(f"{write_jsonl(rows, arguments.out)} notes of {arguments.patients} patients")


if __name__ == "__main__":
    main()
