"""Asks witnesses to cosign the system log's checkpoint (c2sp.org/tlog-witness; ledger.md 10).

A witness signs only what extends all it has signed before. Its answer that it has seen
more than we have, or something else, means that our database went back or was rewritten:
`LogShrunk`, and the caller halts the ledger.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.ledger import notes
from service.ledger.errors import LogShrunk

TIMEOUT_SECONDS = 5.0
ANSWER_BYTES_MAX = 16 * 1024
TRIES = 3

# (url, body) -> (status, text); raises WitnessUnreachable.
Post = Callable[[str, bytes], tuple[int, str]]
# (old size, size) -> consistency path in hex.
Prover = Callable[[int, int], list[str]]


class WitnessUnreachable(Exception):
    """No answer, or one that means nothing. The checkpoint stays without this cosignature."""


class WitnessFileInvalid(ValueError):
    """The file of witnesses is no list of `<vkey> <url>` lines."""


@dataclass(frozen=True, kw_only=True)
class Witness:
    """A witness we were configured with: its key, and where to send checkpoints."""

    key: notes.VerifierKey
    url: str


@dataclass(frozen=True, kw_only=True)
class Cosigned:
    """What a witness returned: its line, and when it signed by its own clock."""

    witness: str
    line: str
    signed_at: int


def load_witnesses(path: Path | None) -> tuple[Witness, ...]:
    """Reads one witness a line, `<vkey> <url>`; empty lines and `#` lines are passed over.

    Raises:
        WitnessFileInvalid: a line of another form, or a name or key that stands twice.
    """
    if path is None:
        return ()
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split()
        try:
            key = notes.parse_verifier_key(parts[0])
        except notes.NoteInvalid:
            key = None
        is_url = len(parts) == 2 and re.match(r"https?://", parts[1])
        if key is None or key.kind != notes.COSIGNER_KEY or not is_url:
            raise WitnessFileInvalid(f"{path.name}, line {number}: write <witness vkey> <url>.")
        found.append(Witness(key=key, url=parts[1].rstrip("/")))
    if len({w.key.name for w in found} | {w.key.public.hex() for w in found}) != 2 * len(found):
        raise WitnessFileInvalid(f"{path.name}: a name or key stands twice.")
    return tuple(found)


def post_over_http(url: str, body: bytes) -> tuple[int, str]:
    """One POST, without redirects. Raises WitnessUnreachable."""
    try:
        answer = httpx.post(url, content=body, timeout=TIMEOUT_SECONDS, follow_redirects=False)
    except httpx.HTTPError as error:
        raise WitnessUnreachable(type(error).__name__) from None
    if len(answer.content) > ANSWER_BYTES_MAX:
        raise WitnessUnreachable("answer too large")
    return answer.status_code, answer.text


def cosign(
    witness: Witness,
    *,
    log_id: str,
    checkpoint: notes.Checkpoint,
    note: str,
    known_size: int,
    prove: Prover,
    post: Post = post_over_http,
) -> Cosigned:
    """Submits a checkpoint, with the proof from the size that the witness has.

    Raises:
        LogShrunk: the witness has seen a larger log, or another one.
        WitnessUnreachable: no answer, a refusal, or a cosignature that does not verify.
    """
    old = min(known_size, checkpoint.size)
    for _ in range(TRIES):
        body = _request(old, prove(old, checkpoint.size), note)
        status, text = post(f"{witness.url}/add-checkpoint", body)
        if status == 200:
            return _cosigned(witness, checkpoint, text)
        if status == 422:
            raise LogShrunk(log_id=log_id, size=checkpoint.size, seen_size=old)
        if status != 409:
            raise WitnessUnreachable(f"status {status}")
        seen = _size(text)
        if seen > checkpoint.size or seen == old:  # equal sizes in conflict: another root
            raise LogShrunk(log_id=log_id, size=checkpoint.size, seen_size=seen)
        old = seen
    raise WitnessUnreachable("its size changes with every answer")


def _request(old: int, path: list[str], note: str) -> bytes:
    lines = [f"old {old}", *(notes.encode_hash(h) for h in path), "", note]
    return "\n".join(lines).encode()


def _size(text: str) -> int:
    if not re.fullmatch(r"(0|[1-9][0-9]{0,15})\n?", text):
        raise WitnessUnreachable("a conflict without a size")
    return int(text)


def _cosigned(witness: Witness, checkpoint: notes.Checkpoint, text: str) -> Cosigned:
    try:
        signatures = notes.parse_signatures(text)
    except notes.NoteInvalid:
        raise WitnessUnreachable("no cosignature in the answer") from None
    for signature in signatures:
        signed_at = notes.cosigned_at(checkpoint.text, [signature], witness.key)
        if signed_at is not None:
            return Cosigned(witness=witness.key.name, line=signature.line, signed_at=signed_at)
    raise WitnessUnreachable("its cosignature does not verify")
