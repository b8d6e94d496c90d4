"""Routes of a submitter: price a job, submit it, and the list of jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from service.dashboard.advice import Trouble, trouble_of
from service.dashboard.endpoints import SignerDep
from service.dashboard.jobs_page import jobs_page
from service.dashboard.ledger_endpoints import answer_for
from service.dashboard.reader import ReaderDep
from service.dashboard.rendering import page
from service.dashboard.sessions import SignedIn, is_own_form
from service.dashboard.submit_form import (
    FormInvalid,
    SubmitForm,
    SubmittedForm,
    job_request,
    new_key,
)
from service.dashboard.submit_page import Estimate, estimate_of, submit_page
from service.dependencies import DatabaseDep, ReadDep, SettingsDep
from service.jobs.service import create_job
from service.logged_reads import LoggedRoute


class SubmitRoute(LoggedRoute):
    """Prices show what is left of a budget; a moved slider asks for many, entered once an hour."""

    hourly = frozenset({"/submit/estimate"})


router = APIRouter(include_in_schema=False, route_class=SubmitRoute)

SUBMITTERS = frozenset({"submitter"})
JOB_READERS = frozenset({"submitter", "steward", "admin"})
OLD_FORM = Trouble(
    message="This form was too old.", next_step="Look at the estimate and submit again.", status=400
)


@router.get("/submit")
def show_submit(
    person: ReaderDep,
    session: ReadDep,
    settings: SettingsDep,
    form: Annotated[SubmitForm, Query()],
) -> Response:
    """The form; with `ask` in its address also the price."""

    def build(who: SignedIn) -> Response:
        estimate = Estimate(form=form, key=new_key())
        if form.ask:
            estimate = estimate_of(session, settings, who.subject, form)
        shown = submit_page(session, settings, who.subject, form, estimate)
        return page("submit.html", person=who, shown=shown)

    return answer_for(person, build, SUBMITTERS)


@router.get("/submit/estimate")
def show_estimate(
    person: ReaderDep,
    session: ReadDep,
    settings: SettingsDep,
    form: Annotated[SubmitForm, Query()],
) -> Response:
    """The part of the page that a script asks for while sliders move."""
    if person is None:
        return Response(status_code=401)

    def build(who: SignedIn) -> Response:
        estimate = estimate_of(session, settings, who.subject, form)
        return page("estimate_part.html", person=who, estimate=estimate)

    return answer_for(person, build, SUBMITTERS)


@router.post("/submit")
def submit(
    request: Request,
    person: ReaderDep,
    signer: SignerDep,
    database: DatabaseDep,
    settings: SettingsDep,
    form: Annotated[SubmittedForm, Form()],
) -> Response:
    """Creates the job as the API does, under the form's key; a refusal is told on the page."""

    def build(who: SignedIn) -> Response:
        trouble: Trouble | None = OLD_FORM
        if is_own_form(signer, request, form.form_token) and form.idempotency_key:
            try:
                wanted = job_request(form)
                made = create_job(database, settings, who.subject, wanted, form.idempotency_key)
                return RedirectResponse(f"/jobs/{made.answer['id']}", status_code=303)
            except FormInvalid as error:
                trouble = Trouble(message=str(error))
            except Exception as error:
                trouble = trouble_of(error)
                if trouble is None:
                    raise
        with database.reading() as session:
            estimate = estimate_of(session, settings, who.subject, form, trouble)
            shown = submit_page(session, settings, who.subject, form, estimate)
        status = trouble.status if trouble else 422
        return page("submit.html", status=status, person=who, shown=shown)

    return answer_for(person, build, SUBMITTERS)


@router.get("/jobs")
def show_jobs(
    person: ReaderDep,
    session: ReadDep,
    after: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """The reader's jobs, newest first: a submitter's own, else those of the hospital."""
    return answer_for(
        person,
        lambda who: page("jobs.html", person=who, shown=jobs_page(session, who.subject, after)),
        JOB_READERS,
    )
