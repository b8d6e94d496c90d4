"""The log's own keys: one signs checkpoints and certificates, one signs receipts (ledger.md 10).

Public halves belong into the auditor's `policy.json`, taken from the deployment, never from
a bundle (ledger.md 11.3).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service.keyfiles import signing_key
from service.ledger import notes
from service.settings import Settings

LOG_KEY_FILE, RECEIPT_KEY_FILE = "log.pem", "receipt.pem"
NEXT_LOG_KEY_FILE, NEXT_RECEIPT_KEY_FILE = "log.next.pem", "receipt.next.pem"
RETIRED_FILE = "log.retired"  # public halves of earlier log keys, oldest first


@dataclass(frozen=True, kw_only=True, repr=False)
class LedgerKeys:
    """Both private keys, and the public halves of earlier log keys. `repr` shows none."""

    log: Ed25519PrivateKey
    receipt: Ed25519PrivateKey
    retired: tuple[str, ...] = ()

    @property
    def log_public(self) -> str:
        return self.log.public_key().public_bytes_raw().hex()

    @property
    def receipt_public(self) -> str:
        return self.receipt.public_key().public_bytes_raw().hex()

    @property
    def log_chain(self) -> tuple[str, ...]:
        """Every log key so far, in hex, the present one last."""
        return (*self.retired, self.log_public)

    def followed_by(self, new: Ed25519PrivateKey) -> LedgerKeys:
        """The keys after a rotation of the log's key."""
        return replace(self, log=new, retired=self.log_chain)

    def sign_checkpoint(self, checkpoint: notes.Checkpoint) -> notes.Note:
        return notes.sign(checkpoint.text, checkpoint.origin, self.log)

    def sign_receipt(self, *, origin: str, idx: int, leaf: str, publish_by: str) -> notes.Note:
        text = notes.receipt_text(origin=origin, idx=idx, leaf=leaf, publish_by=publish_by)
        return notes.sign(text, f"{origin}/receipts", self.receipt)


def load_keys(settings: Settings) -> LedgerKeys:
    """The keys in the key folder. The embedded layout makes missing ones; production does not.

    Raises:
        SigningKeyUnusable: a file is missing in production, or holds something else.
    """
    make = settings.environment == "embedded"
    keys = LedgerKeys(
        log=signing_key(settings.keys_dir / LOG_KEY_FILE, make=make),
        receipt=signing_key(settings.keys_dir / RECEIPT_KEY_FILE, make=make),
    )
    path = settings.keys_dir / RETIRED_FILE
    told = path.read_text(encoding="ascii").split() if path.exists() else []
    # The present key stands there already when a rotation was cut off before its last step.
    return replace(keys, retired=tuple(key for key in told if key != keys.log_public))


def next_log_key(settings: Settings, *, make: bool) -> Ed25519PrivateKey:
    """The key that will follow. Raises SigningKeyUnusable: none is prepared."""
    return signing_key(settings.keys_dir / NEXT_LOG_KEY_FILE, make=make)


def planned_log_key(settings: Settings) -> str | None:
    """The public half of the key that will follow, if one is prepared."""
    path = settings.keys_dir / NEXT_LOG_KEY_FILE
    if not path.exists():
        return None
    return signing_key(path, make=False).public_key().public_bytes_raw().hex()


def next_receipt_key(settings: Settings) -> Ed25519PrivateKey:
    return signing_key(settings.keys_dir / NEXT_RECEIPT_KEY_FILE)


def adopt_next_log_key(settings: Settings) -> None:
    """Makes the prepared key the log's key; the old private half is gone. Safe to repeat."""
    keys, path = load_keys(settings), settings.keys_dir / RETIRED_FILE
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="ascii") as stream:
        stream.write("".join(f"{key}\n" for key in keys.log_chain))
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    _adopt(settings.keys_dir, NEXT_LOG_KEY_FILE, LOG_KEY_FILE)


def adopt_next_receipt_key(settings: Settings) -> None:
    _adopt(settings.keys_dir, NEXT_RECEIPT_KEY_FILE, RECEIPT_KEY_FILE)


def _adopt(folder: Path, source: str, target: str) -> None:
    (folder / source).replace(folder / target)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
