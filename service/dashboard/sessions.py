"""Remembers in a signed cookie who signed in, with an API key or at the identity provider.

The cookie holds the id of the key or of the identity and an end, never a secret; it is
HttpOnly, SameSite=Lax, and Secure unless the page is read over plain http from this very
machine. A revoked or expired key, a link that is taken away and a person who is blocked end
their sessions at once, because each request looks them up again. Forms carry a token bound
to the cookie (or, before signing in, to a short-lived one).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request, Response
from sqlalchemy.orm import Session

from service import row_fence
from service.auth.identities import linked_person
from service.auth.keys import KeyOwner
from service.auth.models import ApiKey
from service.auth.subject import Subject
from service.database import fence
from service.tenants.models import Principal

SESSION_SECONDS = 12 * 3600
PROVIDER_SESSION_SECONDS = 4 * 3600  # the provider cannot tell us that somebody has left
FORM_SECONDS = 15 * 60
SECRET_BYTES = 32
SESSION_COOKIE = "rldp_session"
FORM_COOKIE = "rldp_form"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, kw_only=True)
class SignedIn:
    """A person on the dashboard: who, and the token their forms must carry."""

    subject: Subject
    form_token: str


class SessionSigner:
    """Makes and checks signed values under a secret of this installation."""

    def __init__(self, secret: bytes) -> None:
        assert len(secret) >= SECRET_BYTES
        self._secret = secret

    @classmethod
    def of_directory(cls, keys_dir: Path) -> SessionSigner:
        """The installation's secret, made at first use (file mode 0600)."""
        path = keys_dir / "dashboard.key"
        if not path.exists():
            keys_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write_once(path, secrets.token_bytes(SECRET_BYTES))
        return cls(path.read_bytes())

    def sign(self, purpose: str, value: dict[str, str | int]) -> str:
        body = base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
        return f"{body}.{self._mac(purpose, body)}"

    def read(self, purpose: str, text: str | None) -> dict[str, str | int] | None:
        """The value, if we signed it for this purpose and it has not expired."""
        body, _, mac = (text or "").partition(".")
        if not hmac.compare_digest(mac.encode(), self._mac(purpose, body).encode()):
            return None
        padded = body + "=" * (-len(body) % 4)
        value: dict[str, str | int] = json.loads(base64.urlsafe_b64decode(padded))
        return value if int(value["until"]) > time.time() else None

    def form_token(self, cookie: str) -> str:
        """The token of a form on a page that was sent with this cookie."""
        return self._mac("form", cookie)

    def form_matches(self, cookie: str | None, token: str) -> bool:
        if not cookie:
            return False
        return hmac.compare_digest(self.form_token(cookie).encode(), token.encode())

    def _mac(self, purpose: str, text: str) -> str:
        return hmac.new(self._secret, f"{purpose}\n{text}".encode(), hashlib.sha256).hexdigest()


def _write_once(path: Path, secret: bytes) -> None:
    """Two processes may start at once: the first link wins, both read the same file."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secret)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def fresh_form(signer: SessionSigner) -> str:
    """A cookie for a form that somebody unknown will send: a nonce, for a quarter of an hour."""
    return signer.sign(
        "form", {"nonce": secrets.token_hex(16), "until": int(time.time()) + FORM_SECONDS}
    )


def start_session(
    signer: SessionSigner, owner: KeyOwner, request: Request, answer: Response
) -> None:
    """Sets the cookie of a person whose key was just checked."""
    value = signer.sign(
        "session", {"key": owner.key_id, "until": int(time.time()) + SESSION_SECONDS}
    )
    set_cookie(request, answer, SESSION_COOKIE, value, SESSION_SECONDS)


def start_provider_session(
    signer: SessionSigner, owner: KeyOwner, request: Request, answer: Response
) -> None:
    """Sets the cookie of a person whom the identity provider just named."""
    until = int(time.time()) + PROVIDER_SESSION_SECONDS
    value = signer.sign("session", {"identity": owner.key_id, "until": until})
    set_cookie(request, answer, SESSION_COOKIE, value, PROVIDER_SESSION_SECONDS)


def signed_in(signer: SessionSigner, request: Request, session: Session) -> SignedIn | None:
    """Who reads this page; None without a live session and key, or identity."""
    cookie = request.cookies.get(cookie_name(request, SESSION_COOKIE))
    value = signer.read("session", cookie)
    if value is None or cookie is None:
        return None
    person = _person_of(value, session)
    if person is None or person.blocked_at is not None:
        return None
    subject = Subject(principal_id=person.id, tenant_id=person.tenant_id, role=person.role)
    row_fence.bind(subject.tenant_id)
    fence(session)
    return SignedIn(subject=subject, form_token=signer.form_token(cookie))


def _person_of(value: dict[str, str | int], session: Session) -> Principal | None:
    if "identity" in value:
        return linked_person(session, str(value["identity"]))
    key = session.get(ApiKey, str(value["key"]))
    if key is None or key.revoked_at is not None or key.expires_at <= time.time() * 1_000_000:
        return None
    return session.get_one(Principal, key.principal_id)


def is_own_form(signer: SessionSigner, request: Request, token: str) -> bool:
    """Whether a form came from a page that this session was sent."""
    cookie = request.cookies.get(cookie_name(request, SESSION_COOKIE))
    return signer.form_matches(cookie, token)


def set_cookie(request: Request, answer: Response, name: str, value: str, seconds: int) -> None:
    answer.set_cookie(
        cookie_name(request, name),
        value,
        max_age=seconds,
        path="/",
        httponly=True,
        samesite="lax",
        secure=must_be_secure(request),
    )


def clear_cookie(request: Request, answer: Response, name: str) -> None:
    answer.delete_cookie(
        cookie_name(request, name), path="/", httponly=True, secure=must_be_secure(request)
    )


def cookie_name(request: Request, name: str) -> str:
    """`__Host-` binds a cookie to this host; browsers accept it with Secure only."""
    return f"__Host-{name}" if must_be_secure(request) else name


def must_be_secure(request: Request) -> bool:
    return request.url.scheme == "https" or request.url.hostname not in LOOPBACK
