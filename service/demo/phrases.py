"""House styles of the two synthetic hospitals: how an encounter becomes a note.

A style is data: several templates for each sentence, its own names for conditions, its own
formulary and its own way to end a stay. `write_note` picks one template a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

Templates = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Observations:
    """First measurements: pressures in mmHg, pulse per minute, oxygen saturation in percent."""

    systolic: int
    diastolic: int
    pulse: int
    saturation: int
    values: tuple[tuple[str, str], ...]  # (laboratory value, reading)


@dataclass(frozen=True, kw_only=True)
class EncounterFacts:
    """What happened at one encounter, before anyone wrote it down."""

    number: int  # 1 for the first
    months_since_last: int
    age: int
    is_man: bool
    is_smoker: bool
    reason: str
    conditions: tuple[str, ...]
    drugs: tuple[str, ...]
    changed_drug: str | None
    observed: Observations
    days: int
    disposition: str


@dataclass(frozen=True, kw_only=True)
class HouseStyle:
    """One hospital's way of writing."""

    opening: Templates
    returning: Templates
    history: Templates
    no_history: Templates
    medication: Templates
    no_medication: Templates
    findings: Templates
    laboratory: Templates
    change: Templates
    ending: Templates
    condition_names: Mapping[str, str]
    reasons: Mapping[str, tuple[str, str]]  # presenting words, course
    value_names: Mapping[str, str]
    dispositions: Mapping[str, str]
    formulary: Mapping[str, tuple[tuple[str, float], ...]]
    smoking: Templates


def write_note(style: HouseStyle, facts: EncounterFacts, random: Random) -> str:
    """One note of an encounter; equal generator states give equal text."""
    presenting, course = style.reasons[facts.reason]
    words = {
        "age": facts.age,
        "article": "an" if str(facts.age).startswith("8") or facts.age in (11, 18) else "a",
        "sex": "man" if facts.is_man else "woman",
        "they": "He" if facts.is_man else "She",
        "their": "His" if facts.is_man else "Her",
        "reason": presenting,
        "history": _listed([style.condition_names[name] for name in facts.conditions]),
        "drugs": _listed(facts.drugs),
        "drug": facts.changed_drug or "",
        "systolic": facts.observed.systolic,
        "diastolic": facts.observed.diastolic,
        "pulse": facts.observed.pulse,
        "saturation": facts.observed.saturation,
        "values": _listed(
            [f"{style.value_names[n]} {reading}" for n, reading in facts.observed.values]
        ),
        "months": _months(facts.months_since_last),
        "days": "1 day" if facts.days == 1 else f"{facts.days} days",
        "disposition": style.dispositions[facts.disposition],
    }
    sentences: list[Templates] = [style.opening]
    if facts.number > 1:
        sentences.append(style.returning)
    sentences.append(style.history if facts.conditions else style.no_history)
    if facts.is_smoker and random.random() < 0.5:
        sentences.append(style.smoking)
    sentences.append(style.medication if facts.drugs else style.no_medication)
    sentences.append(style.findings)
    if facts.observed.values:
        sentences.append(style.laboratory)
    sentences.append((course,))
    if facts.changed_drug:
        sentences.append(style.change)
    sentences.append(style.ending)
    return " ".join(random.choice(options).format(**words) for options in sentences)


def _listed(items: Sequence[str]) -> str:
    if len(items) < 2:
        return "".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]


def _months(count: int) -> str:
    return "1 month" if count == 1 else f"{count} months"


PUBLIC = HouseStyle(
    opening=(
        "A {age}-year-old {sex} was seen in the clinic for {reason}.",
        "The patient is {article} {age}-year-old {sex} who came to the office for {reason}.",
        "This {age}-year-old {sex} presents today with {reason}.",
    ),
    returning=(
        "{their} last visit was {months} ago.",
        "{they} was last seen {months} ago.",
    ),
    history=(
        "{their} medical history includes {history}.",
        "Past medical history is significant for {history}.",
        "{they} has a history of {history}.",
    ),
    no_history=("There is no significant medical history.", "{they} has been healthy until now."),
    smoking=(
        "{they} continues to smoke.",
        "{they} smokes about half a pack of cigarettes per day.",
    ),
    medication=(
        "{they} takes {drugs}.",
        "Current medications are {drugs}.",
        "Medications include {drugs}.",
    ),
    no_medication=("{they} takes no medications.", "No regular medications."),
    findings=(
        "On examination blood pressure is {systolic}/{diastolic} and heart rate is {pulse}.",
        "Blood pressure {systolic}/{diastolic}, heart rate {pulse}, saturation {saturation}%.",
        "Vital signs: blood pressure {systolic}/{diastolic}, heart rate {pulse}.",
    ),
    laboratory=(
        "Laboratory tests show {values}.",
        "Recent blood tests were reviewed: {values}.",
    ),
    change=(
        "The plan is to start {drug}.",
        "At this visit {drug} was added.",
    ),
    ending=(
        "{disposition} All questions were answered.",
        "The plan was discussed with the patient. {disposition}",
        "{disposition}",
    ),
    condition_names={
        "hypertension": "high blood pressure",
        "diabetes": "type 2 diabetes",
        "kidney": "chronic kidney disease",
        "coronary": "coronary artery disease",
        "heart_failure": "congestive heart failure",
        "fibrillation": "atrial fibrillation",
        "copd": "chronic obstructive pulmonary disease",
        "depression": "depression",
        "arthrosis": "osteoarthritis",
        "thyroid": "hypothyroidism",
    },
    reasons={
        "hypertension": ("follow-up of blood pressure", "Home readings have been above goal."),
        "diabetes": ("diabetes follow-up", "Diet and exercise were reviewed."),
        "kidney": (
            "follow-up of kidney function",
            "Pain relievers of the ibuprofen type should be avoided.",
        ),
        "coronary": ("chest discomfort with exertion", "A stress test was ordered."),
        "heart_failure": (
            "swelling of the legs",
            "Daily weights and a low-salt diet were advised.",
        ),
        "fibrillation": ("palpitations", "An electrocardiogram was obtained in the office."),
        "copd": ("cough and shortness of breath", "Inhaler technique was reviewed."),
        "depression": ("low mood", "Counseling was recommended."),
        "arthrosis": ("knee pain", "Physical therapy was recommended."),
        "thyroid": ("fatigue", "Thyroid function will be rechecked."),
        "pneumonia": ("fever and cough", "A chest x-ray was ordered and antibiotics were started."),
        "urinary": ("burning with urination", "A urine culture was sent."),
        "fall": ("a fall at home", "No fracture was found and home safety was discussed."),
    },
    value_names={
        "hba1c": "hemoglobin A1c",
        "creatinine": "creatinine",
        "bnp": "BNP",
        "haemoglobin": "hemoglobin",
        "tsh": "TSH",
    },
    dispositions={
        "home": "Return to the clinic in three months.",
        "support": "A home health nurse will visit.",
        "care": "Placement in assisted living was discussed.",
        "transfer": "A referral to a specialist was made.",
    },
    formulary={
        "hypertension": (
            ("lisinopril 20 mg daily", 5),
            ("amlodipine 5 mg daily", 4),
            ("losartan 50 mg daily", 3),
        ),
        "diabetes": (
            ("metformin 1000 mg twice daily", 6),
            ("glipizide 5 mg daily", 3),
            ("insulin glargine at bedtime", 2),
        ),
        "kidney": (("calcium acetate with meals", 1),),
        "coronary": (("aspirin 81 mg daily", 5), ("atorvastatin 40 mg daily", 5)),
        "heart_failure": (("furosemide 40 mg daily", 5), ("carvedilol 6.25 mg twice daily", 3)),
        "fibrillation": (("warfarin as directed", 4), ("apixaban 5 mg twice daily", 3)),
        "copd": (("an albuterol inhaler as needed", 4), ("tiotropium once daily", 3)),
        "depression": (("sertraline 50 mg daily", 4), ("bupropion 150 mg daily", 2)),
        "arthrosis": (("acetaminophen as needed", 3), ("naproxen as needed", 2)),
        "thyroid": (("levothyroxine 75 mcg daily", 1),),
    },
)

PRIVATE = HouseStyle(
    opening=(
        "Admission of {article} {age}-year-old {sex} with {reason}.",
        "{age}-year-old {sex} admitted through the emergency unit with {reason}.",
        "This {age}-year-old {sex} was brought to the ward with {reason}.",
    ),
    returning=(
        "Known to this ward from a stay {months} ago.",
        "Previous stay here: {months} ago.",
        "Readmission after {months}.",
    ),
    history=(
        "Background: {history}.",
        "Known diagnoses on arrival: {history}.",
        "Long-standing {history}.",
    ),
    no_history=("Background: none of note.", "No known diagnoses on arrival."),
    smoking=("Active smoker, cessation offered.", "Smokes; nicotine patch given on the ward."),
    medication=(
        "Medication on arrival: {drugs}.",
        "Drug chart on admission: {drugs}.",
        "Regular drugs: {drugs}.",
    ),
    no_medication=("No regular drugs.", "Medication on arrival: none."),
    findings=(
        "First observations: pressure {systolic} over {diastolic}, pulse {pulse}, "
        "saturation {saturation}% on room air.",
        "On arrival pressure {systolic} over {diastolic}, pulse {pulse} per minute, "
        "saturation {saturation}%.",
    ),
    laboratory=(
        "Admission bloods: {values}.",
        "Results on the first day: {values}.",
    ),
    change=(
        "New on the drug chart: {drug}.",
        "Treatment was extended by {drug}.",
    ),
    ending=(
        "Stay of {days}. {disposition}",
        "Left the ward after {days}. {disposition}",
        "Length of stay {days}. {disposition}",
    ),
    condition_names={
        "hypertension": "arterial hypertension",
        "diabetes": "diabetes mellitus type 2",
        "kidney": "chronic renal insufficiency",
        "coronary": "ischaemic heart disease",
        "heart_failure": "chronic heart failure",
        "fibrillation": "permanent atrial fibrillation",
        "copd": "chronic obstructive airway disease",
        "depression": "recurrent depression",
        "arthrosis": "arthrosis of the knees",
        "thyroid": "substituted hypothyroidism",
    },
    reasons={
        "hypertension": (
            "a hypertensive crisis",
            "Pressure settled with urapidil and the regular drugs were raised.",
        ),
        "diabetes": (
            "hyperglycaemia",
            "Glucose was brought down with intravenous insulin; the diabetes nurse was involved.",
        ),
        "kidney": (
            "acute on chronic renal failure",
            "Fluids were balanced and nephrotoxic drugs were withheld; creatinine fell.",
        ),
        "coronary": (
            "an acute coronary syndrome",
            "Catheter study on the first day with a drug-eluting stent, uneventful afterwards.",
        ),
        "heart_failure": (
            "acutely decompensated heart failure",
            "Diuresis with intravenous torasemide, weight fell and the breathing eased.",
        ),
        "fibrillation": (
            "fast atrial fibrillation",
            "Rate control was reached with metoprolol; echocardiography without new findings.",
        ),
        "copd": (
            "an exacerbation of the airway disease",
            "Prednisolone for five days and nebulised salbutamol with good effect.",
        ),
        "depression": (
            "a severe depressive episode",
            "Seen daily by the liaison psychiatrist; mood lifted slowly.",
        ),
        "arthrosis": (
            "planned knee replacement",
            "Surgery without complication, mobilised from the first day.",
        ),
        "thyroid": (
            "exhaustion and bradycardia",
            "Substitution was raised after endocrine review.",
        ),
        "pneumonia": (
            "community-acquired pneumonia",
            "Treated with ampicillin and sulbactam; the fever went down on the second day.",
        ),
        "urinary": (
            "urosepsis",
            "Treated with ceftriaxone after cultures; the fever went down on the third day.",
        ),
        "fall": (
            "a fall at home",
            "Imaging showed no fracture; geriatric assessment was completed.",
        ),
    },
    value_names={
        "hba1c": "HbA1c",
        "creatinine": "creatinine",
        "bnp": "NT-proBNP",
        "haemoglobin": "haemoglobin",
        "tsh": "TSH",
    },
    dispositions={
        "home": "Discharged home to the care of the general practitioner.",
        "support": "Discharged home with daily visits by the district nurse.",
        "care": "Transferred to geriatric rehabilitation.",
        "transfer": "Transferred to the intensive care unit of the main house.",
    },
    formulary={
        "hypertension": (
            ("ramipril 5 mg", 5),
            ("candesartan 16 mg", 4),
            ("lercanidipine 10 mg", 3),
        ),
        "diabetes": (("metformin 850 mg", 5), ("empagliflozin 10 mg", 4), ("insulin degludec", 3)),
        "kidney": (("sodium bicarbonate", 2), ("calcitriol 0.25 mcg", 1)),
        "coronary": (
            ("acetylsalicylic acid 100 mg", 5),
            ("rosuvastatin 20 mg", 4),
            ("ticagrelor 90 mg", 2),
        ),
        "heart_failure": (
            ("torasemide 10 mg", 5),
            ("sacubitril with valsartan", 3),
            ("spironolactone 25 mg", 3),
        ),
        "fibrillation": (("edoxaban 60 mg", 4), ("bisoprolol 5 mg", 4)),
        "copd": (("inhaled indacaterol", 3), ("inhaled budesonide", 3)),
        "depression": (("mirtazapine 15 mg", 3), ("escitalopram 10 mg", 3)),
        "arthrosis": (("metamizole as needed", 4), ("paracetamol as needed", 2)),
        "thyroid": (("L-thyroxine 75 mcg", 1),),
    },
)

STYLES: Mapping[str, HouseStyle] = {"public": PUBLIC, "private": PRIVATE}
