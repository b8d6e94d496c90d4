"""Buttons that pause, resume and cancel a job, and the one that drains a worker.

Plain forms with the session's token, so that they work without scripts. The rules are those of
the API's routes; a cancel asks once more, because nothing brings a cancelled job back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session

from service.auth.subject import Subject
from service.dashboard.endpoints import SignerDep
from service.dashboard.ledger_endpoints import answer_for
from service.dashboard.reader import ReaderDep
from service.dashboard.rendering import page
from service.dashboard.sessions import SessionSigner, SignedIn, is_own_form
from service.dependencies import ReadDep, SessionDep
from service.fleet import registry
from service.jobs import steering
from service.jobs.errors import StateConflict
from service.jobs.lifecycle import TERMINAL, State
from service.jobs.repository import visible_job
from service.logged_reads import LoggedRoute

router = APIRouter(include_in_schema=False, route_class=LoggedRoute)

STEERERS = frozenset({"submitter", "steward", "admin"})
ADMINS = frozenset({"admin"})
VERBS: dict[str, Callable[[Session, Subject, str], dict[str, Any]]] = {
    "pause": steering.pause_job,
    "resume": steering.resume_job,
    "cancel": steering.cancel_job,
}
OLD_FORM = "This form was too old. Nothing was changed."
Token = Annotated[str, Form(max_length=128)]


@router.get("/jobs/{job_id}/cancel")
def confirm_cancel(job_id: str, person: ReaderDep, session: ReadDep) -> Response:
    """What a cancel does to this job, and the button that does it."""

    def build(who: SignedIn) -> Response:
        job = visible_job(session, who.subject, job_id)
        return page("cancel.html", person=who, job=job, is_over=State(job.state) in TERMINAL)

    return answer_for(person, build, STEERERS)


@router.post("/jobs/{job_id}/{verb}")
def steer(
    job_id: str,
    verb: Literal["pause", "resume", "cancel"],
    request: Request,
    person: ReaderDep,
    signer: SignerDep,
    session: SessionDep,
    form_token: Token = "",
    back: Annotated[str, Form(max_length=8)] = "",
) -> Response:
    """Does what the API's route of that name does, then goes back to where the button stood."""

    def build(who: SignedIn) -> Response:
        visible_job(session, who.subject, job_id)
        if not is_own_form(signer, request, form_token):
            return told(who, OLD_FORM, f"/jobs/{job_id}", status=400)
        try:
            VERBS[verb](session, who.subject, job_id)
        except StateConflict as conflict:
            session.rollback()
            return told(who, str(conflict), f"/jobs/{job_id}", status=409)
        return RedirectResponse("/" if back == "overview" else f"/jobs/{job_id}", status_code=303)

    return answer_for(person, build, STEERERS)


@router.post("/workers/{worker_id}/drain")
def drain(
    worker_id: str,
    request: Request,
    person: ReaderDep,
    signer: SignerDep,
    session: SessionDep,
    form_token: Token = "",
) -> Response:
    """The worker ends what it has and takes no more jobs."""

    def build(who: SignedIn) -> Response:
        return _drained(signer, request, session, who, worker_id, form_token)

    return answer_for(person, build, ADMINS)


def _drained(
    signer: SessionSigner,
    request: Request,
    session: Session,
    who: SignedIn,
    worker_id: str,
    form_token: str,
) -> Response:
    if not is_own_form(signer, request, form_token):
        return told(who, OLD_FORM, "/", status=400)
    if registry.drain(session, worker_id) is None:
        return told(who, "This worker is not there any more.", "/", status=404)
    return RedirectResponse("/", status_code=303)


def told(who: SignedIn, problem: str, back: str, *, status: int) -> Response:
    """Why nothing was done, with a way back."""
    return page("told.html", status=status, person=who, problem=problem, back=back)
