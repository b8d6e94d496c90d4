"""Builds the privacy certificate of a finished job from plan, claim and ledger evidence.

An in-toto Statement v1 in canonical JSON: the subjects are the adapter's files, the
predicate says what is guaranteed, for whom, on which evidence, and with which
reservations. It is stored with the job's end; its digest stands in the `settle` entry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dp_core.events import canonical_json
from dp_core.plan import RunPlan
from service.audits import service as audits
from service.certificates.models import Certificate
from service.certificates.reasons import verdict_of
from service.database import now_us
from service.ledger import fsck, guard, merkle, repository
from service.ledger.errors import LedgerBroken, LedgerNotFound
from service.ledger.models import Entry, LedgerGuard, LogHead, ReleaseRequest, Reservation
from service.ledger.standing import witness_count
from service.ledger.views import claim_of
from service.populations.models import Population

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://rldp.local/privacy-certificate/v1"
ADMITTED_USES = frozenset({"charged", "not used", "public"})
EXACT_BASES = frozenset({"counted"})  # the declared size is the number in the private data
CONTROLLER_INPUTS = "released and public values only"
CONVERSION = {
    "pld_fixed_schedule": "privacy loss distribution, pessimistic, both directions",
    "rdp_filter": "arXiv 2004.00010",
}
TRAINING_PARTS = ("controller", "indicative", "limits", "mechanism", "steps", "utility", "versions")
VERIFIER = Path(__file__).resolve().parents[2] / "deploy" / "verifier" / "verify_ledger.py"


@dataclass(frozen=True, kw_only=True)
class IssuedCertificate:
    """What the end of a job needs to know about its certificate."""

    digest: str
    verdict: str
    reasons: tuple[str, ...]
    body: str


def build_certificate(
    session: Session,
    *,
    job_id: str,
    plan: Mapping[str, Any],
    claim: Mapping[str, Any],
    artifact_digests: Mapping[str, str],
) -> IssuedCertificate:
    """Makes and stores the certificate, before `settle` in the same transaction.

    `claim` is what `dp_core.certificate.job_claim` made; all its numbers are text or
    integers. Where it says what the ledger says too, both must agree.
    Asked again for the same job, the stored certificate is returned.

    Raises:
        LedgerNotFound: the job reserved nothing.
        PlanInvalid: `claim` has no canonical form.
        LedgerBroken: trainer and ledger tell different things.
    """
    stored = session.get(Certificate, job_id)
    if stored is not None:
        return _issued(stored)
    held = session.get(Reservation, job_id)
    if held is None:
        raise LedgerNotFound("job")
    session.refresh(held)
    run_plan = RunPlan.from_dict(plan)
    population = session.get_one(Population, held.population_id)
    reasons = _reasons(session, run_plan, population, job_id, claim)
    files = frozenset(artifact_digests.values())
    predicate = _predicate(session, run_plan, population, held, claim, files)
    verdict = verdict_of(reasons)
    statement = {
        "_type": STATEMENT_TYPE,
        "predicate": {**predicate, "reasons": list(reasons), "verdict": verdict},
        "predicateType": PREDICATE_TYPE,
        "subject": [
            {"digest": {"sha256": digest}, "name": name}
            for name, digest in sorted(artifact_digests.items())
        ],
    }
    body = canonical_json(statement)
    stored = Certificate(
        job_id=job_id,
        tenant_id=held.tenant_id,
        digest=hashlib.sha256(body).hexdigest(),
        body=body.decode(),
        verdict=verdict,
        created_at=now_us(),
    )
    session.add(stored)
    session.flush()
    return _issued(stored)


def visible_certificate(session: Session, tenant_id: str, job_id: str) -> Certificate:
    """The certificate of a job, if it belongs to the tenant.

    Raises:
        LedgerNotFound: absent or another tenant's.
    """
    found = session.get(Certificate, job_id)
    if found is None or found.tenant_id != tenant_id:
        raise LedgerNotFound("certificate")
    return found


def reasons_of(certificate: Certificate) -> list[str]:
    reasons: list[str] = json.loads(certificate.body)["predicate"]["reasons"]
    return reasons


def _issued(stored: Certificate) -> IssuedCertificate:
    return IssuedCertificate(
        digest=stored.digest,
        verdict=stored.verdict,
        reasons=tuple(reasons_of(stored)),
        body=stored.body,
    )


def _reasons(
    session: Session,
    plan: RunPlan,
    population: Population,
    job_id: str,
    claim: Mapping[str, Any],
) -> tuple[str, ...]:
    reasons: list[str] = [] if _witness_count(session) else ["no_external_witness"]
    if plan.records_are_unique_patients or plan.unit == "record":
        reasons.append("unit_by_statement")
    if {plan.noise_source, claim["mechanism"]["noise_source"]} != {"os_entropy"}:
        reasons.append("generator_not_os_entropy")
    if population.overlap_with is None:
        reasons.append("overlap_unstated")
    if population.patients_public_basis in EXACT_BASES:
        reasons.append("size_declared_exact")
    if plan.sampler != "poisson":
        reasons.append("sampler_not_poisson")
    uses = _terms(repository.entries_of_job(session, job_id))["other_uses"]
    private_inputs = uses["controller_inputs"] not in ADMITTED_USES
    if private_inputs or claim["controller"]["inputs"] != CONTROLLER_INPUTS:
        reasons.append("controller_private_inputs")
    if uses["validation"] not in ADMITTED_USES:
        reasons.append("private_evaluation_uncharged")
    if fsck.check_job(session, job_id):
        reasons.append("ledger_check_failed")
    return tuple(reasons)


def _predicate(
    session: Session,
    plan: RunPlan,
    population: Population,
    held: Reservation,
    claim: Mapping[str, Any],
    files: frozenset[str],
) -> dict[str, Any]:
    entries = repository.entries_of_job(session, held.job_id)
    terms = _terms(entries)
    _check_agrees(session, held, terms, claim)
    return {
        **{name: claim[name] for name in TRAINING_PARTS},
        "training_claim": claim["claim"],
        "claim": {
            **claim_of(terms),
            "conversion": CONVERSION[terms["rule"]],
            "variant": "approximate DP",
        },
        "data": _data(plan),
        "evidence": _evidence(session, held, entries, files),
        "other_uses": terms["other_uses"],
        "scope": _scope(session, population, held),
        "trust": _trust(),
        "unit": {
            "enforced_by": "statement" if plan.records_are_unique_patients else "field",
            "relation": plan.relation,
            "rows_per_patient_max": plan.rows_per_patient_max,
            "unit": plan.unit,
        },
        "validation": _validation(plan),
    }


def _terms(entries: list[dict[str, Any]]) -> dict[str, Any]:
    terms: dict[str, Any] = next(e["data"] for e in entries if e["type"] == "reserve")
    return terms


def _check_agrees(
    session: Session, held: Reservation, terms: Mapping[str, Any], claim: Mapping[str, Any]
) -> None:
    told = claim["claim"]
    train = repository.block_of(session, held.job_id, "train")
    assert train is not None
    same = all(
        told[name] == terms[name]
        for name in ("alpha_job", "delta", "epsilon", "relation", "rule", "unit")
    )
    if not same or told["plan_digest"] != held.plan_digest:
        raise LedgerBroken(f"The claim of {held.job_id} is not the one it was admitted under.")
    if claim["steps"]["started"] != train.steps_started:
        raise LedgerBroken(f"{held.job_id} started other steps than were charged.")


def _data(plan: RunPlan) -> dict[str, Any]:
    return {
        "dataset_version": plan.dataset_version,
        "domain": "text of patients' notes",
        "patients_public": plan.patients_public,
        "unprotected": ["declared sizes", "vocabulary", "architecture", "schedule", "timing"],
    }


def _validation(plan: RunPlan) -> dict[str, Any] | None:
    if plan.validation is None:
        return None
    return {
        "delta": plan.delta,
        "epsilon": plan.validation_epsilon,
        "evaluations_max": plan.validation.evaluations_max,
        "patients": "disjoint from the training block by keyed hash",
        "relation": plan.relation,
        "rule": "pld_fixed_schedule",
        "unit": plan.unit,
    }


def _scope(session: Session, population: Population, held: Reservation) -> dict[str, Any]:
    others = session.scalars(
        select(ReleaseRequest.job_id)
        .join(Reservation, Reservation.job_id == ReleaseRequest.job_id)
        .where(Reservation.population_id == population.id, ReleaseRequest.state == "published")
        .order_by(ReleaseRequest.job_id)
    ).all()
    blocks = repository.blocks_of(session, held.job_id)
    return {
        "combination": "all jobs of the population together stay within its limit",
        "combined_by": "anyone who holds several releases of the population",
        "covers": "this job",
        "job": held.job_id,
        "other_releases": list(others),
        "overlap_with": None
        if population.overlap_with is None
        else json.loads(population.overlap_with),
        "population": population.id,
        "population_limit": {
            "alpha_star": population.alpha_star,
            "delta": population.delta,
            "epsilon": population.epsilon_limit,
            "guarantee": True,
            "pico": str(population.limit_pico),
            "relation": population.relation,
            "rule": "rdp_filter_fixed_order",
            "unit": population.unit,
        },
        "population_use": _population_use(session, population),
        "refusals": _refusals(session, population),
        "spent_pico": {block.block: str(block.spent_pico) for block in blocks},
    }


def _population_use(session: Session, population: Population) -> dict[str, dict[str, str]]:
    """Balances by block as this certificate is made: the job's own rest is still held."""
    sums = repository.balances(session, population.id)
    return {
        block: {
            "held_pico": str(sums.get(block, {}).get("escrow", 0)),
            "spent_pico": str(sums.get(block, {}).get("spent", 0)),
        }
        for block in population.blocks
    }


def _refusals(session: Session, population: Population) -> int:
    refused = select(func.count()).where(
        Entry.population_id == population.id, Entry.type == "reserve.refused"
    )
    return session.scalar(refused) or 0


def _evidence(
    session: Session, held: Reservation, entries: list[dict[str, Any]], files: frozenset[str]
) -> dict[str, Any]:
    head = session.get_one(LogHead, held.log_id, populate_existing=True)
    indexes: dict[str, list[int]] = {}
    for entry in entries:
        indexes.setdefault(entry["type"], []).append(entry["idx"])
    attempts = [entry["data"] for entry in entries if entry["type"] == "attempt.started"]
    return {
        "approvals": "in the release's entry of the log, signed after this certificate",
        "attempts": [{"epoch": a["epoch"], "versions": a["versions"]} for a in attempts],
        "empirical_audit": _audit(session, held.job_id, files),
        "indexes": indexes,
        "log": held.log_id,
        "origin": head.origin,
        "plan": held.plan_digest,
        "tree": {"root": merkle.root_of(head.frontier.split()), "size": head.size},
        "verifier_sha256": verifier_digest(),
        "witnesses": _witness_count(session),
    }


def _audit(session: Session, job_id: str, files: frozenset[str]) -> dict[str, Any] | None:
    """The audit of the attempt that made these files, by its report among them."""
    summary = audits.summary_of(session, job_id)
    return summary if summary is not None and summary["report_sha256"] in files else None


def _witness_count(session: Session) -> int:
    """Witnesses whose word on the log is fresh; 0 while there are fewer than the quorum."""
    state, row = guard.state(session), session.get(LedgerGuard, 1)
    if not state["quorum"] or state["state"] != "open" or row is None or row.quorum_size is None:
        return 0
    return witness_count(session, row.quorum_size)


def _trust() -> dict[str, Any]:
    return {
        "model": "central: operator and workers see the raw data",
        "side_channels": {
            "crash": "exit codes only; exception text stays in the process",
            "floating_point": "std inflated for rounding; no discrete noise",
            "memory": "none",
            "timing": "none",
        },
        "training_outside_the_ledger": "not excluded",
    }


@lru_cache(maxsize=1)
def verifier_digest() -> str | None:
    """SHA-256 of the verifier shipped with this installation."""
    return hashlib.sha256(VERIFIER.read_bytes()).hexdigest() if VERIFIER.is_file() else None
