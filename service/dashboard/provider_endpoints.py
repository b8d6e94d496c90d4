"""Routes of the sign-in with the identity provider: there, and back.

The way there is a link, not a form: the page's policy lets a form lead to this host only.
"""

from __future__ import annotations

import hmac
import logging
import time
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from service.auth.identities import identity_id, owner_of_claims
from service.auth.key_sets import SourceUnavailable
from service.auth.keys import KeyOwner
from service.auth.provider import Provider, provider_of
from service.auth.sign_in import Started, begin, finish
from service.auth.tokens import TokenRefused
from service.dashboard.endpoints import AFTER_SIGN_IN, PageRoute, SignerDep, sign_in_page
from service.dashboard.sessions import (
    FORM_SECONDS,
    SessionSigner,
    clear_cookie,
    cookie_name,
    set_cookie,
    start_provider_session,
)
from service.database import Database
from service.dependencies import DatabaseDep
from service.errors import RateLimited
from service.rate_limits import limits_of

logger = logging.getLogger(__name__)
router = APIRouter(include_in_schema=False, route_class=PageRoute)

COOKIE = "rldp_provider"
AWAY = "Your identity provider does not answer as it should. Try again, or sign in with an API key."
NOT_OURS = "This sign-in was too old, or began in another browser. Please begin again."
UNLINKED = (
    "You are known there, but nobody has linked you to an account here yet."
    " Give the operator this id:"
)
PROBLEMS = {
    "blocked": "Your account here is blocked. Ask the operator.",
    "second_factor": "Your role needs a second factor. Sign in there with one, then come back.",
    "role": "The provider does not name you in your role here. Ask its operator.",
    "tenant": "The provider names you for another hospital. Ask its operator.",
}
REFUSED = "The provider did not sign you in. Begin again, or ask the operator."


def _provider(request: Request) -> Provider | None:
    """The configured one, if people may sign in with it."""
    provider = provider_of(request.app.state)
    return provider if provider is not None and provider.settings.oidc_client_id else None


@router.get("/signin/provider")
def go_there(request: Request, signer: SignerDep) -> Response:
    provider = _provider(request)
    if provider is None:
        return RedirectResponse("/signin", status_code=303)
    try:
        address, started = begin(provider)
    except SourceUnavailable:
        return sign_in_page(request, signer, problem=AWAY, status=503)
    answer = RedirectResponse(address, status_code=303)
    value = signer.sign(
        "provider",
        {
            "state": started.state,
            "nonce": started.nonce,
            "verifier": started.verifier,
            "until": int(time.time()) + FORM_SECONDS,
        },
    )
    set_cookie(request, answer, COOKIE, value, FORM_SECONDS)
    return answer


@router.get("/signin/provider/back")
def come_back(
    request: Request,
    signer: SignerDep,
    database: DatabaseDep,
    state: Annotated[str, Query(max_length=128)] = "",
    code: Annotated[str, Query(max_length=4096)] = "",
    iss: Annotated[str, Query(max_length=2000)] = "",
) -> Response:
    """What the provider answered counts only in the browser that asked, and once."""
    provider = _provider(request)
    if provider is None:
        return RedirectResponse("/signin", status_code=303)
    started = _started(request, signer, state)
    answer = (
        sign_in_page(request, signer, problem=NOT_OURS, status=400)
        if started is None or iss not in ("", provider.issuer)
        else _finished(request, signer, database, provider, started, code)
    )
    clear_cookie(request, answer, COOKIE)
    return answer


def _started(request: Request, signer: SessionSigner, state: str) -> Started | None:
    value = signer.read("provider", request.cookies.get(cookie_name(request, COOKIE)))
    if value is None or not hmac.compare_digest(str(value["state"]).encode(), state.encode()):
        return None
    return Started(state=state, nonce=str(value["nonce"]), verifier=str(value["verifier"]))


def _finished(
    request: Request,
    signer: SessionSigner,
    database: Database,
    provider: Provider,
    started: Started,
    code: str,
) -> Response:
    try:
        if not code:  # it says why in `error`, which is theirs to word, not ours to repeat
            raise TokenRefused("refused")
        claims = finish(provider, started, code)
        identity = identity_id(provider.issuer, provider.rules.user_of(claims))
        try:
            owner = _owner(database, provider, claims)
        except TokenRefused as refused:
            shown = identity if refused.code == "unlinked" else ""
            return _refusal(request, signer, refused.code, shown)
    except TokenRefused as refused:
        return _refusal(request, signer, refused.code, "")
    except SourceUnavailable:
        return sign_in_page(request, signer, problem=AWAY, status=503)
    answer = RedirectResponse(AFTER_SIGN_IN, status_code=303)
    start_provider_session(signer, owner, request, answer)
    return answer


def _owner(database: Database, provider: Provider, claims: dict[str, object]) -> KeyOwner:
    with database.reading() as session:
        return owner_of_claims(session, claims, issuer=provider.issuer, rules=provider.rules)


def _refusal(request: Request, signer: SessionSigner, code: str, identity: str) -> Response:
    logger.info("sign-in refused", extra={"code": code})
    try:
        limits_of(request.app.state).failed(request.client.host if request.client else "")
    except RateLimited as limited:
        return sign_in_page(request, signer, problem=limited.message, status=429)
    problem = UNLINKED if identity else PROBLEMS.get(code, REFUSED)
    status = 403 if identity or code in PROBLEMS else 401
    return sign_in_page(request, signer, problem=problem, status=status, identity=identity)
