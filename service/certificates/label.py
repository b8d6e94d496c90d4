"""The nutrition label: a certificate in words, drawn from its predicate alone (ledger.md 15)."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from service.audits.service import headline, limits


@dataclass(frozen=True, kw_only=True)
class LabelFact:
    """One row: what is asked, what the certificate says, and under which terms."""

    name: str
    value: str
    note: str = ""


def label_facts(predicate: Mapping[str, Any]) -> tuple[LabelFact, ...]:
    """Rows in reading order. Each epsilon stands beside its delta, unit and rule."""
    claim, unit, scope = predicate["claim"], predicate["unit"], predicate["scope"]
    limit = scope["population_limit"]
    witnesses = predicate["evidence"]["witnesses"]
    audit = predicate["evidence"].get("empirical_audit")  # older certificates have none
    return (
        LabelFact(
            name="Protects",
            value=f"one {unit['unit']} with all records, added or removed",
            note=f"by {unit['enforced_by']}",
        ),
        LabelFact(
            name="This model",
            value=f"ε {claim['epsilon']} at δ {claim['delta']}",
            note=epsilon_terms(predicate, claim, claim["scope"]),
        ),
        LabelFact(
            name="This population",
            value=f"limit ε {limit['epsilon']} at δ {limit['delta']}{_used(scope)}",
            note=f"{epsilon_terms(predicate, limit, scope['combination'])}; "
            f"order {limit['alpha_star']}",
        ),
        LabelFact(
            name="An attacker's certainty, from 50 %",
            value=f"at most {certainty_percent(claim['epsilon'])} %",
            note="e^ε/(1+e^ε) for this model, δ aside",
        ),
        LabelFact(
            name="Not protected",
            value=", ".join(predicate["data"]["unprotected"]),
            note=f"at least {predicate['data']['patients_public']:,} patients stated",
        ),
        LabelFact(
            name="Outside the guarantee",
            value="timing, hardware, people with the raw data",
            note=predicate["trust"]["model"],
        ),
        LabelFact(name="Reservations", value=words(", ".join(predicate["reasons"])) or "none"),
        LabelFact(
            name="Checked by",
            value=f"{witnesses} outside witnesses" if witnesses else "no outside witness",
            note="anyone with the bundle and the verifier",
        ),
        LabelFact(name="Empirical audit", value=headline(audit), note=limits(audit)),
    )


def epsilon_terms(predicate: Mapping[str, Any], told: Mapping[str, Any], scope: str) -> str:
    """What must stand beside an epsilon (P13). Under the verdict `none` nothing is guaranteed."""
    guaranteed = told["guarantee"] and predicate["verdict"] != "none"
    return (
        f"one {told['unit']}, {words(told['relation'])}; {words(told['rule'])}; {scope}; "
        f"{'a guarantee' if guaranteed else 'not a guarantee'}"
    )


def certainty_percent(epsilon: str) -> str:
    """Rounded up: a bound must not be shown lower than it is."""
    return f"{math.ceil(10_000 / (1 + math.exp(-float(epsilon)))) / 100:.2f}"


def percent_of(part: str, whole: str) -> str:
    """A share of integers as per cent, rounded up to one digit."""
    return f"{math.ceil(Fraction(int(part) * 1000, int(whole))) / 10:.1f} %"


def label_json(predicate: Mapping[str, Any]) -> bytes:
    """The label for programs; equal certificates give equal bytes."""
    facts = [asdict(fact) for fact in label_facts(predicate)]
    told = {"facts": facts, "title": "Privacy facts", "verdict": predicate["verdict"]}
    return json.dumps(told, ensure_ascii=False, sort_keys=True).encode()


def label_text(predicate: Mapping[str, Any]) -> str:
    """The label for a terminal."""
    lines = ["Privacy facts", ""]
    for fact in label_facts(predicate):
        lines += [f"{fact.name}: {fact.value}", f"    {fact.note}" if fact.note else ""]
    lines.append(f"Verdict: {predicate['verdict']}")
    return "\n".join(line for line in lines if line) + "\n"


def label_html(predicate: Mapping[str, Any]) -> str:
    """The label as one element without styles or scripts, to be put into any page."""
    rows = "".join(
        f"<dt>{html.escape(fact.name)}</dt><dd>{html.escape(fact.value)}"
        + (f" <small>{html.escape(fact.note)}</small>" if fact.note else "")
        + "</dd>"
        for fact in label_facts(predicate)
    )
    verdict = html.escape(predicate["verdict"])
    return (
        f"<section><h2>Privacy facts</h2><dl>{rows}<dt>Verdict</dt><dd>{verdict}</dd></dl>"
        "</section>\n"
    )


def words(code: str) -> str:
    """A code in plain words."""
    plain = code.replace("add_remove", "added or removed").replace("_", " ")
    for short in ("pld", "rdp", "prv"):
        plain = plain.replace(f"{short} ", f"{short.upper()} ")
    return plain


def _used(scope: Mapping[str, Any]) -> str:
    """Of the training block when the certificate was made; older certificates do not say."""
    use = scope.get("population_use", {}).get("train")
    if use is None:
        return ""
    whole = scope["population_limit"]["pico"]
    spent, held = percent_of(use["spent_pico"], whole), percent_of(use["held_pico"], whole)
    return f"; {spent} spent, {held} held, {scope['refusals']} refusals"
