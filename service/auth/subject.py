"""The caller of a request, as endpoints see it; raises 401 and 403 before they run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service import rate_limits, row_fence
from service.auth import scopes
from service.auth.bearer import owner_of_bearer
from service.errors import AuthenticationRequired, RoleForbidden, ScopeForbidden
from service.routes import route_template

Role = Literal["submitter", "steward", "auditor", "admin"]

_bearer = HTTPBearer(
    auto_error=False,
    description="An API key: rldp_<id>_<secret>, or a token of the identity provider",
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A principal, its hospital and its one role."""

    principal_id: str
    tenant_id: str
    role: str
    scopes: frozenset[str] | None = None  # of the key; None: all that the role may


async def current_subject(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None,
) -> Subject:
    """The caller, by API key or by a token of the identity provider.

    So many are looked up at once, the others wait.

    Raises:
        AuthenticationRequired: no credential, or one that opens nothing.
        ScopeForbidden: the key's scopes do not cover this route.
        RateLimited: the key or its hospital asks too often, or wrong keys come too often.
    """
    if credentials is None:
        raise AuthenticationRequired
    async with request.app.state.looks:
        return await run_in_threadpool(_subject, request, credentials.credentials)


def _subject(request: Request, key: str) -> Subject:
    limits = rate_limits.limits_of(request.app.state)
    owner = owner_of_bearer(request.app.state, key)
    if owner is None:
        limits.failed(request.client.host if request.client else "")
        raise AuthenticationRequired
    told = limits.admit(key_id=owner.key_id, tenant_id=owner.tenant_id)
    request.scope[rate_limits.SCOPE_KEY] = told  # for the headers of whatever is answered
    rate_limits.require(told)
    subject = Subject(
        principal_id=owner.principal_id,
        tenant_id=owner.tenant_id,
        role=owner.role,
        scopes=owner.scopes,
    )
    request.state.subject = subject  # for the access log
    row_fence.bind(subject.tenant_id)
    if subject.scopes is not None:
        wanted = scopes.needed(request.method, route_template(request.scope))
        if wanted is None or not scopes.covers(subject.scopes, wanted):
            raise ScopeForbidden
    return subject


def require_role(*roles: Role) -> Callable[[Subject], Awaitable[Subject]]:
    """A dependency that lets the named roles pass and answers 403 to the others.

    Use as `subject: Annotated[Subject, Depends(require_role("steward"))]`.
    """
    allowed = frozenset(roles)
    assert allowed, "name at least one role"

    async def subject_in_role(subject: Annotated[Subject, Depends(current_subject)]) -> Subject:
        if subject.role not in allowed:
            raise RoleForbidden
        return subject

    return subject_in_role
