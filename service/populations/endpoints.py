"""Routes of populations: POST and GET /v1/populations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import Field

from service.dependencies import PublisherDep, ReadDep, SessionDep
from service.idempotency.once import OnceDep
from service.ledger import receipts
from service.ledger.entries import log_of
from service.ledger.errors import LedgerNotFound
from service.ledger.schemas import DecimalText, LedgerReader, Steward, StrictModel
from service.listing import ListQuery, page
from service.logged_reads import LoggedRoute
from service.populations import service
from service.populations.models import Population

router = APIRouter(prefix="/v1/populations", tags=["populations"], route_class=LoggedRoute)


class PopulationCreate(StrictModel):
    """What a steward states about a population before any of its data are opened."""

    code: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    unit: Literal["patient", "record"] = "patient"
    patients_public: int = Field(ge=2, le=10**9, strict=True)
    # `counted`: the exact number in the data. Certificates then say `size_declared_exact`.
    patients_public_basis: Literal[
        "registry", "census", "contract", "estimate", "synthetic", "counted"
    ]
    validation_fraction: DecimalText = "0"
    overlap_with: list[str] | None = Field(default=None, max_length=100)


@router.post("", status_code=201)
def create_population(
    body: PopulationCreate,
    subject: Steward,
    session: SessionDep,
    publisher: PublisherDep,
    response: Response,
    once: OnceDep,
) -> dict[str, Any]:
    def make() -> dict[str, Any]:
        population = service.register(
            session,
            tenant_id=subject.tenant_id,
            actor=subject.principal_id,
            **body.model_dump(),
        )
        response.headers["Location"] = f"/v1/populations/{population.id}"
        log_id, idem = log_of(session, subject.tenant_id), f"{population.id}/registered"
        signed = receipts.of_entries(session, publisher.keys, log_id, [idem])
        return {**service.population_to_dict(population), "receipts": signed}

    return once.answer(body, make)


@router.get("")
def list_populations(
    subject: LedgerReader, session: ReadDep, query: Annotated[ListQuery, Query()]
) -> dict[str, Any]:
    return page(
        session,
        Population,
        service.visible_populations(subject.tenant_id),
        after=query.after,
        limit=query.limit,
        show=service.population_to_dict,
    )


@router.get("/{population_id}")
def get_population(population_id: str, subject: LedgerReader, session: ReadDep) -> dict[str, Any]:
    visible = service.visible_populations(subject.tenant_id)
    population = session.scalar(visible.where(Population.id == population_id))
    if population is None:
        raise LedgerNotFound("population")
    return service.population_to_dict(population)
