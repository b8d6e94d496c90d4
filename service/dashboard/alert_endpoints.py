"""The page on which an admin acknowledges an alert, and its button.

A page of its own, as for a cancel: the alerts stand in a live part, which is drawn anew while
somebody writes and may hold no form.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from service.dashboard.endpoints import SignerDep
from service.dashboard.ledger_endpoints import answer_for
from service.dashboard.reader import ReaderDep
from service.dashboard.rendering import page
from service.dashboard.sessions import SignedIn, is_own_form
from service.dashboard.steer_endpoints import ADMINS, OLD_FORM, told
from service.dependencies import ReadDep, SessionDep, SettingsDep
from service.ledger.schemas import plain_text
from service.logged_reads import LoggedRoute
from service.operations.acknowledgements import NOTE_MAX, acknowledge, standing_alert

router = APIRouter(include_in_schema=False, route_class=LoggedRoute)

BAD_NOTE = f"Write at most {NOTE_MAX} characters of plain text. Nothing was changed."


@router.get("/alerts/{alert_id}")
def show_alert(
    alert_id: str, person: ReaderDep, session: ReadDep, settings: SettingsDep
) -> Response:
    """The alert, what acknowledging it does, and the button that does it."""

    def build(who: SignedIn) -> Response:
        alert = standing_alert(session, who.subject, settings.data_dir, alert_id)
        return page("alert.html", person=who, alert=alert, note_max=NOTE_MAX)

    return answer_for(person, build, ADMINS)


@router.post("/alerts/{alert_id}")
def acknowledge_alert(
    alert_id: str,
    request: Request,
    person: ReaderDep,
    signer: SignerDep,
    session: SessionDep,
    settings: SettingsDep,
    form_token: Annotated[str, Form(max_length=128)] = "",
    note: Annotated[str, Form(max_length=4 * NOTE_MAX)] = "",
) -> Response:
    """What the API's route does, then back to the page where the alert stood."""

    def build(who: SignedIn) -> Response:
        if not is_own_form(signer, request, form_token):
            return told(who, OLD_FORM, "/", status=400)
        words = " ".join(note.split())
        if len(words) > NOTE_MAX or not _is_plain(words):
            return told(who, BAD_NOTE, f"/alerts/{alert_id}", status=422)
        acknowledge(session, who.subject, settings.data_dir, alert_id, words or None)
        return RedirectResponse("/", status_code=303)

    return answer_for(person, build, ADMINS)


def _is_plain(text: str) -> bool:
    try:
        plain_text(text)
    except ValueError:
        return False
    return True
