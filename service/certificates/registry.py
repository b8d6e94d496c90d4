"""The certificate as a draft record of the OpenDP deployments registry, in YAML.

The form is that of github.com/opendp/deployments-registry-data, whose README defines three
tiers; every field of the third is filled that a certificate can fill. What only the curator
knows is marked so and keeps the record a draft.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import yaml

from service.certificates.facts import schedule_in_words
from service.certificates.label import epsilon_terms, words

MEDIA_TYPE = "application/yaml"
TIER = 3
CURATOR_FILLS = "To be filled in by the curator"


def registry_yaml(statement: Mapping[str, Any], *, issued_us: int) -> str:
    """The record as text. `issued_us` is when the certificate was issued, in microseconds."""
    predicate = statement["predicate"]
    day = datetime.fromtimestamp(issued_us / 1_000_000, UTC).strftime("%Y-%m-%d")
    record = {
        "url_slug": predicate["scope"]["job"].lower(),
        "status": "Draft",
        "tier": TIER,
        "deployment": {
            "basic": _basic(predicate, day),
            "dp_variant": _variant(predicate),
            "privacy_loss": _loss(predicate),
            "deployment_model": _model(predicate),
            "accounting": _accounting(predicate),
            "implementation": _implementation(predicate),
            "administrative": _administrative(predicate),
        },
    }
    text: str = yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=100)
    return text


def _basic(predicate: Mapping[str, Any], day: str) -> dict[str, Any]:
    return {
        "name": f"Adapter of {predicate['scope']['job']}",
        "data_curators": [CURATOR_FILLS],
        "intended_use": CURATOR_FILLS,
        "data_product_type": "Machine learning model",
        "data_product_region": CURATOR_FILLS,
        "description": f"A LoRA adapter fine-tuned on {predicate['data']['domain']}.",
        "publication_date": day,
        "data_product_sector": "Healthcare",
    }


def _variant(predicate: Mapping[str, Any]) -> dict[str, str]:
    data = predicate["data"]
    return {
        "variant_name": "Approximate DP",
        "data_domain": f"{data['domain']}; at least {data['patients_public']} patients stated",
        "unprotected_quantities": ", ".join(data["unprotected"]),
    }


def _loss(predicate: Mapping[str, Any]) -> dict[str, Any]:
    claim, unit = predicate["claim"], predicate["unit"]
    return {
        "privacy_unit": f"One {unit['unit']} with all records",
        "privacy_unit_details": (
            f"Relation: {words(unit['relation'])}. At most {unit['rows_per_patient_max']} rows of "
            f"one unit in a step. Enforced by {unit['enforced_by']}."
        ),
        # The schema wants a number for epsilon and takes text for delta.
        "privacy_parameters": {"epsilon": float(claim["epsilon"]), "delta": claim["delta"]},
        "privacy_parameters_details": (
            f"{epsilon_terms(predicate, claim, claim['scope'])}. Conversion: "
            f"{claim['conversion']}. Verdict: {predicate['verdict']}."
        ),
    }


def _model(predicate: Mapping[str, Any]) -> dict[str, str]:
    trust, scope = predicate["trust"], predicate["scope"]
    others = ", ".join(scope["other_releases"]) or "none"
    return {
        "model_name": "Central",
        "actors": f"{trust['model']}. Training outside the ledger: "
        f"{trust['training_outside_the_ledger']}.",
        "release_type": "Many releases" if scope["other_releases"] else "One release",
        "release_type_details": f"Other releases of the population: {others}. "
        "The budget of the population is never reset.",
        "data_source_type": "Static",
        "access_type": "Non-interactive",
    }


def _accounting(predicate: Mapping[str, Any]) -> dict[str, str]:
    scope = predicate["scope"]
    limit = scope["population_limit"]
    terms = epsilon_terms(predicate, limit, scope["combination"])
    return {
        "post_processing": "none before release",
        "composition": (
            f"Rule of this job: {words(predicate['claim']['rule'])}. Limit of the population: "
            f"epsilon {limit['epsilon']}, delta {limit['delta']} ({terms})."
        ),
    }


def _implementation(predicate: Mapping[str, Any]) -> dict[str, str]:
    uses = "; ".join(f"{words(name)}: {use}" for name, use in predicate["other_uses"].items())
    told = dict(predicate["mechanism"])
    if "noise_schedule" in told:
        told["noise_schedule"] = schedule_in_words(told["noise_schedule"])
    mechanism = "; ".join(
        f"{words(name)}: {', '.join(value) if isinstance(value, list) else value}"
        for name, value in told.items()
    )
    channels = "; ".join(f"{words(n)}: {m}" for n, m in predicate["trust"]["side_channels"].items())
    return {
        "preprocessing_and_hyperparameter_tuning": uses,
        "mechanisms": f"Subsampled Gaussian mechanism. {mechanism}. Side channels: {channels}.",
        "justification": "; ".join(predicate["limits"]),
    }


def _administrative(predicate: Mapping[str, Any]) -> dict[str, Any]:
    evidence = predicate["evidence"]
    return {
        "sources": f"Log {evidence['origin']}, plan {evidence['plan']}",
        "notes": (
            "Drawn from the privacy certificate. publication_date is the day the certificate "
            "was issued; replace it with the day of publication. Reasons of the verdict: "
            f"{', '.join(predicate['reasons']) or 'none'}."
        ),
        "registry_authors": [CURATOR_FILLS],
    }
