"""Pages of the evidence: ledger, check of a job, certificate, and their exports.

For submitters, stewards and auditors of the tenant, as the API's ledger routes are; each read
is entered in the access log before the page leaves.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import RedirectResponse

from service.certificates import forms
from service.certificates.facts import sections_of
from service.certificates.label import label_facts
from service.certificates.service import visible_certificate
from service.dashboard.ledger_page import check_page, filtered_entries, ledger_page, visible_head
from service.dashboard.population_page import population_page
from service.dashboard.reader import ReaderDep
from service.dashboard.rendering import page
from service.dashboard.sessions import SignedIn
from service.dependencies import PublisherDep, ReadDep
from service.errors import CursorInvalid, NotFound
from service.jobs.errors import JobNotFound
from service.ledger import bundle
from service.ledger.burn_down import DAYS_MAX
from service.ledger.errors import LedgerNotFound
from service.ledger.schemas import EntryQuery
from service.logged_reads import LoggedRoute

router = APIRouter(include_in_schema=False, route_class=LoggedRoute)

READERS = frozenset({"submitter", "steward", "auditor"})
EXPORT_MAX = 10_000


@router.get("/ledger")
def show_ledger(
    person: ReaderDep, session: ReadDep, query: Annotated[EntryQuery, Query()]
) -> Response:
    """Populations, entries with filters, oddities, exports."""
    return answer_for(
        person,
        lambda who: page("ledger.html", person=who, shown=ledger_page(session, who.subject, query)),
    )


@router.get("/populations/{population_id}")
def show_population(
    population_id: str,
    person: ReaderDep,
    session: ReadDep,
    days: Annotated[int, Query(ge=1, le=DAYS_MAX)] = 30,
) -> Response:
    """One population: its budget, how it was used up, its newest entries."""
    return answer_for(
        person,
        lambda who: page(
            "population.html",
            person=who,
            shown=population_page(session, who.subject, population_id, days=days),
        ),
        READERS | {"admin"},
    )


@router.get("/ledger/jobs/{job_id}/check")
def show_check(job_id: str, person: ReaderDep, session: ReadDep) -> Response:
    """The chain, the inclusion proofs and epsilon of one job, recomputed now."""
    return answer_for(
        person,
        lambda who: page("check.html", person=who, shown=check_page(session, who.subject, job_id)),
    )


@router.get("/ledger/export/entries.{ending}")
def export_entries(
    ending: Literal["csv", "jsonl"],
    person: ReaderDep,
    session: ReadDep,
    query: Annotated[EntryQuery, Query()],
) -> Response:
    """The filtered entries, at most 10,000; the bundle has no such bound."""

    def build(who: SignedIn) -> Response:
        found = filtered_entries(session, who.subject.tenant_id, query, limit=EXPORT_MAX)
        if ending == "csv":
            return _file(bundle.entries_csv(session, found).encode(), "text/csv", "entries.csv")
        return _file(bundle.entries_jsonl(found).encode(), "application/jsonl", "entries.jsonl")

    return answer_for(person, build)


@router.get("/ledger/export/bundle.zip")
def export_bundle(person: ReaderDep, session: ReadDep, publisher: PublisherDep) -> Response:
    """What `rldp verify` takes, up to the newest entry."""

    def build(who: SignedIn) -> Response:
        head = visible_head(session, who.subject, None)
        publisher.turn(only=head.log_id)
        session.rollback()  # a new look, which sees what was signed just now
        tenant_id = who.subject.tenant_id
        with bundle.write_bundle(session, keys=publisher.keys, tenant_id=tenant_id) as archive:
            return _file(archive.read(), "application/zip", "ledger-bundle.zip")

    return answer_for(person, build)


@router.get("/certificates/{job_id}")
def show_certificate(job_id: str, person: ReaderDep, session: ReadDep) -> Response:
    """The nutrition label, the verdict with its reasons, and every section."""

    def build(who: SignedIn) -> Response:
        certificate = visible_certificate(session, who.subject.tenant_id, job_id)
        statement = json.loads(certificate.body)
        return page(
            "certificate.html",
            person=who,
            certificate=certificate,
            label=label_facts(statement["predicate"]),
            sections=sections_of(statement),
        )

    return answer_for(person, build)


@router.get("/certificates/{job_id}/privacy-certificate.{ending}")
def download_certificate(
    job_id: str, ending: str, person: ReaderDep, session: ReadDep, publisher: PublisherDep
) -> Response:
    """The certificate in one of its forms, as a file."""

    def build(who: SignedIn) -> Response:
        form = forms.form_by_ending(ending)
        if form is None:
            raise LedgerNotFound("certificate")
        certificate = visible_certificate(session, who.subject.tenant_id, job_id)
        content = form.make(certificate, publisher.keys)
        return _file(content, form.media_type, f"privacy-certificate.{form.ending}")

    return answer_for(person, build)


def answer_for(
    person: SignedIn | None,
    build: Callable[[SignedIn], Response],
    roles: frozenset[str] = READERS,
) -> Response:
    """The answer; the sign-in form for nobody; one page for absent and for not yours."""
    if person is None:
        return RedirectResponse("/signin", status_code=303)
    if person.subject.role not in roles:
        return page("not_found.html", status=404, person=person)
    try:
        return build(person)
    except (LedgerNotFound, JobNotFound, NotFound, CursorInvalid):
        return page("not_found.html", status=404, person=person)


def _file(content: bytes, media_type: str, name: str) -> Response:
    return Response(
        content,
        media_type=media_type,
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
