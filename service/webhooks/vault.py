"""Secrets of endpoints: made here, kept encrypted, and the signatures they make.

Signing needs the secret itself, so a digest would not do. It lies under AES-256-GCM with
the deployment's `keys/webhook.key`, bound to its endpoint's id: a copy of the database
alone signs nothing. Signatures follow Standard Webhooks 1.0; they are one HMAC, for which
its Python package would bring five others along.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from service.errors import NotReady
from service.keyfiles import SigningKeyUnusable, secret_key

KEY_FILE = "webhook.key"
PREFIX = "whsec_"
SECRET_BYTES, KEY_BYTES, NONCE_BYTES = 32, 32, 12


class SecretUnreadable(Exception):
    """The sealed secret was made under another key, or for another endpoint."""


class SecretVault:
    """Seals and opens secrets. The deployment's key is read at use.

    Raises:
        NotReady: that key is missing where none may be made, or is none.
    """

    def __init__(self, keys_dir: Path, *, make: bool) -> None:
        self._path, self._make = keys_dir / KEY_FILE, make

    def _key(self) -> AESGCM:
        try:
            return AESGCM(secret_key(self._path, KEY_BYTES, make=self._make))
        except SigningKeyUnusable:
            raise NotReady({"webhook_key": "unusable"}) from None

    def seal(self, secret: str, endpoint_id: str) -> str:
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._key().encrypt(nonce, secret.encode(), endpoint_id.encode())
        return base64.b64encode(nonce + sealed).decode()

    def open(self, sealed: str, endpoint_id: str) -> str:
        """Raises SecretUnreadable as well."""
        raw = base64.b64decode(sealed)
        try:
            plain = self._key().decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], endpoint_id.encode())
        except InvalidTag:
            raise SecretUnreadable from None
        return plain.decode()


def new_secret() -> str:
    """256 random bits as `whsec_…`; shown once."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def signature_header(keys: list[str], *, event_id: str, timestamp: int, body: str) -> str:
    """`v1,<base64>` for each secret, newest first, parted by spaces."""
    signed = f"{event_id}.{timestamp}.{body}".encode()
    return " ".join(f"v1,{_hmac(key, signed)}" for key in keys)


def _hmac(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
