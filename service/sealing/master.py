"""The deployment's data key: one file of the keys folder, with those it followed.

`data.key` wraps the keys of hospitals; `data.retired` holds earlier ones, one in hex a
line, until nothing is wrapped by them any more. A key management service or an HSM gets
them there as any other secret: a mounted file.
"""

from __future__ import annotations

import base64
import hashlib
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from service.keyfiles import SigningKeyUnusable, secret_key
from service.sealing.errors import KeyUnavailable
from service.settings import Settings

KEY_FILE, RETIRED_FILE = "data.key", "data.retired"
KEY_BYTES, NONCE_BYTES = 32, 12


@dataclass(frozen=True, kw_only=True)
class Wrapping:
    """A key that wraps others. `id` tells which one without telling anything of it."""

    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        return hashlib.sha256(b"rldp key id\0" + self.secret).hexdigest()[:16]

    def wrap(self, key: bytes, place: str) -> str:
        nonce = os.urandom(NONCE_BYTES)
        sealed = AESGCM(self.secret).encrypt(nonce, key, place.encode())
        return base64.b64encode(nonce + sealed).decode()

    def unwrap(self, wrapped: str, place: str) -> bytes:
        """Raises KeyUnavailable: wrapped by another key, or for another place."""
        raw = base64.b64decode(wrapped)
        try:
            return AESGCM(self.secret).decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], place.encode())
        except InvalidTag:
            raise KeyUnavailable("a stored key does not open under it.") from None


class MasterKeys:
    """The present data key and its predecessors. Files are read at use.

    Raises:
        KeyUnavailable: a file is missing where none may be made, or holds something else.
    """

    def __init__(self, keys_dir: Path, *, make: bool) -> None:
        self._dir, self._make = keys_dir, make

    @classmethod
    def of(cls, settings: Settings) -> MasterKeys:
        """The embedded layout makes its key; production does not."""
        return cls(settings.keys_dir, make=settings.environment == "embedded")

    def present(self) -> Wrapping:
        try:
            key = secret_key(self._dir / KEY_FILE, KEY_BYTES, make=self._make)
        except SigningKeyUnusable as problem:
            raise KeyUnavailable(f"{problem}") from None
        return Wrapping(secret=key)

    def retired(self) -> list[Wrapping]:
        path = self._dir / RETIRED_FILE
        try:
            keys = [bytes.fromhex(w) for w in path.read_text(encoding="ascii").split()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError):
            raise KeyUnavailable(f"{RETIRED_FILE} does not hold keys in hex.") from None
        return [Wrapping(secret=key) for key in keys]

    def by_id(self, key_id: str) -> Wrapping:
        """The key that goes by this id, present or retired."""
        for key in (self.present(), *self.retired()):
            if key.id == key_id:
                return key
        raise KeyUnavailable(f"keys wrapped by {key_id} are in use, and it is not in the folder.")

    def replace(self) -> Wrapping:
        """Makes the next key the present one. The old one is durable in `data.retired` first."""
        before, new = self.present(), os.urandom(KEY_BYTES)
        kept = [key.secret.hex() for key in (*self.retired(), before)]
        _write(self._dir / RETIRED_FILE, "\n".join(dict.fromkeys(kept)) + "\n")
        _write(self._dir / KEY_FILE, new.hex() + "\n")
        return self.present()

    def forget_retired(self) -> None:
        """Empties `data.retired`. The caller knows that nothing is wrapped by its keys."""
        if self.retired():
            _write(self._dir / RETIRED_FILE, "")


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
