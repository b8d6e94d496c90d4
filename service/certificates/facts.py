"""A certificate as titled sections of facts in plain words: what page and PDF both show.

Drawn from the statement alone, in the order of the table in ledger.md 14. Each epsilon
stands beside its delta, unit, relation, rule, scope and whether it is a guarantee.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.audits.service import headline, limits
from service.certificates.label import LabelFact, epsilon_terms, percent_of, words
from service.certificates.reasons import MEANING


@dataclass(frozen=True, kw_only=True)
class Section:
    """One heading and its facts."""

    title: str
    facts: tuple[LabelFact, ...]


def sections_of(statement: Mapping[str, Any]) -> tuple[Section, ...]:
    """Every part of the certificate, in reading order."""
    predicate = statement["predicate"]
    parts = (
        ("Verdict", _verdict(predicate)),
        ("What is promised", _claim(predicate)),
        ("Whom it protects", _unit(predicate)),
        ("What it covers", _scope(predicate)),
        ("The data", _data(predicate)),
        ("How it was done", _mechanism(predicate)),
        ("Other uses of the data", _named(predicate["other_uses"])),
        ("Second opinion", _second_opinion(predicate)),
        ("Trust", _trust(predicate)),
        ("Evidence", _evidence(predicate)),
        ("Usefulness", _utility(predicate)),
        ("Files", tuple(_file(subject) for subject in statement["subject"])),
    )
    return tuple(Section(title=title, facts=facts) for title, facts in parts)


def reasons_in_words(reasons: list[str]) -> tuple[LabelFact, ...]:
    """Each reservation by its code, with its meaning beside it."""
    return tuple(LabelFact(name=reason, value=MEANING[reason]) for reason in reasons)


def _fact(name: str, value: object, note: str = "") -> LabelFact:
    if value is None or value == "":
        return LabelFact(name=name, value="none", note=note)
    if isinstance(value, (list, tuple)):
        return _fact(name, ", ".join(str(one) for one in value), note)
    return LabelFact(name=name, value=str(value), note=note)


def _named(values: Mapping[str, Any]) -> tuple[LabelFact, ...]:
    return tuple(_fact(words(name).capitalize(), value) for name, value in values.items())


def _verdict(predicate: Mapping[str, Any]) -> tuple[LabelFact, ...]:
    meaning = {
        "full": "Nothing is held against the claim.",
        "conditional": "The claim holds under the conditions below.",
        "none": "No guarantee. This model must not be released.",
    }
    verdict = predicate["verdict"]
    return (_fact("Verdict", verdict, meaning[verdict]), *reasons_in_words(predicate["reasons"]))


def _claim(predicate: Mapping[str, Any]) -> tuple[LabelFact, ...]:
    claim = predicate["claim"]
    facts = [
        _fact(
            "This model",
            f"ε {claim['epsilon']} at δ {claim['delta']}",
            epsilon_terms(predicate, claim, claim["scope"]),
        ),
        _fact("Variant", claim["variant"]),
        _fact("Order of the job", claim["alpha_job"]),
        _fact("Conversion", claim["conversion"]),
        _fact("Steps at most", claim["steps_started_max"], "an early stop lowers no promise"),
    ]
    held_out = predicate["validation"]
    if held_out is not None:
        scope = f"at most {held_out['evaluations_max']} evaluations, {held_out['patients']}"
        terms = epsilon_terms(predicate, {"guarantee": True, **held_out}, scope)
        value = f"ε {held_out['epsilon']} at δ {held_out['delta']}"
        facts.append(_fact("Held-out patients", value, terms))
    return tuple(facts)


def _unit(predicate: Mapping[str, Any]) -> tuple[LabelFact, ...]:
    unit = predicate["unit"]
    return (
        _fact("Unit", f"one {unit['unit']} with all records", f"by {unit['enforced_by']}"),
        _fact("Relation", words(unit["relation"])),
        _fact("Rows of one unit in a step", unit["rows_per_patient_max"], "at most"),
    )


def _scope(predicate: Mapping[str, Any]) -> tuple[LabelFact, ...]:
    scope = predicate["scope"]
    limit = scope["population_limit"]
    facts = [
        _fact("Covers", scope["covers"], f"job {scope['job']}"),
        _fact(
            "Limit of the population",
            f"ε {limit['epsilon']} at δ {limit['delta']}",
            f"{epsilon_terms(predicate, limit, scope['combination'])}; order {limit['alpha_star']}",
        ),
    ]
    for block, spent in scope["spent_pico"].items():
        share = percent_of(spent, limit["pico"])
        facts.append(_fact(f"Spent by this job, {block}", share, f"{spent} of {limit['pico']}"))
    return (
        *facts,
        _fact("Population", scope["population"]),
        _fact("Other releases", scope["other_releases"]),
        _fact("Who may combine them", scope.get("combined_by")),
        _fact(
            "Shares patients with",
            "not stated" if scope["overlap_with"] is None else scope["overlap_with"],
        ),
    )


def _data(predicate: Mapping[str, Any]) -> tuple[LabelFact, ...]:
    data = predicate["data"]
    return (
        _fact("Domain", data["domain"]),
        _fact("Version of the data", data["dataset_version"]),
        _fact("Patients stated, at least", data["patients_public"]),
        _fact("Not protected", data["unprotected"]),
    )


def schedule_in_words(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each part of a schedule of the noise as its level and how long it holds."""
    return [f"{part['level']} for {part['steps']} steps" for part in parts]


def _mechanism(predicate: Mapping[str, Any]) -> tuple[LabelFact, ...]:
    mechanism, steps = dict(predicate["mechanism"]), predicate["steps"]
    if "noise_schedule" in mechanism:
        mechanism["noise_schedule"] = schedule_in_words(mechanism["noise_schedule"])
    return (
        *_named(mechanism),
        *(_fact(f"Steps {words(name)}", value) for name, value in steps.items()),
        *(_fact(f"Controller {words(n)}", value) for n, value in predicate["controller"].items()),
    )


def _second_opinion(predicate: Mapping[str, Any]) -> tuple[LabelFact, ...]:
    told, claim = predicate["indicative"], predicate["claim"]
    value = told["prv_epsilon_upper"]
    if value is None:
        return (_fact("PRV accountant", "not computed", told["note"]),)
    terms = epsilon_terms(
        predicate, {**claim, "guarantee": False, "rule": "prv_of_realised_path"}, claim["scope"]
    )
    return (
        _fact("PRV accountant", f"ε {value} at δ {claim['delta']}", f"{terms}; {told['note']}"),
    )


def _trust(predicate: Mapping[str, Any]) -> tuple[LabelFact, ...]:
    trust = predicate["trust"]
    channels = trust["side_channels"].items()
    return (
        _fact("Who saw raw data", trust["model"]),
        *(_fact(f"Side channel: {words(name)}", measure) for name, measure in channels),
        _fact("Training outside the ledger", trust["training_outside_the_ledger"]),
        _fact("Limits", "; ".join(predicate["limits"])),
    )


def _evidence(predicate: Mapping[str, Any]) -> tuple[LabelFact, ...]:
    evidence = predicate["evidence"]
    spans = (
        _fact(f"Entries {kind}", f"{len(at)}: {at[0]} to {at[-1]}")
        for kind, at in evidence["indexes"].items()
    )
    versions = predicate["versions"] | {
        f"{name}, attempt {attempt['epoch']}": value
        for attempt in evidence["attempts"]
        for name, value in attempt["versions"].items()
    }
    return (
        _fact("Log", evidence["origin"]),
        _fact("Tree", f"{evidence['tree']['size']} entries", evidence["tree"]["root"]),
        *spans,
        _fact("Witnesses", evidence["witnesses"]),
        _fact("Approvals", evidence.get("approvals")),
        _fact("Plan, SHA-256", evidence["plan"]),
        _fact("Verifier, SHA-256", evidence["verifier_sha256"]),
        *_audit(evidence.get("empirical_audit")),
        *(_fact(name, value) for name, value in versions.items()),
    )


def _audit(summary: Mapping[str, Any] | None) -> tuple[LabelFact, ...]:
    """What was attacked and what was not, in words that claim no more (audit.md 10)."""
    facts = (_fact("Empirical audit", headline(summary), limits(summary)),)
    if summary is None:
        return facts
    return (
        *facts,
        _fact("Audit as a whole", summary["verdict"], summary["statement"]),
        _lower_bound(summary["one_run_lower_bound"]),
        *_exposure(summary.get("text_canaries")),
        _fact("Audit report, SHA-256", summary["report_sha256"], summary["data"]),
    )


def _lower_bound(bound: Mapping[str, str] | None) -> LabelFact:
    name = "Lower bound on epsilon"
    if bound is None:
        return _fact(name, None, "not attacked in the run")
    shown = f"of at most {bound['largest']} that this audit could have shown"
    return _fact(name, bound["value"], f"{shown} ({bound['confidence']}, {bound['method']})")


def _exposure(text: Mapping[str, Any] | None) -> tuple[LabelFact, ...]:
    """Of a job with text canaries; a job with too few patients for them has none."""
    if text is None:
        return ()
    shown = f"median {text['exposure_median']} bits"
    about = (
        f"of {text['exposure_possible']} possible; chance gives 1.0; "
        f"{text['canaries']} secrets, half of them in made-up patients' notes"
    )
    return (_fact("Exposure of inserted secrets", shown, about),)


def _utility(predicate: Mapping[str, Any]) -> tuple[LabelFact, ...]:
    utility = predicate["utility"]
    return (
        _fact("Held-out loss before", _loss(utility["hold_out_before"]), utility["source"]),
        _fact("Held-out loss after", _loss(utility["hold_out_after"]), utility["source"]),
        _fact("Subgroups", "not evaluated"),
    )


def _loss(told: Mapping[str, str] | None) -> str | None:
    if told is None:
        return None
    return f"{told['nats_per_token']} nats a token, noise std {told['noise_std']}"


def _file(subject: Mapping[str, Any]) -> LabelFact:
    return _fact(subject["name"], subject["digest"]["sha256"], "SHA-256")
