"""Routes of the dashboard: sign in and out, overview, job page, their live parts, files."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from service.artifacts.endpoints import artifact_file
from service.auth.keys import authenticate
from service.dashboard.job_page import job_page
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
    set_cookie,
    signed_in,
    start_session,
)
from service.dependencies import DatabaseDep, ReadDep, SettingsDep
from service.errors import ServiceError
from service.jobs.errors import JobNotFound
from service.jobs.repository import visible_job

router = APIRouter(include_in_schema=False)

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
    return signed_in(signer, request, session)


PersonDep = Annotated[SignedIn | None, Depends(get_person)]


@router.get("/")
def show_overview(person: PersonDep, session: ReadDep) -> Response:
    if person is None:
        return RedirectResponse("/signin", status_code=303)
    return page("overview.html", person=person, shown=overview(session, person.subject))


@router.get("/live/overview")
def show_overview_part(request: Request, person: PersonDep, session: ReadDep) -> Response:
    if person is None:
        return _signed_out()
    return _part(
        request, page("overview_part.html", shown=overview(session, person.subject), person=person)
    )


@router.get("/jobs/{job_id}")
def show_job(job_id: str, person: PersonDep, session: ReadDep) -> Response:
    if person is None:
        return RedirectResponse("/signin", status_code=303)
    signed = person
    return _or_not_found(
        signed,
        lambda: page("job.html", person=signed, shown=job_page(session, signed.subject, job_id)),
    )


@router.get("/live/jobs/{job_id}")
def show_job_part(request: Request, job_id: str, person: PersonDep, session: ReadDep) -> Response:
    if person is None:
        return _signed_out()
    signed = person

    def build() -> HTMLResponse:
        return page("job_part.html", shown=job_page(session, signed.subject, job_id))

    return _part(request, _or_not_found(signed, build))


@router.get("/jobs/{job_id}/files/{name}")
def download(job_id: str, name: str, person: PersonDep, session: ReadDep) -> Response:
    """A released file of a job, for people who read the page in a browser."""
    if person is None:
        return RedirectResponse("/signin", status_code=303)
    signed = person

    def build() -> Response:
        job = visible_job(session, signed.subject, job_id)
        return artifact_file(session, job.id, name)

    return _or_not_found(signed, build)


@router.get("/signin")
def show_sign_in(request: Request, signer: SignerDep, person: PersonDep) -> Response:
    if person is not None:
        return RedirectResponse(AFTER_SIGN_IN, status_code=303)
    return _sign_in_page(request, signer, problem="", status=200)


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
        return _sign_in_page(
            request, signer, problem="This form was too old. Paste the key again.", status=400
        )
    owner = authenticate(database, key.strip())
    if owner is None:
        return _sign_in_page(
            request, signer, problem="This key is unknown, expired or revoked.", status=401
        )
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


def _sign_in_page(
    request: Request, signer: SessionSigner, *, problem: str, status: int
) -> HTMLResponse:
    cookie = signer.sign(
        "form", {"nonce": secrets.token_hex(16), "until": int(time.time()) + FORM_SECONDS}
    )
    answer = page(
        "signin.html",
        status=status,
        person=None,
        problem=problem,
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


def _signed_out() -> Response:
    """A live part without a session: the script then loads the whole page anew."""
    return Response(status_code=401)


def _part(request: Request, answer: Response) -> Response:
    """The part, or 304 when it is what the browser already shows."""
    etag = f'"{hashlib.sha256(bytes(answer.body)).hexdigest()[:32]}"'
    if answer.status_code == 200 and request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"ETag": etag})
    answer.headers["ETag"] = etag
    return answer
