"""Registers populations: unit, relation, declared size and blocks, fixed before any grant."""

from __future__ import annotations

import os
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from dp_core.events import canonical_json
from service.database import now_us
from service.ids import new_id
from service.ledger.accounts import open_accounts
from service.ledger.entries import Draft, append, log_of
from service.ledger.errors import ProposalClosed, ProposalInvalid
from service.ledger.views import utc_text
from service.populations.models import Population

FRACTION_MAX = Decimal("0.5")
SPLIT_KEY_BYTES = 32


def visible_populations(tenant_id: str) -> Select[Population]:
    """The populations a member of the tenant may see."""
    return select(Population).where(Population.tenant_id == tenant_id)


def register(
    session: Session,
    *,
    tenant_id: str,
    actor: str,
    code: str,
    unit: str,
    patients_public: int,
    patients_public_basis: str,
    validation_fraction: str,
    overlap_with: Sequence[str] | None,
) -> Population:
    """Makes the population with its accounts and its entry. It has no budget yet.

    Raises:
        ProposalInvalid: a field has an unacceptable value.
        ProposalClosed: the tenant has a population of that code.
    """
    _check_fraction(validation_fraction, patients_public)
    overlap = None if overlap_with is None else sorted(set(overlap_with))
    _check_overlap(session, tenant_id, overlap)
    taken = visible_populations(tenant_id).where(Population.code == code)
    if session.scalar(taken) is not None:
        raise ProposalClosed(proposal_id="population", reason="this code is taken in your tenant")
    population = Population(
        id=new_id("pop_"),
        tenant_id=tenant_id,
        code=code,
        unit=unit,
        relation="add_remove",
        patients_public=patients_public,
        patients_public_basis=patients_public_basis,
        validation_fraction=validation_fraction,
        overlap_with=None if overlap is None else canonical_json(overlap).decode(),
        split_key=os.urandom(SPLIT_KEY_BYTES),
        created_by=actor,
        created_at=now_us(),
        frozen=False,
    )
    session.add(population)
    session.flush()
    open_accounts(session, population)
    append(session, log_of(session, tenant_id), _registered(population, actor, overlap))
    return population


def _check_fraction(validation_fraction: str, patients_public: int) -> None:
    fraction = Decimal(validation_fraction)
    if not 0 <= fraction <= FRACTION_MAX:
        raise ProposalInvalid(
            field="validation_fraction", code="out_of_range", problem="must be between 0 and 0.5."
        )
    if fraction and int(patients_public * fraction) < 2:
        raise ProposalInvalid(
            field="validation_fraction",
            code="block_too_small",
            problem="leaves fewer than 2 patients in the validation block. Raise it, or use 0.",
        )


def _check_overlap(session: Session, tenant_id: str, overlap: Sequence[str] | None) -> None:
    if not overlap:
        return
    known = session.scalar(
        select(func.count())
        .select_from(Population)
        .where(Population.tenant_id == tenant_id, Population.id.in_(overlap))
    )
    if known != len(overlap):
        raise ProposalInvalid(
            field="overlap_with",
            code="unknown_population",
            problem="must name populations of your tenant.",
        )


def _registered(population: Population, actor: str, overlap: Sequence[str] | None) -> Draft:
    return Draft(
        type="population.registered",
        idem=f"{population.id}/registered",
        actor=actor,
        population_id=population.id,
        data={
            "blocks": list(population.blocks),
            "overlap_with": None if overlap is None else list(overlap),
            "patients_public": population.patients_public,
            "patients_public_basis": population.patients_public_basis,
            "population": population.id,
            "relation": population.relation,
            "unit": population.unit,
            "validation_fraction": population.validation_fraction,
        },
    )


def population_to_dict(population: Population) -> dict[str, Any]:
    """The population as the API shows it; never its split key."""
    return {
        "id": population.id,
        "object": "population",
        "code": population.code,
        "unit": population.unit,
        "relation": population.relation,
        "patients_public": population.patients_public,
        "patients_public_basis": population.patients_public_basis,
        "validation_fraction": population.validation_fraction,
        "blocks": list(population.blocks),
        "alpha_star": population.alpha_star,
        "delta": population.delta,
        "epsilon_limit": population.epsilon_limit,
        "frozen": population.frozen,
        "created_at": utc_text(population.created_at),
    }
