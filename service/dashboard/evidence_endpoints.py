"""Routes of refusals, proofs and the access log; each read is entered before its page leaves."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.dashboard.evidence_page import access_page, proofs_page, refusals_page
from service.dashboard.ledger_endpoints import answer_for
from service.dashboard.reader import ReaderDep
from service.dashboard.rendering import page
from service.dependencies import ReadDep
from service.logged_reads import LoggedRoute

router = APIRouter(include_in_schema=False, route_class=LoggedRoute)

AUDITORS = frozenset({"auditor"})
Cursor = Annotated[str, Query(max_length=96)]
Size = Annotated[str, Query(max_length=16)]


@router.get("/ledger/refusals")
def show_refusals(person: ReaderDep, session: ReadDep, before: Cursor = "") -> Response:
    """What was refused before the run, and by how much it did not fit."""
    return answer_for(
        person,
        lambda who: page(
            "refusals.html", person=who, shown=refusals_page(session, who.subject, before)
        ),
    )


@router.get("/ledger/proofs")
def show_proofs(
    person: ReaderDep,
    session: ReadDep,
    old: Annotated[str, Query(alias="from", max_length=16)] = "",
    new: Annotated[str, Query(alias="to", max_length=16)] = "",
    entry: Size = "",
) -> Response:
    """That nothing was rewritten between two checkpoints; that an entry stands in the log."""
    return answer_for(
        person,
        lambda who: page(
            "proofs.html",
            person=who,
            shown=proofs_page(session, who.subject, old=old, new=new, entry=entry),
        ),
    )


@router.get("/ledger/access")
def show_access(person: ReaderDep, session: ReadDep, before: Cursor = "") -> Response:
    """Who read what, for auditors."""
    return answer_for(
        person,
        lambda who: page(
            "access.html", person=who, shown=access_page(session, who.subject, before)
        ),
        AUDITORS,
    )
