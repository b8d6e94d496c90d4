"""The caller of a request, as endpoints see it; raises 401 and 403 before they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.auth.keys import authenticate
from service.errors import AuthenticationRequired, RoleForbidden

Role = Literal["submitter", "steward", "auditor", "admin"]

_bearer = HTTPBearer(auto_error=False, description="An API key: rldp_<id>_<secret>")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A principal, its hospital and its one role."""

    principal_id: str
    tenant_id: str
    role: str


def current_subject(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None,
) -> Subject:
    """The caller, by bearer key.

    Raises:
        AuthenticationRequired: no key, or one that is unknown, expired or revoked.
    """
    if credentials is None:
        raise AuthenticationRequired
    owner = authenticate(request.app.state.database, credentials.credentials)
    if owner is None:
        raise AuthenticationRequired
    subject = Subject(principal_id=owner.principal_id, tenant_id=owner.tenant_id, role=owner.role)
    request.state.subject = subject  # for the access log
    return subject


def require_role(*roles: Role) -> Callable[[Subject], Subject]:
    """A dependency that lets the named roles pass and answers 403 to the others.

    Use as `subject: Annotated[Subject, Depends(require_role("steward"))]`.
    """
    allowed = frozenset(roles)
    assert allowed, "name at least one role"

    def subject_in_role(subject: Annotated[Subject, Depends(current_subject)]) -> Subject:
        if subject.role not in allowed:
            raise RoleForbidden
        return subject

    return subject_in_role
