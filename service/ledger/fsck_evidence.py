"""fsck of what lies beside the entries: personal details, keys and time stamps (I15-I17).

Reads only. Each is compared with what the log says of it, since all three lie in tables of
their own, which someone with the database could change without touching an entry.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from rfc3161_client import VerificationError, VerifierBuilder, decode_timestamp_response
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.ledger import disclosures, notes, repository
from service.ledger.disclosures import Vault
from service.ledger.entry_types import COMMITTING
from service.ledger.findings import Finding
from service.ledger.models import Anchor, Disclosure, Entry, LogHead, SignedCheckpoint
from service.ledger.receipts import MINUTE

GRANTED = b"\x30\x03\x02\x01\x00"  # the status that a bare token has lost, in DER


def check_evidence(
    session: Session,
    *,
    vault: Vault | None = None,
    certificates: Sequence[x509.Certificate] = (),
) -> list[Finding]:
    """I15, I16 and I17 over every log.

    With a `vault`, values are opened and compared with their commitments; with the
    certificates of time-stamping authorities, signatures of stamps are verified too.

    Raises:
        DisclosuresUnavailable: the vault's own key is missing.
    """
    findings: list[Finding] = []
    ledgers = select(LogHead.log_id).where(repository.is_ledger()).order_by(LogHead.log_id)
    for log_id in session.scalars(ledgers).all():
        findings += _report("I15", log_id, _disclosures(session, log_id, vault))
        findings += _report("I17", log_id, _anchors(session, log_id, certificates))
    return findings + _rotations(session)


def _report(invariant: str, log_id: str, found: Iterator[tuple[int, str]]) -> list[Finding]:
    return [
        Finding(invariant=invariant, subject=f"{log_id}#{at}", problem=problem)
        for at, problem in found
    ]


def _bodies(session: Session, log_id: str, *types: str) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = session.execute(
        select(Entry.idx, Entry.body)
        .where(Entry.log_id == log_id, Entry.type.in_(types))
        .order_by(Entry.idx)
    )
    for idx, body in rows:
        yield idx, json.loads(body)["data"]


def _disclosures(session: Session, log_id: str, vault: Vault | None) -> Iterator[tuple[int, str]]:
    """Each commitment is disclosed or redacted, and what is disclosed is what was committed.

    A value whose own key is gone, as in a backup kept without `disclosure_key`, is lost and
    not changed: no finding.
    """
    committed = {
        (idx, path): digest
        for idx, data in _bodies(session, log_id, *COMMITTING)
        for path, digest in data.get("disclosed", {}).items()
    }
    redacted = {(data["entry"], data["path"]) for _, data in _bodies(session, log_id, "redaction")}
    rows = session.execute(
        select(Disclosure.idx, Disclosure.path).where(Disclosure.log_id == log_id)
    )
    stored = {(idx, path) for idx, path in rows}
    for idx, _ in sorted(redacted - set(committed)):
        yield idx, "redacted, and nothing was committed to"
    for idx, _ in sorted(stored - set(committed)):
        yield idx, "a disclosure that no entry commits to"
    for idx, _ in sorted(stored & redacted):
        yield idx, "disclosed after its redaction"
    for idx, _ in sorted(set(committed) - stored - redacted):
        yield idx, "erased without a redaction"
    if vault is None:
        return
    for idx, path in sorted(stored & set(committed)):
        try:
            values = list(disclosures.read(session, vault, log_id, idx=idx))
        except (InvalidTag, ValueError):
            yield idx, "cannot be opened: value or key was changed"
            continue
        for one in values:
            told = bytes.fromhex(one.salt) + one.path.encode() + one.value.encode()
            if one.path == path and hashlib.sha256(told).hexdigest() != committed[idx, path]:
                yield idx, "not what its entry commits to"


def _anchors(
    session: Session, log_id: str, certificates: Sequence[x509.Certificate]
) -> Iterator[tuple[int, str]]:
    """Each stamp is over the text of its checkpoint, and no entry below it is younger."""
    rows = session.execute(
        select(Anchor, SignedCheckpoint.note)
        .join(
            SignedCheckpoint,
            (SignedCheckpoint.log_id == Anchor.log_id) & (SignedCheckpoint.size == Anchor.size),
        )
        .where(Anchor.log_id == log_id)
        .order_by(Anchor.size)
    )
    for anchor, note in rows:
        text = notes.parse_note(note).text.encode()
        try:
            stamp = decode_timestamp_response(_response(base64.b64decode(anchor.token)))
            told = stamp.tst_info
            if told.message_imprint.message != hashlib.sha256(text).digest():
                yield anchor.size, "the time stamp is over something else than its checkpoint"
                continue
            if certificates:
                checks = VerifierBuilder()
                for one in certificates:
                    checks = checks.add_root_certificate(one)
                checks.build().verify_message(stamp, text)
        except (ValueError, VerificationError):
            yield anchor.size, "a time stamp that does not verify"
            continue
        last = session.get_one(Entry, (log_id, anchor.size - 1)).ts
        if last > (told.gen_time + timedelta(seconds=60)).strftime(MINUTE):
            yield anchor.size, "an entry is younger than the time stamp over it"


def _response(token: bytes) -> bytes:
    """The token in the answer it came in, as the library wants it."""
    return _sequence(GRANTED + token)


def _sequence(content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return b"\x30" + bytes([size]) + content
    raw = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return b"\x30" + bytes([0x80 | len(raw)]) + raw + content


def _rotations(session: Session) -> list[Finding]:
    """Keys changed as every log says, and each checkpoint is signed by the key of its size."""
    findings: list[Finding] = []
    chains: dict[str, tuple[str, ...]] = {}
    heads = session.scalars(select(LogHead).order_by(LogHead.log_id)).all()
    for head in heads:
        told = list(_bodies(session, head.log_id, "key.rotated"))
        findings += _report("I16", head.log_id, _vouched(told))
        changes = [(idx, data["old"], data["new"]) for idx, data in told if data["role"] == "log"]
        chains[head.log_id] = tuple(new for _, _, new in changes)
        if changes:
            findings += _report("I16", head.log_id, _signed(session, head, changes))
    longest = max(chains.values(), key=len, default=())
    for log_id, chain in chains.items():
        if chain and longest[-len(chain) :] != chain:  # one log alone was not told of a change
            problem = "its keys are not those of the other logs"
            findings.append(Finding(invariant="I16", subject=log_id, problem=problem))
    return findings


def _vouched(told: Sequence[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, str]]:
    """Each key is vouched for by the one in force, and both have signed."""
    now: str | None = None
    for idx, data in told:
        if data["authority"] != (now or data["authority"]):
            yield idx, "vouched for by a key that was rotated out"
        now = data["new"] if data["role"] == "log" else data["authority"]
        text = notes.rotation_text(
            origin=data["origin"], role=data["role"], old=data["old"], new=data["new"]
        ).encode()
        for name in ("authority", "new"):
            try:
                key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(data[name]))
                key.verify(base64.b64decode(data[f"{name}_signature"], validate=True), text)
            except (InvalidSignature, ValueError):
                yield idx, f"the {name} key has not signed the change"


def _signed(
    session: Session, head: LogHead, changes: Sequence[tuple[int, str, str]]
) -> Iterator[tuple[int, str]]:
    rows = session.execute(
        select(SignedCheckpoint.size, SignedCheckpoint.note)
        .where(SignedCheckpoint.log_id == head.log_id)
        .order_by(SignedCheckpoint.size)
    )
    for size, note in rows:
        before = [new for idx, _, new in changes if idx < size]
        public = bytes.fromhex(before[-1] if before else changes[0][1])
        key = notes.VerifierKey(name=head.origin, kind=notes.LOG_KEY, public=public)
        if not notes.is_signed_by(notes.parse_note(note), key):
            yield size, "a checkpoint not signed by the key of its size"
