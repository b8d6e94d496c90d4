"""Keys in files of mode 0600: made once, never replaced, by whoever starts first."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)


class SigningKeyUnusable(Exception):
    """A key's file holds something else, or is missing where none may be made."""

    def __init__(self, path: Path, problem: str | None = None) -> None:
        self.path = path
        problem = problem or "holds no Ed25519 key. Move it away, then start again."
        super().__init__(f"{path.name} {problem}")


def signing_key(path: Path, *, make: bool = True) -> Ed25519PrivateKey:
    """The key in the file; a new one if there is no file and `make` allows it.

    Raises:
        SigningKeyUnusable: the file holds something else, or is missing.
    """
    if not path.exists():
        if not make:
            raise SigningKeyUnusable(path, "is missing. Put the deployment's key there.")
        pem = Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        write_once(path, pem)
    return _loaded(path)


def secret_key(path: Path, length: int, *, make: bool = True) -> bytes:
    """The random bytes in the file, kept as hex; new ones if there is none and `make` allows it.

    Raises:
        SigningKeyUnusable: the file holds something else, or is missing.
    """
    if not path.exists():
        if not make:
            raise SigningKeyUnusable(path, "is missing. Put the deployment's key there.")
        write_once(path, os.urandom(length).hex().encode() + b"\n")
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except ValueError:
        key = b""
    if len(key) != length:
        raise SigningKeyUnusable(path, f"does not hold {length} bytes in hex. Move it away.")
    return key


def write_once(path: Path, content: bytes) -> None:
    """Writes a file of mode 0600, durably; one that stands already is left as it is."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileExistsError):  # another process was first: its key stands
            os.link(partial, path)
    finally:
        partial.unlink()


def _loaded(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):
        raise SigningKeyUnusable(path) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyUnusable(path)
    return key
