"""The page of a hospital's people, and the one on which somebody accepts their invitation.

Tokens and keys are shown on the page that answers the form, once; neither is in any address.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast, get_args

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.dashboard.endpoints import SignerDep
from service.dashboard.ledger_endpoints import answer_for
from service.dashboard.reader import ReaderDep
from service.dashboard.rendering import page
from service.dashboard.sessions import (
    FORM_COOKIE,
    FORM_SECONDS,
    SessionSigner,
    SignedIn,
    clear_cookie,
    cookie_name,
    fresh_form,
    is_own_form,
    set_cookie,
)
from service.dashboard.steer_endpoints import ADMINS, OLD_FORM, told
from service.dependencies import ReadDep, SessionDep
from service.errors import ServiceError
from service.logged_reads import LoggedRoute
from service.membership import invitations, people
from service.membership.endpoints import accept_counted
from service.membership.invitations import Invited, Role
from service.tenants.models import Principal

router = APIRouter(include_in_schema=False, route_class=LoggedRoute)
open_router = APIRouter(include_in_schema=False)

READERS = frozenset({"admin", "steward"})
SHOWN_MAX = 200
Token = Annotated[str, Form(max_length=128)]
# What an admin may do to somebody in this state: verb of the route, words on the button.
ACTIONS = {
    "invited": ("block", "Withdraw"),
    "awaiting_approval": ("block", "Withdraw"),
    "active": ("block", "Block"),
    "blocked": ("unblock", "Let in again"),
}
STEWARDS_ACCEPT = (
    "A steward needs a signing key of their own, which no browser should make: "
    "run rldp people accept --signing-key FILE on your machine."
)


@router.get("/people")
def show_people(person: ReaderDep, session: ReadDep) -> Response:
    """Everybody of the hospital, newest first; for an admin with what they may do."""
    return answer_for(person, lambda who: _people_page(session, who), READERS)


@router.post("/people")
def invite(
    request: Request,
    person: ReaderDep,
    signer: SignerDep,
    session: SessionDep,
    role: Annotated[str, Form(max_length=16)] = "",
    form_token: Token = "",
) -> Response:
    """Invites somebody; the page shows the token, this once."""

    def build(who: SignedIn) -> Response:
        if not is_own_form(signer, request, form_token) or role not in get_args(Role):
            return told(who, OLD_FORM, "/people", status=400)
        try:
            made = invitations.invite(
                session,
                tenant_id=who.subject.tenant_id,
                role=cast(Role, role),
                invited_by=who.subject.principal_id,
            )
        except ServiceError as refused:
            return told(who, refused.message, "/people", status=refused.status)
        return _people_page(session, who, made=made)

    return answer_for(person, build, ADMINS)


@router.post("/people/{user_id}/{verb}")
def set_blocked(
    user_id: str,
    verb: Literal["block", "unblock"],
    request: Request,
    person: ReaderDep,
    signer: SignerDep,
    session: SessionDep,
    form_token: Token = "",
) -> Response:
    """Does what the API's route of that name does."""

    def build(who: SignedIn) -> Response:
        if not is_own_form(signer, request, form_token):
            return told(who, OLD_FORM, "/people", status=400)
        try:
            if verb == "block":
                people.block_other(session, who.subject, user_id)
            else:
                people.unblock(session, people.one_person(session, who.subject, user_id))
        except ServiceError as refused:
            if refused.status == 404:
                raise
            return told(who, refused.message, "/people", status=refused.status)
        return RedirectResponse("/people", status_code=303)

    return answer_for(person, build, ADMINS)


def _people_page(session: Session, who: SignedIn, *, made: Invited | None = None) -> Response:
    visible = people.visible_people(who.subject)
    newest = visible.order_by(Principal.created_at.desc(), Principal.id.desc()).limit(SHOWN_MAX)
    shown = [people.person_to_dict(row) for row in session.scalars(newest)]
    return page(
        "people.html",
        person=who,
        people=shown,
        total=session.scalar(select(func.count()).select_from(visible.subquery())) or 0,
        roles=get_args(Role),
        actions=ACTIONS,
        made=made,
        valid_days=invitations.VALID_DAYS,
    )


@open_router.get("/accept")
def show_accept(request: Request, signer: SignerDep) -> Response:
    """A form for the token; whoever has one needs no sign-in."""
    return _accept_page(request, signer)


@open_router.post("/accept")
def accept(
    request: Request,
    signer: SignerDep,
    session: SessionDep,
    token: Annotated[str, Form(max_length=invitations.TOKEN_LENGTH_MAX)] = "",
    form_token: Token = "",
) -> Response:
    """Shows the first key, this once."""
    cookie = request.cookies.get(cookie_name(request, FORM_COOKIE))
    if signer.read("form", cookie) is None or not signer.form_matches(cookie, form_token):
        problem = "This form was too old. Paste the token again."
        return _accept_page(request, signer, problem=problem, status=400)
    try:
        made = accept_counted(request, session, token.strip())
    except ServiceError as refused:
        session.rollback()
        is_of_steward = refused.param == "public_key"
        words = STEWARDS_ACCEPT if is_of_steward else refused.message
        return _accept_page(request, signer, problem=words, status=refused.status)
    answer = page("accepted.html", person=None, made=made)
    clear_cookie(request, answer, FORM_COOKIE)
    return answer


def _accept_page(
    request: Request, signer: SessionSigner, *, problem: str = "", status: int = 200
) -> Response:
    cookie = fresh_form(signer)
    shown: dict[str, Any] = {"problem": problem, "form_token": signer.form_token(cookie)}
    answer = page("accept.html", status=status, person=None, **shown)
    set_cookie(request, answer, FORM_COOKIE, cookie, FORM_SECONDS)
    return answer
