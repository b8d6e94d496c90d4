"""Who reads an evidence page: signed in, of a role the page is for, known to the access log."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from service.dashboard.endpoints import PersonDep
from service.dashboard.sessions import SignedIn


def get_reader(request: Request, person: PersonDep) -> SignedIn | None:
    """The person; `LoggedRoute` enters the read under the subject noted here."""
    if person is not None:
        request.state.subject = person.subject
    return person


ReaderDep = Annotated[SignedIn | None, Depends(get_reader)]
