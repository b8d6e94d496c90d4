"""The log's own keys: one signs checkpoints and certificates, one signs receipts (ledger.md 10).

Public halves belong into the auditor's `policy.json`, taken from the deployment, never from
a bundle (ledger.md 11.3).
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service.keyfiles import signing_key
from service.ledger import notes
from service.settings import Settings

LOG_KEY_FILE, RECEIPT_KEY_FILE = "log.pem", "receipt.pem"


@dataclass(frozen=True, kw_only=True, repr=False)
class LedgerKeys:
    """Both private keys. `repr` shows neither."""

    log: Ed25519PrivateKey
    receipt: Ed25519PrivateKey

    @property
    def log_public(self) -> str:
        return self.log.public_key().public_bytes_raw().hex()

    @property
    def receipt_public(self) -> str:
        return self.receipt.public_key().public_bytes_raw().hex()

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
    return LedgerKeys(
        log=signing_key(settings.keys_dir / LOG_KEY_FILE, make=make),
        receipt=signing_key(settings.keys_dir / RECEIPT_KEY_FILE, make=make),
    )
