"""Personal details beside the log: committed to in an entry, readable by stewards, erasable.

An entry holds SHA-256(salt || path || value) under a 128-bit salt and never the value
(ledger.md 18.2). The value lies encrypted in `disclosure`, its key in `disclosure_key`,
wrapped by the deployment's key in `disclosure.key`. Erasure deletes both rows, salt
included, so that nobody can test a guess against the commitment; the entry and every proof
over it stay as they were.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.keyfiles import SigningKeyUnusable, secret_key
from service.ledger.entries import Draft, Receipt, append, log_of
from service.ledger.errors import DisclosuresUnavailable, LedgerNotFound
from service.ledger.models import Disclosure, DisclosureKey, Entry, LogHead
from service.ledger.repository import is_ledger_of

KEY_FILE = "disclosure.key"
KEY_BYTES, SALT_BYTES, NONCE_BYTES = 32, 16, 12
VERSION_WITH_DISCLOSURES = 2
LegalGround = Literal[
    "entered_in_error",
    "gdpr_17_1_a",  # no longer necessary
    "gdpr_17_1_b",  # consent withdrawn
    "gdpr_17_1_c",  # objection
    "gdpr_17_1_d",  # unlawfully processed
    "gdpr_17_1_e",  # legal obligation
    "other_law",
]


@dataclass(frozen=True, kw_only=True)
class Secret:
    """One personal value on its way into the vault. `repr` shows neither value nor salt."""

    path: str
    value: str
    salt: bytes

    @property
    def commitment(self) -> str:
        told = self.salt + self.path.encode() + self.value.encode()
        return hashlib.sha256(told).hexdigest()

    def __repr__(self) -> str:
        return f"Secret(path={self.path!r})"


@dataclass(frozen=True, kw_only=True, repr=False)
class Disclosed:
    """One personal value as a steward reads it."""

    log: str
    idx: int
    path: str
    salt: str
    value: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": f"{self.log}#{self.idx}/{self.path}",
            "object": "ledger.disclosure",
            "log": self.log,
            "idx": self.idx,
            "path": self.path,
            "salt": self.salt,
            "value": self.value,
        }

    @property
    def line(self) -> str:
        """Its line in `disclosures.jsonl`: ASCII, sorted keys."""
        told = {"idx": self.idx, "path": self.path, "salt": self.salt, "value": self.value}
        return json.dumps(told, sort_keys=True, separators=(",", ":"))


class Vault:
    """Encrypts each value under a key of its own. The deployment's key is read at use.

    Raises:
        DisclosuresUnavailable: that key is missing where none may be made, or is none.
    """

    def __init__(self, keys_dir: Path, *, make: bool) -> None:
        self._path, self._make = keys_dir / KEY_FILE, make

    def _master(self) -> AESGCM:
        try:
            return AESGCM(secret_key(self._path, KEY_BYTES, make=self._make))
        except SigningKeyUnusable:
            raise DisclosuresUnavailable from None

    def seal(self, value: str, place: str) -> tuple[str, str]:
        """(encrypted value, wrapped key), each bound to its place and in base64."""
        key = AESGCM.generate_key(bit_length=8 * KEY_BYTES)
        return _encrypt(AESGCM(key), value.encode(), place), _encrypt(self._master(), key, place)

    def open(self, value: str, wrapped: str, place: str) -> str:
        key = _decrypt(self._master(), wrapped, place)
        return _decrypt(AESGCM(key), value, place).decode()


def _encrypt(cipher: AESGCM, plain: bytes, place: str) -> str:
    nonce = os.urandom(NONCE_BYTES)
    return base64.b64encode(nonce + cipher.encrypt(nonce, plain, place.encode())).decode()


def _decrypt(cipher: AESGCM, text: str, place: str) -> bytes:
    raw = base64.b64decode(text)
    return cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], place.encode())


def commit(**values: str | None) -> tuple[Secret, ...]:
    """A fresh salt for each value that is given."""
    return tuple(
        Secret(path=path, value=value, salt=secrets.token_bytes(SALT_BYTES))
        for path, value in sorted(values.items())
        if value is not None
    )


def committed(given: Sequence[Secret]) -> dict[str, Any]:
    """What the entry's data gets; nothing when there is nothing to disclose."""
    return {"disclosed": {one.path: one.commitment for one in given}} if given else {}


def version(given: Sequence[Secret]) -> int:
    """The schema number of an entry that may carry commitments."""
    return VERSION_WITH_DISCLOSURES if given else 1


def keep(session: Session, vault: Vault | None, receipt: Receipt, given: Sequence[Secret]) -> None:
    """Stores the values beside the entry that commits to them, in its transaction."""
    for one in given:
        assert vault is not None, "a value to disclose needs a vault"
        value, wrapped = vault.seal(one.value, _place(receipt.log, receipt.idx, one.path))
        at = {"log_id": receipt.log, "idx": receipt.idx, "path": one.path}
        session.add(Disclosure(**at, salt=one.salt.hex(), value=value))
        session.flush()
        session.add(DisclosureKey(**at, wrapped=wrapped))
    session.flush()


def _place(log_id: str, idx: int, path: str) -> str:
    return f"{log_id}#{idx}/{path}"


def read(
    session: Session, vault: Vault, log_id: str, *, idx: int | None = None, size: int | None = None
) -> Iterable[Disclosed]:
    """The values of one log that are not erased, oldest first; of one entry, or below `size`."""
    statement = (
        select(Disclosure, DisclosureKey.wrapped)
        .join(
            DisclosureKey,
            (DisclosureKey.log_id == Disclosure.log_id)
            & (DisclosureKey.idx == Disclosure.idx)
            & (DisclosureKey.path == Disclosure.path),
        )
        .where(Disclosure.log_id == log_id)
        .order_by(Disclosure.idx, Disclosure.path)
    )
    if idx is not None:
        statement = statement.where(Disclosure.idx == idx)
    if size is not None:
        statement = statement.where(Disclosure.idx < size)
    for row, wrapped in session.execute(statement):
        value = vault.open(row.value, wrapped, _place(row.log_id, row.idx, row.path))
        yield Disclosed(log=row.log_id, idx=row.idx, path=row.path, salt=row.salt, value=value)


def redaction_key(log_id: str, idx: int, path: str) -> str:
    """The `idem` of the entry that tells of an erasure."""
    return f"{log_id}/{idx}/{path}/redaction"


def redact(
    session: Session,
    *,
    tenant_id: str,
    actor: str,
    log_id: str,
    idx: int,
    path: str,
    ground: LegalGround,
) -> Receipt:
    """Erases one value with its key and enters that, and why it was lawful.

    The same redaction again changes nothing.

    Raises:
        LedgerNotFound: the tenant's log has no such commitment.
        IdempotencyConflict: erased before on another ground.
    """
    entry = session.scalar(
        select(Entry)
        .join(LogHead, LogHead.log_id == Entry.log_id)
        .where(is_ledger_of(tenant_id), Entry.log_id == log_id, Entry.idx == idx)
    )
    if entry is None or path not in json.loads(entry.body)["data"].get("disclosed", {}):
        raise LedgerNotFound("disclosure")
    for table in (DisclosureKey, Disclosure):
        session.execute(
            delete(table).where(table.log_id == log_id, table.idx == idx, table.path == path)
        )
    draft = Draft(
        type="redaction",
        idem=redaction_key(log_id, idx, path),
        actor=actor,
        population_id=entry.population_id,
        data={"entry": idx, "ground": ground, "log": log_id, "path": path},
    )
    return append(session, log_of(session, tenant_id), draft)
