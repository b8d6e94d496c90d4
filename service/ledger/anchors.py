"""RFC 3161 time stamps of checkpoints: evidence of time beside the order (ledger.md 10.6).

Each ledger is stamped once a day while it grows, and after every release. Stamped are the
three lines of the log's own checkpoint, so whoever holds the entries can recompute what was
stamped. A stamp is checked against the pinned certificates before it is kept. A TSA that
does not answer delays nothing but the stamp.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from rfc3161_client import (
    HashAlgorithm,
    TimestampRequestBuilder,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.database import now_us
from service.ledger import notes, repository
from service.ledger.checkpoints import newest
from service.ledger.entries import insert_if_absent
from service.ledger.models import Anchor, Entry, LogHead, SignedCheckpoint
from service.settings import Settings

DAY_US = 24 * 3600 * 1_000_000
TIMEOUT_SECONDS = 10.0
ANSWER_BYTES_MAX = 64 * 1024

Ask = Callable[[str, bytes], bytes]


class TsaUnreachable(Exception):
    """No answer, a refusal, or a stamp that does not verify."""


class TsaFileInvalid(ValueError):
    """The file of certificates holds none."""


@dataclass(frozen=True, kw_only=True)
class Tsa:
    """A time-stamping authority: where it answers, and the certificates we trust it by."""

    url: str
    certificates: tuple[x509.Certificate, ...]

    def stamp(self, message: bytes, ask: Ask) -> bytes:
        """The token over a message, in DER, verified. Raises TsaUnreachable."""
        request = TimestampRequestBuilder(data=message, hash_algorithm=HashAlgorithm.SHA256).build()
        checks = VerifierBuilder.from_request(request)
        for certificate in self.certificates:
            checks = checks.add_root_certificate(certificate)
        try:
            answer = decode_timestamp_response(ask(self.url, request.as_bytes()))
            checks.build().verify_message(answer, message)
        except (ValueError, VerificationError):
            raise TsaUnreachable("a stamp that does not verify") from None
        return answer.time_stamp_token()


def load_tsa(settings: Settings) -> Tsa | None:
    """The configured authority; None when time stamps are off.

    Raises:
        TsaFileInvalid: the file holds no certificates.
    """
    if not settings.tsa_url or settings.tsa_certificates is None:
        return None
    return Tsa(url=settings.tsa_url, certificates=read_certificates(settings.tsa_certificates))


def read_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """Raises TsaFileInvalid."""
    try:
        return tuple(x509.load_pem_x509_certificates(path.read_bytes()))
    except (OSError, ValueError):
        raise TsaFileInvalid(f"{path.name} holds no PEM certificates.") from None


def pinned(certificates: tuple[x509.Certificate, ...]) -> list[str]:
    """For an auditor's policy: base64 of DER."""
    return [base64.b64encode(one.public_bytes(Encoding.DER)).decode() for one in certificates]


def ask_over_http(url: str, body: bytes) -> bytes:
    """One query, without redirects. Raises TsaUnreachable."""
    kind = {"Content-Type": "application/timestamp-query"}
    try:
        answer = httpx.post(
            url, content=body, headers=kind, timeout=TIMEOUT_SECONDS, follow_redirects=False
        )
    except httpx.HTTPError as error:
        raise TsaUnreachable(type(error).__name__) from None
    if answer.status_code != 200 or len(answer.content) > ANSWER_BYTES_MAX:
        raise TsaUnreachable(f"status {answer.status_code}")
    return answer.content


def due(session: Session) -> list[SignedCheckpoint]:
    """The newest checkpoint of each tenant's ledger, if its time for a stamp has come."""
    logs = select(LogHead.log_id).where(repository.is_ledger())
    found = (_due(session, log_id) for log_id in session.scalars(logs.order_by(LogHead.log_id)))
    return [one for one in found if one is not None]


def _due(session: Session, log_id: str) -> SignedCheckpoint | None:
    signed = newest(session, log_id)
    last = session.scalar(
        select(Anchor).where(Anchor.log_id == log_id).order_by(Anchor.size.desc()).limit(1)
    )
    if signed is None or last is None:
        return signed
    if signed.size == last.size:
        return None
    released = select(Entry.idx).where(
        Entry.log_id == log_id,
        Entry.idx >= last.size,
        Entry.idx < signed.size,
        Entry.type == "release.published",
    )
    is_old = now_us() - last.created_at >= DAY_US
    return signed if is_old or session.scalar(released.limit(1)) is not None else None


def stamp(signed: SignedCheckpoint, tsa: Tsa, ask: Ask) -> dict[str, object]:
    """The row of one stamp, made outside any transaction. Raises TsaUnreachable."""
    token = tsa.stamp(notes.parse_note(signed.note).text.encode(), ask)
    return {
        "log_id": signed.log_id,
        "size": signed.size,
        "token": base64.b64encode(token).decode(),
        "created_at": now_us(),
    }


def keep(session: Session, row: dict[str, object]) -> bool:
    """Stores a stamp; the first of a checkpoint stands."""
    return insert_if_absent(session, Anchor, row)


def tokens(session: Session, log_id: str, size: int) -> dict[str, bytes]:
    """The files of a bundle: each stamp of a checkpoint of at most `size` entries."""
    rows = select(Anchor).where(Anchor.log_id == log_id, Anchor.size <= size)
    return {
        f"anchors/{row.size}.tst": base64.b64decode(row.token)
        for row in session.scalars(rows.order_by(Anchor.size))
    }
