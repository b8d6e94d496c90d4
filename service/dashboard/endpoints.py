"""Routes of the dashboard: sign in and out, overview, job page, files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from service.artifacts.endpoints import artifact_file
from service.auth.keys import authenticate
from service.dashboard.chat_box import Said, can_chat
from service.dashboard.job_page import job_page
from service.dashboard.operations_page import operations_page
from service.dashboard.overview import overview
from service.dashboard.rendering import page, static_files
from service.dashboard.sessions import (
    FORM_COOKIE,
    FORM_SECONDS,
    SESSION_COOKIE,
    SessionSigner,
    SignedIn,
    clear_cookie,
    cookie_name,
    fresh_form,
    set_cookie,
    signed_in,
    start_session,
)
from service.dependencies import DatabaseDep, KeyringDep, ReadDep, SettingsDep
from service.errors import RateLimited, ServiceError
from service.jobs.errors import JobNotFound
from service.jobs.repository import visible_job
from service.logged_reads import LoggedRoute
from service.rate_limits import limits_of
from service.settings import Settings


class PageRoute(LoggedRoute):
    """Reads of budgets, jobs and files are entered, as those of the evidence pages are."""

    logged = frozenset({"/", "/jobs/{job_id}", "/jobs/{job_id}/files/{name}"})


router = APIRouter(include_in_schema=False, route_class=PageRoute)

KEY_LENGTH_MAX = 200
FOREVER = "public, max-age=31536000, immutable"
AFTER_SIGN_IN = "/"


def get_signer(request: Request, settings: SettingsDep) -> SessionSigner:
    """The installation's signer, read once per application."""
    signer = getattr(request.app.state, "dashboard_signer", None)
    if signer is None:
        signer = request.app.state.dashboard_signer = SessionSigner.of_directory(settings.keys_dir)
    return signer


SignerDep = Annotated[SessionSigner, Depends(get_signer)]


def get_person(request: Request, signer: SignerDep, session: ReadDep) -> SignedIn | None:
    """Who is signed in; `LoggedRoute` enters a read under the subject noted here."""
    person = signed_in(signer, request, session)
    if person is not None:
        request.state.subject = person.subject
    return person


PersonDep = Annotated[SignedIn | None, Depends(get_person)]


@router.get("/")
def show_overview(person: PersonDep, session: ReadDep, settings: SettingsDep) -> Response:
    if person is None:
        return RedirectResponse("/signin", status_code=303)
    if person.subject.role == "admin":
        shown = operations_page(session, person.subject, settings.data_dir)
        return page("operations.html", person=person, shown=shown)
    return page(
        "overview.html",
        person=person,
        shown=overview(session, person.subject),
        role=person.subject.role,
    )


@router.get("/jobs/{job_id}")
def show_job(job_id: str, person: PersonDep, session: ReadDep, settings: SettingsDep) -> Response:
    if person is None:
        return RedirectResponse("/signin", status_code=303)
    signed = person

    def build() -> Response:
        shown = job_page(session, signed.subject, job_id)
        talks = can_chat(settings, signed.subject, shown.release)
        return page("job.html", person=signed, shown=shown, can_chat=talks, said=Said())

    return _or_not_found(signed, build)


@router.get("/jobs/{job_id}/files/{name}")
def download(
    job_id: str, name: str, person: PersonDep, session: ReadDep, keys: KeyringDep
) -> Response:
    """A released file of a job, for people who read the page in a browser."""
    if person is None:
        return RedirectResponse("/signin", status_code=303)
    signed = person

    def build() -> Response:
        job = visible_job(session, signed.subject, job_id)
        return artifact_file(session, keys, job.id, name)

    return _or_not_found(signed, build)


@router.get("/signin")
def show_sign_in(request: Request, signer: SignerDep, person: PersonDep) -> Response:
    if person is not None:
        return RedirectResponse(AFTER_SIGN_IN, status_code=303)
    return sign_in_page(request, signer, problem="", status=200)


@router.post("/signin")
def sign_in(
    request: Request,
    signer: SignerDep,
    database: DatabaseDep,
    key: Annotated[str, Form(max_length=KEY_LENGTH_MAX)] = "",
    form_token: Annotated[str, Form(max_length=128)] = "",
) -> Response:
    cookie = request.cookies.get(cookie_name(request, FORM_COOKIE))
    is_ours = signer.read("form", cookie) is not None and signer.form_matches(cookie, form_token)
    if not is_ours:
        return sign_in_page(
            request, signer, problem="This form was too old. Paste the key again.", status=400
        )
    owner = authenticate(database, key.strip())
    if owner is None:
        try:
            limits_of(request.app.state).failed(request.client.host if request.client else "")
        except RateLimited as refused:
            return sign_in_page(request, signer, problem=refused.message, status=429)
        return sign_in_page(
            request, signer, problem="This key is unknown, expired or revoked.", status=401
        )
    if owner.scopes is not None:  # pages show all that a role may see
        return sign_in_page(
            request, signer, problem="This key has scopes. Sign in with one that has none.",
            status=403,
        )  # fmt: skip
    answer = RedirectResponse(AFTER_SIGN_IN, status_code=303)
    start_session(signer, owner, request, answer)
    clear_cookie(request, answer, FORM_COOKIE)
    return answer


@router.post("/signout")
def sign_out(
    request: Request,
    signer: SignerDep,
    form_token: Annotated[str, Form(max_length=128)] = "",
) -> Response:
    cookie = request.cookies.get(cookie_name(request, SESSION_COOKIE))
    answer = RedirectResponse("/signin", status_code=303)
    if signer.form_matches(cookie, form_token):
        clear_cookie(request, answer, SESSION_COOKIE)
    return answer


@router.get("/static/{name}")
def static_file(name: str, v: Annotated[str, Query(max_length=32)] = "") -> Response:
    found = static_files().get(name)
    if found is None:
        return Response(status_code=404)
    cache = FOREVER if v == found.digest else "no-cache"
    return Response(found.content, media_type=found.media_type, headers={"Cache-Control": cache})


def sign_in_page(
    request: Request, signer: SessionSigner, *, problem: str, status: int, identity: str = ""
) -> HTMLResponse:
    """The page with a fresh form; `identity` is shown to somebody whom nobody has linked."""
    settings: Settings = request.app.state.settings
    cookie = fresh_form(signer)
    answer = page(
        "signin.html",
        status=status,
        person=None,
        problem=problem,
        identity=identity,
        provider=settings.oidc_name if settings.oidc_client_id else "",
        form_token=signer.form_token(cookie),
    )
    set_cookie(request, answer, FORM_COOKIE, cookie, FORM_SECONDS)
    return answer


def _or_not_found(person: SignedIn, build: Callable[[], Response]) -> Response:
    """The answer, or one page for absent and for not yours, so that nobody can tell which."""
    try:
        return build()
    except (JobNotFound, ServiceError):
        return page("not_found.html", status=404, person=person)
