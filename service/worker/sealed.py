"""What a job's audit must keep to itself until its end: sealed files beside the job's own.

Coins, and which canaries a step drew, decide whether an audit means anything. They lie
encrypted under a key made from the population's secret and the job's id, apart from
checkpoints, for the next attempt's audit and nobody else (audit.md AU9, AU11).
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dp_core.audit.errors import AuditInvalid

SUFFIX = ".sealed"
NONCE_BYTES = 12


class SealedPieces:
    """`dp_core.audit.in_job.AuditPieces` in a directory. A name is bound to its content."""

    def __init__(self, directory: Path, *, split_key: bytes, job_id: str) -> None:
        self._directory = directory
        self._cipher = AESGCM(hmac.digest(split_key, f"audit of {job_id}".encode(), "sha256"))

    def save(self, name: str, content: bytes) -> None:
        """Whole or not at all, and durable when it returns."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        nonce = os.urandom(NONCE_BYTES)
        path = self._directory / f"{name}{SUFFIX}"
        partial = path.with_suffix(".partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(nonce + self._cipher.encrypt(nonce, content, name.encode()))
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(path)

    def load(self) -> Mapping[str, bytes]:
        """Every piece by its name.

        Raises:
            AuditInvalid: a file was changed, or sealed for another job.
        """
        return {path.stem: self._opened(path) for path in self._directory.glob(f"*{SUFFIX}")}

    def _opened(self, path: Path) -> bytes:
        sealed = path.read_bytes()
        try:
            return self._cipher.decrypt(
                sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], path.stem.encode()
            )
        except (InvalidTag, ValueError):
            raise AuditInvalid("sealed audit", "changed, or not of this job") from None
