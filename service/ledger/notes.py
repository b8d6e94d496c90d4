"""C2SP signed notes: checkpoints, cosignatures, receipts and tlog-proofs as text (ledger.md 10).

Pure functions over text and keys (c2sp.org/signed-note, tlog-checkpoint, tlog-cosignature,
tlog-proof). A note is a text of whole lines, an empty line, and signature lines
`— <name> base64(key id || signature)`. Ed25519 throughout. Roots and hashes are hex outside
a note and base64 inside. Unknown signature lines are passed over, as the formats ask.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

LOG_KEY, COSIGNER_KEY = 0x01, 0x04
PROOF_LINE = "c2sp.org/tlog-proof@v1"
RECEIPT_LINE = "dp-ledger-receipt/v1"
ROTATION_LINE = "dp-ledger-key-rotation/v1"
_SIGNATURE = re.compile(r"— ([^ +]{1,255}) ([A-Za-z0-9+/]+={0,2})")
_SIZE = re.compile(r"0|[1-9][0-9]{0,15}")


class NoteInvalid(ValueError):
    """The text is no note of the form asked for. The message never quotes it."""


@dataclass(frozen=True, kw_only=True)
class VerifierKey:
    """A public key with its name and kind; `text` is its vkey, for configuration files."""

    name: str
    kind: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        named = self.name.encode() + b"\n" + bytes([self.kind]) + self.public
        return hashlib.sha256(named).digest()[:4]

    @property
    def text(self) -> str:
        material = base64.b64encode(bytes([self.kind]) + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{material}"


@dataclass(frozen=True, kw_only=True)
class Signature:
    """One signature line."""

    name: str
    key_id: bytes
    value: bytes

    @property
    def line(self) -> str:
        return f"— {self.name} {base64.b64encode(self.key_id + self.value).decode()}\n"


@dataclass(frozen=True, kw_only=True)
class Note:
    """A text and the signatures under it; nothing is verified yet."""

    text: str
    signatures: tuple[Signature, ...]

    @property
    def full(self) -> str:
        return self.text + "\n" + "".join(signature.line for signature in self.signatures)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a log states about itself: its origin, its size, its root."""

    origin: str
    size: int
    root: str

    @property
    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{encode_hash(self.root)}\n"


def encode_hash(hex_hash: str) -> str:
    return base64.b64encode(bytes.fromhex(hex_hash)).decode()


def decode_hash(text: str) -> str:
    """Raises NoteInvalid unless the text is the base64 of 32 bytes."""
    raw = _decode(text)
    if len(raw) != 32:
        raise NoteInvalid("A hash has another length than 32 bytes.")
    return raw.hex()


def _decode(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raise NoteInvalid("Not base64.") from None
    if base64.b64encode(raw).decode() != text:  # one text per value
        raise NoteInvalid("Not canonical base64.")
    return raw


def public_key(name: str, kind: int, key: Ed25519PrivateKey) -> VerifierKey:
    return VerifierKey(name=name, kind=kind, public=key.public_key().public_bytes_raw())


def parse_verifier_key(text: str) -> VerifierKey:
    """Reads `<name>+<key id>+<base64 of kind and key>`.

    Raises:
        NoteInvalid: not a vkey of an Ed25519 log or cosigner, or its id does not fit.
    """
    name, plus, rest = text.strip().partition("+")
    key_id, second_plus, material = rest.partition("+")
    raw = _decode(material) if plus and second_plus else b""
    if not name or len(raw) != 33 or raw[0] not in (LOG_KEY, COSIGNER_KEY):
        raise NoteInvalid("Not the vkey of an Ed25519 log or witness.")
    key = VerifierKey(name=name, kind=raw[0], public=raw[1:])
    if key.key_id.hex() != key_id:
        raise NoteInvalid("The key id of the vkey does not fit its name and key.")
    return key


def parse_note(text: str) -> Note:
    """Splits a note into its text and signatures.

    Raises:
        NoteInvalid: no empty line, no signature, or a bad line after it.
    """
    body, gap, tail = text.rpartition("\n\n")
    if not gap or not tail.endswith("\n"):
        raise NoteInvalid("A note ends in an empty line and signature lines.")
    return Note(text=body + "\n", signatures=parse_signatures(tail))


def rotation_text(*, origin: str, role: str, old: str | None, new: str) -> str:
    """What the vouching and the new key sign when a key changes; keys in hex, `-` for none."""
    return f"{ROTATION_LINE}\n{origin}\n{role}\n{old or '-'}\n{new}\n"


def parse_signatures(lines: str) -> tuple[Signature, ...]:
    """Reads signature lines, as a witness returns them.

    Raises:
        NoteInvalid: none, or a line of another form.
    """
    found = []
    for line in lines.splitlines():
        match = _SIGNATURE.fullmatch(line)
        raw = _decode(match[2]) if match else b""
        if match is None or len(raw) < 5:
            raise NoteInvalid("A line is no signature line.")
        found.append(Signature(name=match[1], key_id=raw[:4], value=raw[4:]))
    if not found:
        raise NoteInvalid("No signature line.")
    return tuple(found)


def sign(text: str, name: str, key: Ed25519PrivateKey) -> Note:
    """A note signed once, by a log or receipt key."""
    signature = Signature(
        name=name,
        key_id=public_key(name, LOG_KEY, key).key_id,
        value=key.sign(text.encode()),
    )
    return Note(text=text, signatures=(signature,))


def is_signed_by(note: Note, key: VerifierKey) -> bool:
    """Whether one line is a valid signature of this log key over the text."""
    return any(
        _fits(key, signature.value, note.text.encode())
        for signature in note.signatures
        if (signature.name, signature.key_id) == (key.name, key.key_id)
    )


def cosign(text: str, name: str, key: Ed25519PrivateKey, time_seconds: int) -> Signature:
    """A witness's statement that it saw this checkpoint at this time, and only growth."""
    return Signature(
        name=name,
        key_id=public_key(name, COSIGNER_KEY, key).key_id,
        value=struct.pack(">Q", time_seconds) + key.sign(_cosigned(text, time_seconds)),
    )


def cosigned_at(text: str, signatures: Sequence[Signature], key: VerifierKey) -> int | None:
    """The newest time at which this witness cosigned the text; None if it did not."""
    times = []
    for signature in signatures:
        if (signature.name, signature.key_id) == (key.name, key.key_id):
            if len(signature.value) != 72:
                continue
            time_seconds = int(struct.unpack(">Q", signature.value[:8])[0])
            if _fits(key, signature.value[8:], _cosigned(text, time_seconds)):
                times.append(time_seconds)
    return max(times, default=None)


def _cosigned(text: str, time_seconds: int) -> bytes:
    return f"cosignature/v1\ntime {time_seconds}\n{text}".encode()


def _fits(key: VerifierKey, value: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(value, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def parse_checkpoint(text: str) -> Checkpoint:
    """Reads the text of a checkpoint note; extension lines are refused (ledger.md 10.1).

    Raises:
        NoteInvalid: another form.
    """
    lines = text.split("\n")
    if len(lines) != 4 or lines[3] or not lines[0] or not _SIZE.fullmatch(lines[1]):
        raise NoteInvalid("A checkpoint has three lines: origin, size, root.")
    return Checkpoint(origin=lines[0], size=int(lines[1]), root=decode_hash(lines[2]))


def receipt_text(*, origin: str, idx: int, leaf: str, publish_by: str) -> str:
    """What a receipt states: this leaf stands at this index and will be published in time."""
    return f"{RECEIPT_LINE}\n{origin}\n{idx}\n{encode_hash(leaf)}\n{publish_by}\n"


def tlog_proof(*, idx: int, path: Sequence[str], checkpoint: str, extra: str | None = None) -> str:
    """A self-contained proof: index, inclusion path, and a signed checkpoint.

    `extra` is base64 and not covered by the checkpoint's signature.
    """
    lines = [PROOF_LINE, *([] if extra is None else [f"extra {extra}"]), f"index {idx}"]
    return "\n".join([*lines, *(encode_hash(h) for h in path), "", checkpoint])
