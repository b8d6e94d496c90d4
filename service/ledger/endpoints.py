"""Routes of budgets, grants, releases, ledger and certificates (service.md 6)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import IO, Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Header, Query, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from service import openapi
from service.certificates import forms
from service.certificates.service import visible_certificate
from service.csv_rows import csv_answer
from service.dependencies import PublisherDep, ReadDep, SessionDep, VaultDep
from service.idempotency.once import OnceDep
from service.ledger import approvals, bundle, burn_down, grants, receipts, releases, repository
from service.ledger.errors import LedgerNotFound
from service.ledger.models import BudgetGrant, Entry, ReleaseRequest
from service.ledger.publisher import Publisher
from service.ledger.schemas import (
    ApprovalCreate,
    BudgetQuery,
    BudgetReader,
    BundleQuery,
    EntryQuery,
    GrantCreate,
    GrantQuery,
    HistoryQuery,
    LedgerReader,
    ProposalReader,
    ReleaseCreate,
    ReleaseQuery,
    Steward,
    TableQuery,
)
from service.ledger.standing import standing_of
from service.ledger.views import (
    PopulationBudget,
    budget_as_of,
    epsilon_limits,
    job_statement,
)
from service.listing import envelope, page
from service.logged_reads import LoggedRoute
from service.populations.models import Population
from service.populations.service import visible_populations

router = APIRouter(prefix="/v1", tags=["ledger"], route_class=LoggedRoute)

CHUNK_BYTES = 256 * 1024


@router.get("/budgets")
def list_budgets(
    subject: BudgetReader, session: ReadDep, query: Annotated[TableQuery, Query()]
) -> Any:
    def show(population: Population) -> dict[str, Any]:
        return {"id": population.id, **_budget(session, epsilon_limits(session, population.id))}

    visible = visible_populations(subject.tenant_id)
    listed = page(session, Population, visible, after=query.after, limit=query.limit, show=show)
    return csv_answer(listed) if query.format == "csv" else listed


@router.get("/budgets/{population_id}")
def get_budget(
    population_id: str,
    subject: BudgetReader,
    session: ReadDep,
    query: Annotated[BudgetQuery, Query()],
) -> dict[str, Any]:
    repository.visible_population(session, subject.tenant_id, population_id)
    if query.as_of is not None:
        return _budget(session, budget_as_of(session, population_id, query.as_of))
    return _budget(session, epsilon_limits(session, population_id))


@router.get("/budgets/{population_id}/history")
def get_budget_history(
    population_id: str,
    subject: BudgetReader,
    session: ReadDep,
    query: Annotated[HistoryQuery, Query()],
) -> Any:
    """How the budget was used up by the minute, hour or day, and until when it lasts."""
    population = repository.visible_population(session, subject.tenant_id, population_id)
    found = burn_down.burn_down(session, population, days=query.days)
    shown = burn_down.to_dict(population, found)
    return csv_answer(shown | {"has_more": False}) if query.format == "csv" else shown


def _budget(session: Session, budget: PopulationBudget) -> dict[str, Any]:
    """The budget, and how firmly the entry stands at which it was read."""
    shown = budget.to_dict()
    if budget.log is not None:
        at = standing_of(session, budget.log).at(budget.idx)
        for block in (shown, *shown["blocks"]):
            block["at"] = block["at"] | at
    return shown


def _grant(session: Session, publisher: Publisher, grant: BudgetGrant) -> dict[str, Any]:
    """The grant, with receipts of everything entered about it."""
    proposal = approvals.proposal_of(session, grant.log_id, grant.idx)
    signed = receipts.of_proposal(session, publisher.keys, grant.id, proposal)
    return {**grants.grant_to_dict(session, grant), "receipts": signed}


def _release(session: Session, publisher: Publisher, release: ReleaseRequest) -> dict[str, Any]:
    """The release, with receipts of everything entered about it."""
    proposal = approvals.proposal_of(session, release.log_id, release.idx)
    signed = receipts.of_proposal(session, publisher.keys, release.id, proposal)
    return {**releases.release_to_dict(session, release), "receipts": signed}


@router.post("/grants", status_code=201)
def create_grant(
    body: GrantCreate,
    subject: Steward,
    session: SessionDep,
    vault: VaultDep,
    publisher: PublisherDep,
    response: Response,
    once: OnceDep,
) -> dict[str, Any]:
    def make() -> dict[str, Any]:
        request = grants.GrantRequest(
            population_id=body.population,
            epsilon=body.epsilon,
            delta=body.delta,
            alpha_star=body.alpha_star,
            reason_code=body.reason_code,
            justification=body.justification,
        )
        grant = grants.propose(
            session,
            tenant_id=subject.tenant_id,
            actor=subject.principal_id,
            request=request,
            vault=vault,
        )
        response.headers["Location"] = f"/v1/grants/{grant.id}"
        return _grant(session, publisher, grant)

    return once.answer(body, make)


@router.get("/grants")
def list_grants(
    subject: ProposalReader,
    session: ReadDep,
    query: Annotated[GrantQuery, Query()],
) -> Any:
    visible = grants.visible_grants(subject.tenant_id)
    if query.population is not None:
        visible = visible.where(BudgetGrant.population_id == query.population)
    show = functools.partial(grants.grant_to_dict, session)
    listed = page(session, BudgetGrant, visible, after=query.after, limit=query.limit, show=show)
    return csv_answer(listed) if query.format == "csv" else listed


@router.get("/grants/{grant_id}")
def get_grant(
    grant_id: str, subject: ProposalReader, session: ReadDep, publisher: PublisherDep
) -> dict[str, Any]:
    return _grant(session, publisher, grants.visible_grant(session, subject.tenant_id, grant_id))


@router.post("/grants/{grant_id}/approvals", status_code=201)
def decide_grant(
    grant_id: str,
    body: ApprovalCreate,
    subject: Steward,
    session: SessionDep,
    publisher: PublisherDep,
) -> dict[str, Any]:
    grant = grants.decide(
        session,
        tenant_id=subject.tenant_id,
        grant_id=grant_id,
        approver=subject.principal_id,
        decision=body.decision,
        signature=body.signature,
    )
    return _grant(session, publisher, grant)


@router.post("/releases", status_code=201)
def create_release(
    body: ReleaseCreate,
    subject: Steward,
    session: SessionDep,
    vault: VaultDep,
    publisher: PublisherDep,
    response: Response,
    once: OnceDep,
) -> dict[str, Any]:
    def make() -> dict[str, Any]:
        release = releases.request_release(
            session,
            tenant_id=subject.tenant_id,
            actor=subject.principal_id,
            job_id=body.job,
            justification=body.justification,
            vault=vault,
        )
        response.headers["Location"] = f"/v1/releases/{release.id}"
        return _release(session, publisher, release)

    return once.answer(body, make)


@router.get("/releases")
def list_releases(
    subject: ProposalReader,
    session: ReadDep,
    query: Annotated[ReleaseQuery, Query()],
) -> Any:
    visible = releases.visible_releases(subject.tenant_id)
    if query.job is not None:
        visible = visible.where(ReleaseRequest.job_id == query.job)
    show = functools.partial(releases.release_to_dict, session)
    listed = page(session, ReleaseRequest, visible, after=query.after, limit=query.limit, show=show)
    return csv_answer(listed) if query.format == "csv" else listed


@router.get("/releases/{release_id}")
def get_release(
    release_id: str, subject: ProposalReader, session: ReadDep, publisher: PublisherDep
) -> dict[str, Any]:
    release = releases.visible_release(session, subject.tenant_id, release_id)
    return _release(session, publisher, release)


@router.post("/releases/{release_id}/approvals", status_code=201)
def decide_release(
    release_id: str,
    body: ApprovalCreate,
    subject: Steward,
    session: SessionDep,
    publisher: PublisherDep,
    after: BackgroundTasks,
) -> dict[str, Any]:
    release = releases.decide(
        session,
        tenant_id=subject.tenant_id,
        release_id=release_id,
        approver=subject.principal_id,
        decision=body.decision,
        signature=body.signature,
    )
    if release.state == "published":  # signed and witnessed at once, not with the next turn
        after.add_task(publisher.turn_quietly)
    return _release(session, publisher, release)


@router.get("/ledger/entries")
def list_entries(
    subject: LedgerReader, session: ReadDep, query: Annotated[EntryQuery, Query()]
) -> Any:
    """JSON with each entry's leaf and state, the exact bodies as JSONL, or CSV."""
    head = repository.head_of(session, subject.tenant_id, query.log)
    statement = repository.visible_entries(subject.tenant_id).limit(query.limit + 1)
    statement = statement.where(
        Entry.log_id == (head.log_id if head else ""), Entry.idx > query.after
    )
    for column, wanted in (
        (Entry.population_id, query.population),
        (Entry.job_id, query.job),
        (Entry.type, query.type),
    ):
        if wanted is not None:
            statement = statement.where(column == wanted)
    rows = list(session.scalars(statement))
    has_more, entries = len(rows) > query.limit, rows[: query.limit]
    following = {"x-next-after": str(entries[-1].idx)} if has_more else {}
    if query.format == "jsonl":
        text = bundle.entries_jsonl(entries)
        return Response(text, media_type="application/jsonl", headers=following)
    if query.format == "csv":
        text = bundle.entries_csv(session, entries)
        return Response(text, media_type="text/csv", headers=following)
    standing = standing_of(session, head.log_id if head else "")
    listed = envelope(
        [bundle.entry_to_dict(entry, standing) for entry in entries], has_more=has_more
    )
    return {**listed, "next_after": entries[-1].idx} if has_more else listed


@router.get("/ledger/jobs/{job_id}/statement")
def get_statement(
    job_id: str, subject: LedgerReader, session: ReadDep, publisher: PublisherDep
) -> dict[str, Any]:
    """The job's amounts, with a signed receipt of each: what its owner keeps."""
    held = repository.visible_reservation(session, subject.tenant_id, job_id)
    signed = receipts.of_job(session, publisher.keys, held.log_id, job_id)
    return {**job_statement(session, job_id), "receipts": signed}


@router.get("/ledger/bundle", response_class=Response, responses=openapi.files("application/zip"))
def get_bundle(
    subject: LedgerReader,
    session: ReadDep,
    publisher: PublisherDep,
    vault: VaultDep,
    query: Annotated[BundleQuery, Query()],
) -> StreamingResponse:
    """Everything an auditor needs offline; the newest entries are signed before it is made.

    Stewards also get the personal values that entries commit to.
    """
    head = repository.head_of(session, subject.tenant_id, query.log)
    if head is None:
        raise LedgerNotFound("log")
    if query.size is None:
        publisher.turn(only=head.log_id)
    session.rollback()  # a new look, which sees what was signed just now
    archive = bundle.write_bundle(
        session,
        keys=publisher.keys,
        tenant_id=subject.tenant_id,
        log_id=head.log_id,
        size=query.size,
        since=query.since,
        system_since=query.system_since,
        vault=vault if subject.role == "steward" else None,
    )
    return StreamingResponse(
        _chunks(archive),
        media_type="application/zip",
        headers={"Content-Disposition": 'attachment; filename="ledger-bundle.zip"'},
    )


def _chunks(archive: IO[bytes]) -> Iterator[bytes]:
    with archive:
        while chunk := archive.read(CHUNK_BYTES):
            yield chunk


@router.get(
    "/certificates/{job_id}",
    response_class=Response,
    responses=openapi.files(*(f.media_type for f in (forms.STATEMENT, *forms.FORMS))),
)
def get_certificate(
    job_id: str,
    subject: LedgerReader,
    session: ReadDep,
    publisher: PublisherDep,
    accept: Annotated[str, Header()] = "",
) -> Response:
    """The canonical statement, as its digest in the log covers it; by `Accept` in its signed
    DSSE envelope, as PDF, as a record of the OpenDP registry (YAML), or its label."""
    certificate = visible_certificate(session, subject.tenant_id, job_id)
    form = forms.form_for(accept)
    headers = {"Vary": "Accept"}
    if form is forms.STATEMENT:
        headers["ETag"] = f'"{certificate.digest}"'
    content = form.make(certificate, publisher.keys)
    return Response(content, media_type=form.media_type, headers=headers)
