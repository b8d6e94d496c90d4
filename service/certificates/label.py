"""The nutrition label: a certificate in words, drawn from its predicate alone (ledger.md 15)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LabelFact:
    """One row: what is asked, what the certificate says, and under which terms."""

    name: str
    value: str
    note: str = ""


def label_facts(predicate: Mapping[str, Any]) -> tuple[LabelFact, ...]:
    """Rows in reading order. Each epsilon stands beside its delta, unit and rule."""
    claim, unit = predicate["claim"], predicate["unit"]
    limit = predicate["scope"]["population_limit"]
    certainty = 1 / (1 + math.exp(-float(claim["epsilon"])))
    return (
        LabelFact(
            name="Protects",
            value=f"one {unit['unit']} with all records, added or removed",
            note=f"by {unit['enforced_by']}",
        ),
        LabelFact(
            name="This model",
            value=f"ε {claim['epsilon']} at δ {claim['delta']}",
            note=_words(claim["rule"]),
        ),
        LabelFact(
            name="This population",
            value=f"limit ε {limit['epsilon']} at δ {limit['delta']}",
            note=f"RDP filter, order {limit['alpha_star']}, all its jobs together",
        ),
        LabelFact(
            name="An attacker's certainty, from 50 %",
            # Rounded up: a bound must not be shown lower than it is.
            value=f"at most {math.ceil(certainty * 10_000) / 100:.2f} %",
            note="e^ε/(1+e^ε), δ aside",
        ),
        LabelFact(
            name="Not protected",
            value=", ".join(predicate["data"]["unprotected"]),
            note=f"at least {predicate['data']['patients_public']:,} patients stated",
        ),
        LabelFact(name="Reservations", value=_words(", ".join(predicate["reasons"])) or "none"),
    )


def _words(code: str) -> str:
    return code.replace("_", " ").replace("pld", "PLD").replace("rdp", "RDP")
