"""A witness (c2sp.org/tlog-witness): cosigns a log's checkpoint if it extends all it signed.

Guarantee: of each log it never cosigns two checkpoints of which one does not extend the
other, over restarts and over several processes on one folder: the new checkpoint is on
disk before the cosignature leaves, under a lock held from the check to the write. It
holds no entry of any log. Run it outside the house whose log it watches.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from service.ledger import merkle, notes

BODY_BYTES_MAX = 64 * 1024
PROOF_LINES_MAX = 63
SIZE_TYPE = "text/x.tlog.size"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Status and text of one answer."""

    status: int
    text: str = ""
    media_type: str = "text/plain"


@dataclass(frozen=True, kw_only=True, repr=False)
class Witness:
    """One witness: its name and key, the logs it knows, the folder it remembers in."""

    name: str
    key: Ed25519PrivateKey
    logs: Sequence[notes.VerifierKey]  # a log's key carries its origin as name
    folder: Path
    clock: Callable[[], float] = time.time

    @property
    def verifier_key(self) -> notes.VerifierKey:
        return notes.public_key(self.name, notes.COSIGNER_KEY, self.key)

    def add_checkpoint(self, body: bytes) -> Answer:
        """Checks one submission and cosigns it, in the order of the protocol."""
        try:
            old, path, note = _parse(body)
            checkpoint = notes.parse_checkpoint(note.text)
        except (notes.NoteInvalid, UnicodeDecodeError):
            return Answer(status=400)
        known = [key for key in self.logs if key.name == checkpoint.origin]
        if not known:
            return Answer(status=404)
        if not any(notes.is_signed_by(note, key) for key in known):
            return Answer(status=403)
        if old > checkpoint.size:
            return Answer(status=400)
        with self._locked():
            return self._decide(old, path, checkpoint)

    def _decide(self, old: int, path: list[str], checkpoint: notes.Checkpoint) -> Answer:
        before = self.remembered(checkpoint.origin)
        size = 0 if before is None else before.size
        conflict = Answer(status=409, text=f"{size}\n", media_type=SIZE_TYPE)
        if old != size:
            return conflict
        if before is None or size == 0:
            if path:
                return Answer(status=422)
        elif size == checkpoint.size:
            if before.root != checkpoint.root:
                return conflict
            if path:
                return Answer(status=422)
        elif not merkle.extends(
            old=size, old_root=before.root, size=checkpoint.size, root=checkpoint.root, path=path
        ):
            return Answer(status=422)
        self._remember(checkpoint)
        line = notes.cosign(checkpoint.text, self.name, self.key, int(self.clock())).line
        return Answer(status=200, text=line)

    def remembered(self, origin: str) -> notes.Checkpoint | None:
        """The largest checkpoint it cosigned of a log."""
        path = self._path(origin)
        return notes.parse_checkpoint(path.read_text()) if path.exists() else None

    def _path(self, origin: str) -> Path:
        return self.folder / f"{hashlib.sha256(origin.encode()).hexdigest()}.checkpoint"

    def _remember(self, checkpoint: notes.Checkpoint) -> None:
        path = self._path(checkpoint.origin)
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(checkpoint.text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # released when the file closes
            yield


def _parse(body: bytes) -> tuple[int, list[str], notes.Note]:
    head, gap, note = body.decode().partition("\n\n")
    first, *hashes = head.split("\n")
    match = re.fullmatch(r"old (0|[1-9][0-9]{0,15})", first)
    if match is None or not gap or len(hashes) > PROOF_LINES_MAX:
        raise notes.NoteInvalid("An old size, proof lines, an empty line, a checkpoint.")
    return int(match[1]), [notes.decode_hash(line) for line in hashes], notes.parse_note(note)


def make_app(witness: Witness) -> Starlette:
    """The HTTP face: `POST /add-checkpoint` and `GET /healthz`."""

    async def add_checkpoint(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_BYTES_MAX:
                return PlainTextResponse("", status_code=413)
        answer = witness.add_checkpoint(body)
        return Response(answer.text, status_code=answer.status, media_type=answer.media_type)

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse(witness.verifier_key.text + "\n")

    return Starlette(
        routes=[
            Route("/add-checkpoint", add_checkpoint, methods=["POST"]),
            Route("/healthz", healthz),
        ]
    )
