#!/usr/bin/env python3
"""Recomputes a privacy ledger from its bundle, offline, with software of your own choice.

One file. Needs Python 3.11 and `cryptography`; with `dp-accounting` installed it also
recomputes the epsilon of every schedule that was fixed in advance. It trusts nothing in
the bundle: every hash, balance, price, limit, signature and certificate is derived again.

Checked, in this order: archive and lines; canonical bytes, index, hash chain, tree root;
closed field lists of every entry type; postings replayed from nothing; one reserve and one
settle per job, epochs and window numbers without gap, job limits; signatures of two
different stewards for every grant and release; bounds and noise of every window against
their digest, effective noise multiplier >= charged level; every price and limit to the
pico with 50-digit arithmetic; the signed checkpoint over exactly these entries, its place
in the log that witnesses watch, their cosignatures; personal values, where the bundle has
them, against what entries commit to; growth from every earlier checkpoint
you kept; every receipt; every number of every certificate against the log, and the
signature of its envelope.

One certificate can be checked without the log: CERTIFICATE.dsse.json --proof FILE --policy
FILE tells who signed it, that the log names it, and which files it covers.

Exit codes: 0 every check passed; 1 a check failed (the first bad entry is named, or the
two between which it lies); 2 wrong use, or the bundle cannot be read; 3 nothing failed,
but something asked for could not be established.

Without --policy nobody's signature is trusted, and without --previous and --steward-key a
whole log could have been written anew by whoever runs the service. Keep every bundle or
checkpoint you were given, take policy.json and the stewards' keys from the people and not
from the server, and pass them here.

policy.json: {"format": "dp-ledger-policy/1", "log_key": HEX, "receipt_key": HEX,
"system_origin": TEXT, "witnesses": [VKEY, ...], "quorum": N, "max_age_seconds": N,
"previous_required": BOOL}; optional "steward_keys": [HEX, ...]; "next_log_keys": [HEX, ...],
the log keys that follow log_key, oldest first; "tsa_certificates": [BASE64 of DER, ...].
"""

from __future__ import annotations

import argparse
import base64
import calendar
import hashlib
import json
import re
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, ROUND_FLOOR, Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from math import comb
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID

VERSION = "1.1.0"
FORMAT = "dp-ledger-bundle/1"
POLICY_FORMAT = "dp-ledger-policy/1"
PROOF_LINE = "c2sp.org/tlog-proof@v1"
DSSE_TYPE = "application/vnd.in-toto+json"
NO_LEAF = "0" * 64
LINE_BYTES = {"entries.jsonl": 64 * 1024, "settings.jsonl": 4 * 2**20}
CERTIFICATE_BYTES = 8 * 2**20
EVIDENCE_BYTES = 128 * 1024
RECEIPT_FILE_BYTES = 64 * 1024 * 1024
RECEIPT_LINE_BYTES = 4096
DISCLOSURE_BYTES = 32 * 1024
DIGITS = Context(prec=110, Emax=MAX_EMAX, Emin=MIN_EMIN)  # 50 true digits with room to cancel
PICO = 10**12
ORDERS = range(2, 65)
PLD_INTERVAL = 1e-4
LEGAL_GROUNDS = {
    "entered_in_error",
    "gdpr_17_1_a",
    "gdpr_17_1_b",
    "gdpr_17_1_c",
    "gdpr_17_1_d",
    "gdpr_17_1_e",
    "other_law",
}
REASONS_NONE = {
    "controller_private_inputs",
    "ledger_check_failed",
    "private_evaluation_uncharged",
    "sampler_not_poisson",
}
REASONS = REASONS_NONE | {
    "generator_not_os_entropy",
    "no_external_witness",
    "overlap_unstated",
    "size_declared_exact",
    "unit_by_statement",
}


class Failed(Exception):
    """A check failed. `index` is the first bad entry, None when it is none's fault."""

    def __init__(self, problem: str, index: int | None = None) -> None:
        self.problem, self.index = problem, index
        super().__init__(problem)


class Unreadable(Exception):
    """The bundle cannot be read at all."""


def require(holds: bool, problem: str) -> None:
    if not holds:
        raise Failed(problem)


# --- canonical JSON and the tree ------------------------------------------------------


def _no_float(text: str) -> Any:
    raise Failed(f"a number that is no integer: {text[:20]!r}")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    require(len({key for key, _ in pairs}) == len(pairs), "a key stands twice in one object")
    return dict(pairs)


def parse_canonical(line: bytes) -> Any:
    """The value of a line, if the line is exactly its canonical form (I14)."""
    try:
        value = json.loads(
            line.decode("ascii"),
            parse_float=_no_float,
            parse_constant=_no_float,
            object_pairs_hook=_no_duplicates,
        )
        again = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    except (ValueError, RecursionError):
        raise Failed("not JSON") from None
    _check_values(value)
    require(again.encode() == line, "not canonical: it differs from its re-serialisation")
    return value


def _check_values(value: Any) -> None:
    if isinstance(value, str):
        require(all(" " <= char <= "~" for char in value), "text beyond printable ASCII")
    elif isinstance(value, int):
        require(abs(value) < 2**53, "an integer beyond 2^53")
    elif isinstance(value, list):
        for item in value:
            _check_values(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_values(key)
            _check_values(item)


def leaf_of(body: bytes) -> str:
    return hashlib.sha256(b"\x00" + body).hexdigest()


def _node(left: str, right: str) -> str:
    return hashlib.sha256(b"\x01" + bytes.fromhex(left) + bytes.fromhex(right)).hexdigest()


def merkle_root(leaves: Sequence[str]) -> str:
    """RFC 6962 tree head, by its recursive definition turned bottom-up."""
    if not leaves:
        return hashlib.sha256().hexdigest()
    level = list(leaves)
    while len(level) > 1:  # an odd last node moves up as it is
        paired = [_node(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = paired + level[len(paired) * 2 :]
    return level[0]


def roots_at(leaves: Sequence[str], sizes: Sequence[int]) -> dict[int, str]:
    """The root at each of these sizes, in one pass over the leaves."""
    wanted, found = set(sizes), {}
    subtrees: list[tuple[int, str]] = []  # (leaves below, root), largest first
    for size, leaf in enumerate(leaves[: max(wanted, default=0)], start=1):
        width, right = 1, leaf
        while subtrees and subtrees[-1][0] == width:
            width, right = 2 * width, _node(subtrees.pop()[1], right)
        subtrees.append((width, right))
        if size in wanted:
            root = subtrees[-1][1]
            for _, left in reversed(subtrees[:-1]):
                root = _node(left, root)
            found[size] = root
    return found


def _split(width: int) -> int:
    """The largest power of two below a width of at least 2."""
    return 1 << ((width - 1).bit_length() - 1)


def _root_over(leaf: str, index: int, size: int, path: Sequence[str]) -> str:
    """The root that an inclusion path leads to, by the definition of RFC 6962 2.1.1."""
    if size == 1:
        require(not path, "an inclusion path of wrong length")
        return leaf
    require(bool(path), "an inclusion path of wrong length")
    split = _split(size)
    if index < split:
        return _node(_root_over(leaf, index, split, path[:-1]), path[-1])
    return _node(path[-1], _root_over(leaf, index - split, size - split, path[:-1]))


def includes(*, leaf: str, index: int, size: int, path: Sequence[str], root: str) -> bool:
    """Whether the path proves the leaf at `index` in the tree of that size and root."""
    if not 0 <= index < size or len(leaf) != 64:
        return False
    try:
        return _root_over(leaf, index, size, path) == root
    except Failed:
        return False


def _roots_over(old: int, size: int, path: Sequence[str], old_root: str | None) -> tuple[str, str]:
    """Old and new root that a consistency path leads to (RFC 6962 2.1.2).

    `old_root` is known on the left edge, where the path leaves it out; else None.
    """
    if old == size:
        if old_root is None:
            require(len(path) == 1, "a consistency path of wrong length")
            return path[0], path[0]
        require(not path, "a consistency path of wrong length")
        return old_root, old_root
    require(bool(path), "a consistency path of wrong length")
    split = _split(size)
    if old <= split:
        before, after = _roots_over(old, split, path[:-1], old_root)
        return before, _node(after, path[-1])
    before, after = _roots_over(old - split, size - split, path[:-1], None)
    return _node(path[-1], before), _node(path[-1], after)


def extends(*, old: int, old_root: str, size: int, root: str, path: Sequence[str]) -> bool:
    """Whether the path proves that the tree (size, root) begins with (old, old_root)."""
    if not 0 < old <= size:
        return False
    try:
        return _roots_over(old, size, path, old_root) == (old_root, root)
    except Failed:
        return False


# --- signed notes (c2sp.org/signed-note, tlog-checkpoint, tlog-cosignature) ---------------


@dataclass(frozen=True)
class Key:
    """A public key under a name; kind 1 signs notes, kind 4 cosigns checkpoints."""

    name: str
    kind: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        named = self.name.encode() + b"\n" + bytes([self.kind]) + self.public
        return hashlib.sha256(named).digest()[:4]

    def fits(self, signature: bytes, message: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True)
class Note:
    """A text and its signature lines: (name, key id, signature)."""

    text: str
    signatures: tuple[tuple[str, bytes, bytes], ...]

    def is_signed_by(self, key: Key) -> bool:
        return any(
            (name, key_id) == (key.name, key.key_id) and key.fits(value, self.text.encode())
            for name, key_id, value in self.signatures
        )

    def cosigned_at(self, key: Key) -> int | None:
        """When this witness signed, the newest time if it did more than once."""
        times = []
        for name, key_id, value in self.signatures:
            if (name, key_id) == (key.name, key.key_id) and len(value) == 72:
                (seconds,) = struct.unpack(">Q", value[:8])
                message = f"cosignature/v1\ntime {seconds}\n{self.text}".encode()
                if key.fits(value[8:], message):
                    times.append(seconds)
        return max(times, default=None)


def _base64(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raise Failed("not base64") from None
    require(base64.b64encode(raw).decode() == text, "base64 in another than its one form")
    return raw


def _hash64(text: str) -> str:
    raw = _base64(text)
    require(len(raw) == 32, "a hash of another length")
    return raw.hex()


def parse_note(raw: bytes) -> Note:
    try:
        body, gap, tail = raw.decode().rpartition("\n\n")
    except UnicodeDecodeError:
        raise Failed("a note that is no UTF-8") from None
    require(bool(gap) and tail.endswith("\n"), "not a signed note")
    signatures = []
    for line in tail[:-1].split("\n"):
        match = re.fullmatch(r"— ([^ +]{1,255}) ([A-Za-z0-9+/]+={0,2})", line)
        require(match is not None, "a bad signature line")
        assert match is not None
        value = _base64(match[2])
        require(len(value) > 4, "a bad signature line")
        signatures.append((match[1], value[:4], value[4:]))
    return Note(text=body + "\n", signatures=tuple(signatures))


@dataclass(frozen=True)
class Checkpoint:
    """What a log states: origin, size, root in hex, and the note that says so."""

    origin: str
    size: int
    root: str
    note: Note


def parse_checkpoint(raw: bytes) -> Checkpoint:
    note = parse_note(raw)
    lines = note.text.split("\n")
    form = len(lines) == 4 and bool(lines[0]) and re.fullmatch(r"[1-9][0-9]{0,15}", lines[1])
    require(bool(form), "not a checkpoint")
    return Checkpoint(origin=lines[0], size=int(lines[1]), root=_hash64(lines[2]), note=note)


@dataclass(frozen=True)
class Proof:
    """A tlog-proof: where an entry stands under which checkpoint."""

    index: int
    path: list[str]
    checkpoint: Checkpoint
    extra: bytes | None

    def holds(self, leaf: str) -> bool:
        below = self.checkpoint
        return includes(
            leaf=leaf, index=self.index, size=below.size, path=self.path, root=below.root
        )


def parse_proof(raw: bytes) -> Proof:
    head, gap, note = raw.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise Failed("not a tlog-proof") from None
    require(bool(gap) and lines[0] == PROOF_LINE and len(lines) > 1, "not a tlog-proof")
    extra = None
    if lines[1].startswith("extra "):
        extra = _base64(lines.pop(1).removeprefix("extra "))
    match = re.fullmatch(r"index (0|[1-9][0-9]{0,15})", lines[1] if len(lines) > 1 else "")
    require(match is not None and len(lines) <= 66, "not a tlog-proof")
    assert match is not None
    path = [_hash64(line) for line in lines[2:]]
    return Proof(index=int(match[1]), path=path, checkpoint=parse_checkpoint(note), extra=extra)


@dataclass(frozen=True)
class Receipt:
    """What the service promised about one entry."""

    origin: str
    index: int
    leaf: str
    publish_by: str
    note: Note


def parse_receipt(raw: bytes) -> Receipt:
    note = parse_note(raw)
    lines = note.text.split("\n")
    require(len(lines) == 6 and lines[0] == "dp-ledger-receipt/v1", "not a receipt")
    form = re.fullmatch(r"0|[1-9][0-9]{0,15}", lines[2]) and re.fullmatch(MINUTE, lines[4])
    require(bool(form) and bool(lines[1]) and not lines[5], "not a receipt")
    return Receipt(
        origin=lines[1],
        index=int(lines[2]),
        leaf=_hash64(lines[3]),
        publish_by=lines[4],
        note=note,
    )


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the auditor trusts, and asks for."""

    log_keys: tuple[str, ...]  # hex, in the order of their use
    receipt_key: bytes
    system_origin: str
    witnesses: tuple[Key, ...]
    quorum: int
    max_age_seconds: int
    previous_required: bool
    steward_keys: tuple[str, ...]
    tsa: tuple[x509.Certificate, ...]


def read_policy(path: Path) -> Policy:
    """Raises Unreadable: a policy that says something else than it seems to is no policy."""
    try:
        told = json.loads(path.read_bytes())
        steward_keys = told.pop("steward_keys", [])
        following = told.pop("next_log_keys", [])
        check_shape(following, ["hash"], "policy.next_log_keys")
        stamped_by = told.pop("tsa_certificates", [])
        check_shape(stamped_by, ["base64"], "policy.tsa_certificates")
        tsa = tuple(x509.load_der_x509_certificate(_base64(one)) for one in stamped_by)
        check_shape(told, POLICY, "policy")
        check_shape(steward_keys, ["hash"], "policy.steward_keys")
        require(told["format"] == POLICY_FORMAT, "unknown format")
        witnesses = tuple(_vkey(text) for text in told["witnesses"])
        require(len({w.public for w in witnesses}) == len(witnesses), "one witness twice")
        log_keys = (told["log_key"], *following)
        require(len(set(log_keys)) == len(log_keys), "one log key twice")
        require(told["quorum"] <= len(witnesses), "the quorum is larger than the witnesses")
    except (OSError, ValueError, AttributeError, TypeError, Failed) as problem:
        raise Unreadable(f"{path}: not a policy ({problem})") from None
    return Policy(
        log_keys=log_keys,
        receipt_key=bytes.fromhex(told["receipt_key"]),
        system_origin=told["system_origin"],
        witnesses=witnesses,
        quorum=told["quorum"],
        max_age_seconds=told["max_age_seconds"],
        previous_required=told["previous_required"],
        steward_keys=tuple(steward_keys),
        tsa=tsa,
    )


def _vkey(text: str) -> Key:
    name, _, rest = text.partition("+")
    key_id, _, material = rest.partition("+")
    raw = _base64(material)
    require(len(raw) == 33 and raw[0] == 4, "not the vkey of an Ed25519 witness")
    key = Key(name, raw[0], raw[1:])
    require(key.key_id.hex() == key_id, "the id of a vkey does not fit")
    return key


# --- arithmetic -----------------------------------------------------------------------


@lru_cache(maxsize=4096)
def step_prices(q: str, level: str) -> dict[int, int]:
    """ceil(1e12 rho) of one step at the orders 2..64 (arXiv 1908.10530, integer orders)."""
    rate, sigma = Decimal(q), Decimal(level)
    require(0 < rate <= 1 and Decimal("0.01") <= sigma <= 10**6, "rate or level out of range")
    if rate == 1:
        exact = {a: Fraction(a) / (2 * Fraction(level) ** 2) * PICO for a in ORDERS}
        return {a: -(-price.numerator // price.denominator) for a, price in exact.items()}
    with localcontext(DIGITS):
        twice = 2 * sigma * sigma
        growth = [(Decimal(j * (j - 1)) / twice).exp() - 1 for j in range(ORDERS[-1] + 1)]
        prices = {}
        for alpha in ORDERS:
            total = Decimal(1)
            for j in range(2, alpha + 1):
                total += comb(alpha, j) * rate**j * (1 - rate) ** (alpha - j) * growth[j]
            rho = total.ln() / (alpha - 1)
            prices[alpha] = int((rho * PICO).to_integral_value(ROUND_CEILING))
        return prices


def limit_pico(epsilon: str, delta: str, alpha: int) -> int:
    """floor(1e12 B) of (epsilon, delta) at one order (conversion of arXiv 2004.00010)."""
    with localcontext(DIGITS):
        d, order = Decimal(delta), Decimal(alpha)
        budget = Decimal(epsilon) - (1 - 1 / order).ln() + (d * order).ln() / (order - 1)
        return int((budget * PICO).to_integral_value(ROUND_FLOOR))


def noise_suffices(components: list[dict[str, str]], level: str) -> bool:
    """sigma_eff >= level, with 1/sigma_eff^2 = sum (bound/std)^2, in exact fractions."""
    total = sum(((Fraction(c["bound"]) / Fraction(c["std"])) ** 2 for c in components), Fraction())
    return total > 0 and total * Fraction(level) ** 2 <= 1


# --- closed field lists of every entry type ----------------------------------------------

Shape = Any  # a pattern name, a tuple (optional), a one-element list, or an object


# fmt: off
PATTERNS = {
    "text": r"[ -~]{1,200}",
    "id": r"[A-Za-z0-9_.:/#-]{1,160}",
    "code": r"[a-z0-9_]{1,40}",
    "hash": r"[0-9a-f]{64}",
    "pico": r"0|[1-9][0-9]{0,18}",
    "amount": r"-?(0|[1-9][0-9]{0,18})",
    "decimal": r"([0-9]{1,400}(\.[0-9]{1,400})?|\.[0-9]{1,400})([eE][+-]?[0-9]{1,3})?",
    "salt": r"[0-9a-f]{32}",
    "signature": r"[A-Za-z0-9+/]{86}==",
    "base64": r"[A-Za-z0-9+/]+={0,2}",
}
APPROVAL = {"approver": "id", "signature": "signature"}
DIGESTS = {"*id": "hash"}
LEVEL = {"job_step_price": ("pico",), "level": "decimal", "prices": ["pico"], "step_pico": "pico"}
BLOCK = {"amount": "pico", "block": "code", "levels": [LEVEL], "q": "decimal", "steps_max": "int"}
GRANT_TERMS = {
    "alpha_star": "int", "delta": "decimal", "epsilon": "decimal", "grant": "id", "limit": "pico",
}
RELEASE_TERMS = {"artifacts": DIGESTS, "certificate": "hash", "job": "id", "release": "id"}
TYPES: dict[str, dict[str, Shape]] = {
    "log.opened": {"origin": "text"},
    "principal.registered": {"key": "hash", "principal": "id", "role": "code"},
    "population.registered": {
        "blocks": ["code"], "overlap_with": (["id"],), "patients_public": "int",
        "patients_public_basis": "code", "population": "id", "relation": "code", "unit": "code",
        "validation_fraction": "decimal",
    },
    "grant.proposed": {
        **GRANT_TERMS, "amount": "amount", "limit_before": "pico", "reason": "code",
    },
    "grant.approved": {"grant": "id", "proposal": "int", "signature": "signature"},
    "grant.rejected": {"grant": "id", "proposal": "int", "signature": "signature"},
    "grant.effective": {**GRANT_TERMS, "approvals": [APPROVAL], "proposal": "int"},
    "reserve": {
        "adapter": {"alpha": "int", "r": "int", "target_modules": ["text"]},
        "alpha_job": ("int",), "alpha_star": "int", "base_model": "text", "blocks": [BLOCK],
        "controller": "text", "dataset_version": "text", "delta": "decimal",
        "epsilon": "decimal", "job": "id", "job_limit": "pico", "noise_source": "code",
        "other_uses": {"*code": "text"}, "patients_public": "int", "plan": "hash",
        "relation": "code", "rule": "code", "sampler": "code",
        "schedule": ([{"level": "decimal", "steps": "int"}],), "signals": ["code"],
        "steps_max": "int", "steps_per_window_max": "int", "steps_started_max": "int",
        "unit": "code",
    },
    "reserve.refused": {"free": "pico", "needed": "pico"},
    "attempt.started": {"epoch": "int", "job": "id", "versions": {"*text": "text"}, "worker": "id"},
    "window.charge": {
        "charge": "pico", "epoch": "int", "first_step": "int", "inputs": "code", "job": "id",
        "job_charge": "pico", "level": "decimal", "policy": "text", "q": "decimal",
        "settings": "hash", "steps": "int", "window": "int",
    },
    "window.done": {"epoch": "int", "job": "id", "steps_run": "int", "window": "int"},
    "window.abandoned": {"epoch": "int", "job": "id", "reason": "code", "window": "int"},
    "query.charge": {
        "block": "code", "charge": "pico", "epoch": "int", "job": "id", "level": "decimal",
        "mechanism": "code", "q": "decimal", "query": "int", "scale": "decimal",
        "sensitivity": "decimal", "step": "int",
    },
    "audit.committed": {
        "canaries": "int", "commitment": "hash", "job": "id", "manifest": "hash",
    },
    "audit.revealed": {"job": "id", "report": "hash", "seed": "hash", "verdict": "code"},
    "incident": {"epoch": "int", "job": "id", "reason": "code", "report": "hash"},
    "settle": {
        "artifacts": DIGESTS, "certificate": ("hash",), "job": "id", "job_spent": "pico",
        "returned": {"*code": "pico"}, "state": "code", "steps_started": {"*code": "int"},
        "windows": {"abandoned": "int", "charged": "int", "done": "int"},
    },
    "key.rotated": {
        "authority": "hash", "authority_signature": "signature", "new": "hash",
        "new_signature": "signature", "old": ("hash",), "origin": "text", "role": "code",
    },
    "redaction": {"entry": "int", "ground": "code", "log": "id", "path": "code"},
    "release.requested": RELEASE_TERMS,
    "release.approved": {"proposal": "int", "release": "id", "signature": "signature"},
    "release.rejected": {"proposal": "int", "release": "id", "signature": "signature"},
    "release.published": {**RELEASE_TERMS, "approvals": [APPROVAL], "proposal": "int"},
    "backup.restored": {"reason": "code", "restore": "id", "rule": "code", "seen_size": "int"},
    "restore.approved": {"proposal": "int", "restore": "id", "signature": "signature"},
    "restore.rejected": {"proposal": "int", "restore": "id", "signature": "signature"},
    "correction": {"proposal": "int", "reason": "code", "restore": "id"},
    "restore.effective": {"approvals": [APPROVAL], "proposal": "int", "restore": "id"},
}
DISCLOSED = {"disclosed": {"*code": "hash"}}
SECOND_VERSION: dict[str, dict[str, Shape]] = {
    kind: {**TYPES[kind], **DISCLOSED} for kind in ("grant.proposed", "release.requested")
} | {
    "principal.registered": {
        **TYPES["principal.registered"], "approvals": [APPROVAL], "possession": "signature",
    },
}
DISCLOSURE = {"idx": "int", "path": "code", "salt": "salt", "value": "any"}
BODY = {
    "actor": "id", "data": "any", "idem": "id", "idx": "int", "log": "id", "pop": ("id",),
    "post": [["any"]], "prev": "hash", "ts": "text", "type": "text", "v": "int",
}
POLICY = {
    "format": "text", "log_key": "hash", "max_age_seconds": "int", "previous_required": "bool",
    "quorum": "int", "receipt_key": "hash", "system_origin": "text", "witnesses": ["text"],
}
ENVELOPE = {
    "payload": "base64", "payloadType": "text",
    "signatures": [{"keyid": "hash", "sig": "signature"}],
}
CONSISTENCY = {"from": "int", "path": ["hash"], "to": "int"}
CHECKPOINT_ENTRY = {"log": "id", "root": "hash", "size": "int"}
COMPONENT = {"bound": "decimal", "id": "text", "std": "decimal"}
# fmt: on
MINUTE = r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]Z"
AFTER_SETTLE = {"release.requested", "release.approved", "release.rejected", "release.published"}


def check_shape(value: Any, shape: Shape, where: str) -> None:
    """Fails unless the value has exactly the fields and forms listed."""
    if isinstance(shape, tuple):
        if value is not None:
            check_shape(value, shape[0], where)
    elif isinstance(shape, list):
        require(isinstance(value, list), f"{where} is no list")
        for item in value:
            check_shape(item, shape[0], where)
    elif isinstance(shape, dict):
        require(isinstance(value, dict), f"{where} is no object")
        _check_fields(value, shape, where)
    elif shape == "int":
        require(type(value) is int and value >= 0, f"{where} is no count")
    elif shape == "bool":
        require(isinstance(value, bool), f"{where} is neither true nor false")
    elif shape != "any":
        fits = isinstance(value, str) and re.fullmatch(PATTERNS[shape], value)
        require(bool(fits), f"{where} is no {shape}")


def _check_fields(value: dict[str, Any], shape: dict[str, Shape], where: str) -> None:
    names = next(iter(shape))
    if names.startswith("*"):  # any names of one form
        for key, item in value.items():
            check_shape(key, names[1:], f"a name in {where}")
            check_shape(item, shape[names], where)
        return
    unknown, missing = set(value) - set(shape), set(shape) - set(value)
    require(not unknown, f"{where} has an unknown field")
    require(not missing, f"{where} lacks {min(missing, default='')}")
    for key, item in value.items():
        check_shape(item, shape[key], f"{where}.{key}")


# --- the bundle -----------------------------------------------------------------------


@dataclass(kw_only=True)
class Bundle:
    """The files of a bundle, as bytes; nothing in them is believed yet."""

    entries: list[bytes]
    settings: dict[str, Any]
    certificates: dict[str, tuple[str, Any]]  # job -> (digest, statement)
    envelopes: dict[str, tuple[bytes, list[dict[str, str]]]]  # job -> (payload, signatures)
    receipts: dict[str, list[bytes]]  # job -> lines
    releases: dict[str, bytes]  # release -> tlog-proof
    evidence: dict[str, bytes]
    manifest: dict[str, Any]
    disclosures: list[bytes] | None = None
    anchors: dict[int, bytes] = field(default_factory=dict)  # size -> time-stamp token


def read_bundle(path: Path) -> Bundle:
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive)
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as problem:
        raise Unreadable(f"{path}: not a readable bundle ({type(problem).__name__})") from None


def _read_archive(archive: zipfile.ZipFile) -> Bundle:
    names = archive.namelist()
    require(len(set(names)) == len(names), "a file stands twice in the bundle")
    if not {"manifest.json", "entries.jsonl", "settings.jsonl"} <= set(names):
        raise Unreadable("manifest.json, entries.jsonl or settings.jsonl is missing")
    bundle = Bundle(
        entries=list(_lines(archive, "entries.jsonl", LINE_BYTES["entries.jsonl"])),
        settings=_settings(archive),
        certificates={},
        envelopes={},
        receipts={},
        releases={},
        evidence={},
        manifest={},
    )
    for name in names:
        if name not in ("manifest.json", *LINE_BYTES):
            _read_evidence(archive, name, bundle)
    bundle.manifest.update(_manifest(archive))
    return bundle


EVIDENCE_FILES = ("checkpoint", "consistency.json", "system-entry.json", "system.tlog-proof")


def _read_evidence(archive: zipfile.ZipFile, name: str, bundle: Bundle) -> None:
    if name == "disclosures.jsonl":
        bundle.disclosures = list(_lines(archive, name, DISCLOSURE_BYTES))
        return
    stamped = re.fullmatch(r"anchors/([1-9][0-9]{0,15})\.tst", name)
    if stamped is not None:
        bundle.anchors[int(stamped[1])] = _whole(archive, name)
        return
    if name in EVIDENCE_FILES:
        bundle.evidence[name] = _whole(archive, name)
        return
    pattern = r"(certificates|receipts|releases)/([A-Za-z0-9_-]{1,80})(\.dsse\.json|\.[a-z-]+)"
    match = re.fullmatch(pattern, name)
    kind = match and (match[1], match[3])
    require(match is not None and kind in KINDS, "a file of unknown name in the bundle")
    assert match is not None
    if kind == ("receipts", ".txt"):
        bundle.receipts[match[2]] = list(_lines(archive, name, RECEIPT_LINE_BYTES))
    elif kind == ("releases", ".tlog-proof"):
        bundle.releases[match[2]] = _whole(archive, name)
    else:
        require(match[2] not in bundle.certificates, "two certificates of one job")
        lines = list(_lines(archive, name, CERTIFICATE_BYTES))
        require(len(lines) == 1, "a certificate is not one line")
        payload = lines[0] if match[3] == ".json" else _open_envelope(match[2], lines[0], bundle)
        digest = hashlib.sha256(payload).hexdigest()
        bundle.certificates[match[2]] = (digest, parse_canonical(payload))


KINDS = {
    ("certificates", ".dsse.json"),
    ("certificates", ".json"),
    ("receipts", ".txt"),
    ("releases", ".tlog-proof"),
}


def _open_envelope(job: str, line: bytes, bundle: Bundle) -> bytes:
    envelope = parse_canonical(line)
    check_shape(envelope, ENVELOPE, "envelope")
    require(envelope["payloadType"] == DSSE_TYPE, "an envelope of another type")
    payload = _base64(envelope["payload"])
    bundle.envelopes[job] = (payload, envelope["signatures"])
    return payload


def _whole(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as source:
        raw = source.read(EVIDENCE_BYTES + 1)
    require(len(raw) <= EVIDENCE_BYTES, f"{name} is too large")
    return raw


def _lines(archive: zipfile.ZipFile, name: str, limit: int) -> Iterator[bytes]:
    with archive.open(name) as source:
        while line := source.readline(limit + 2):
            require(line.endswith(b"\n") and len(line) <= limit + 1, f"a bad line in {name}")
            yield line[:-1]


def _settings(archive: zipfile.ZipFile) -> dict[str, Any]:
    found = {}
    for line in _lines(archive, "settings.jsonl", LINE_BYTES["settings.jsonl"]):
        digest = hashlib.sha256(line).hexdigest()
        require(digest not in found, "settings stand twice")
        found[digest] = parse_canonical(line)
    return found


def _manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    try:
        manifest = json.loads(archive.read("manifest.json"))
    except ValueError:
        raise Unreadable("manifest.json is not JSON") from None
    require(isinstance(manifest, dict) and manifest.get("format") == FORMAT, "unknown format")
    files = manifest.get("files")
    others = set(archive.namelist()) - {"manifest.json"}
    require(isinstance(files, dict) and set(files) == others, "manifest and archive differ")
    for name in sorted(others):
        digest = hashlib.sha256(archive.read(name)).hexdigest()
        require(files[name] == digest, f"{name} differs from the manifest")
    result: dict[str, Any] = manifest
    return result


# --- replay ---------------------------------------------------------------------------


@dataclass(kw_only=True)
class Population:
    blocks: list[str]
    patients_public: int
    is_counted: bool  # the declared size is the exact number in the data
    overlap: Any
    alpha: int | None = None
    delta: str = "0"
    epsilon: str = "0"
    limit: int = 0
    balances: dict[str, int] = field(default_factory=dict)


@dataclass(kw_only=True)
class Job:
    """What the log has said about one job so far."""

    population: str
    terms: dict[str, Any]
    blocks: dict[str, dict[str, Any]]
    worker: str = ""
    epoch: int = 0
    windows: dict[int, str] = field(default_factory=dict)  # window -> open, done, abandoned
    window_steps: dict[int, int] = field(default_factory=dict)
    queries: int = 0
    started: dict[str, int] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)
    job_spent: int = 0
    indexes: dict[str, list[int]] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    committed: dict[str, Any] | None = None  # canaries of its audit
    revealed: dict[str, Any] | None = None
    is_disputed: bool = False  # an audit found a fault
    settle: dict[str, Any] | None = None
    limit_at_settle: dict[str, Any] = field(default_factory=dict)
    released: bool = False
    forfeited: dict[str, int] = field(default_factory=dict)  # escrow spent by a recovery


def account(block: str, kind: str, job: str = "") -> str:
    name = f"{kind}:{job}" if job else kind
    return name if block == "train" else f"{block}/{name}"


class Replay:
    """Follows a log from nothing and keeps every balance, job, proposal and signature."""

    def __init__(self, bundle: Bundle, pinned_keys: Sequence[str]) -> None:
        self.bundle, self.pinned = bundle, set(pinned_keys)
        self.leaves: list[str] = []
        self.log = self.origin = self.ts = ""
        self.index = 0
        self.idems: set[str] = set()
        self.keys: dict[str, str] = {}
        self.is_founding = True
        self.populations: dict[str, Population] = {}
        self.jobs: dict[str, Job] = {}
        self.proposals: dict[int, dict[str, Any]] = {}
        self.settings_used: set[str] = set()
        self.published: list[dict[str, Any]] = []
        self.commitments: dict[tuple[int, str], str] = {}  # (index, path) -> digest
        self.redacted: set[tuple[str, int, str]] = set()  # (log, index, path)
        self.rotations: list[tuple[int, dict[str, Any]]] = []  # (index, data), of both roles
        self.prices_checked = 0
        self.steps: dict[str, Callable[[dict[str, Any], dict[str, Any]], dict[str, int]]] = {
            kind: getattr(self, "_" + kind.replace(".", "_")) for kind in TYPES
        }

    def run(self) -> None:
        for index, line in enumerate(self.bundle.entries):
            self.index = index
            try:
                self._entry(index, line)
            except Failed as failed:
                raise Failed(failed.problem, index) from None
            except (ArithmeticError, KeyError, TypeError, ValueError, AttributeError) as error:
                raise Failed(f"malformed ({type(error).__name__})", index) from None
        require(bool(self.leaves), "the log is empty")
        require(set(self.bundle.settings) == self.settings_used, "settings no entry names")

    def _entry(self, index: int, line: bytes) -> None:
        body = parse_canonical(line)
        check_shape(body, BODY, "body")
        self._chain(index, body)
        kind, data = body["type"], body["data"]
        shapes = {1: TYPES, 2: SECOND_VERSION}.get(body["v"], {})
        require(kind in shapes, "unknown type or version")
        check_shape(data, shapes[kind], kind)
        for path, digest in data.get("disclosed", {}).items():
            self.commitments[index, path] = digest
        if kind not in ("log.opened", "principal.registered") or body["v"] > 1:
            self.is_founding = False
        if body["pop"] is not None and kind != "population.registered":
            require(body["pop"] in self.populations, "unknown population")
        job = self.jobs.get(data.get("job", ""))
        if job is not None:
            require(job.settle is None or kind in AFTER_SETTLE, f"{kind} after settle (I6)")
            require(job.population == body["pop"], "entry and job name different populations")
            job.indexes.setdefault(kind, []).append(index)
        self._post(body, self.steps[kind](body, data))
        self.leaves.append(leaf_of(line))

    def _chain(self, index: int, body: dict[str, Any]) -> None:
        require(body["idx"] == index, f"index {index} expected")
        prev = self.leaves[-1] if self.leaves else NO_LEAF
        require(body["prev"] == prev, "prev is not the leaf before")
        require(index > 0 or body["type"] == "log.opened", "the log does not begin")
        self.log = self.log or body["log"]
        require(body["log"] == self.log, "an entry of another log")
        require(bool(re.fullmatch(MINUTE, body["ts"])), "time is no UTC minute")
        require(body["ts"] >= self.ts, "time falls")
        self.ts = body["ts"]
        require(body["idem"] not in self.idems, "idem used twice")
        self.idems.add(body["idem"])

    def _post(self, body: dict[str, Any], expected: dict[str, int]) -> None:
        """The postings are exactly those that follow from the entry; none overdraws (I1-I5)."""
        wanted = [[name, str(amount)] for name, amount in sorted(expected.items()) if amount]
        require(body["post"] == wanted, "the postings do not follow from the entry")
        require(sum(expected.values()) == 0, "postings do not sum to 0 (I3)")
        if not wanted:
            return
        balances = self._population(body).balances
        for name, amount in expected.items():
            balances[name] = balances.get(name, 0) + amount
            is_issuance = name.rpartition("/")[2] == "issuance"
            require(balances[name] >= 0 or is_issuance, f"{name} overdrawn (I2)")

    def _population(self, body: dict[str, Any]) -> Population:
        require(body["pop"] in self.populations, "unknown population")
        return self.populations[body["pop"]]

    def _job(self, data: dict[str, Any], *, is_running: bool = False) -> Job:
        require(data["job"] in self.jobs, "the job reserved nothing")
        job = self.jobs[data["job"]]
        if is_running:
            require(0 < data["epoch"] == job.epoch, "not of the latest attempt (I7)")
        return job

    # one method per type; each returns the postings that must stand in the entry

    def _log_opened(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        require(self.index == 0, "the log is opened twice")
        require(data["origin"].endswith("/" + self.log), "origin and log differ")
        self.origin = data["origin"]
        return {}

    def _principal_registered(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        require(data["role"] == "steward", "only stewards have keys")
        require(data["principal"] not in self.keys, "registered twice")
        require(data["key"] not in self.keys.values(), "one key for two people")
        if body["v"] == 1:
            require(self.is_founding, "a steward was added without approval by another")
        else:
            self._vouched(body["actor"], data)
        require(not self.pinned or data["key"] in self.pinned, "a steward key you did not pin")
        self.keys[data["principal"]] = data["key"]
        return {}

    def _vouched(self, actor: str, data: dict[str, Any]) -> None:
        """A steward after the founding: registered ones and the new one signed the same text."""
        approvers = [approval["approver"] for approval in data["approvals"]]
        require(actor in approvers, "a steward was added without approval by another")
        require(len(set(approvers)) == len(approvers), "signed twice by one person")
        require(self.keys.keys() >= set(approvers), "signed by no registered steward")
        signed = {approval["approver"]: approval["signature"] for approval in data["approvals"]}
        signed[data["principal"]] = data["possession"]
        keys = {**self.keys, data["principal"]: data["key"]}
        text = f"dp-ledger-steward/v1\n{data['principal']}\n{data['key']}\n".encode()
        for person, signature in signed.items():
            try:
                raw = base64.b64decode(signature, validate=True)
                Ed25519PublicKey.from_public_bytes(bytes.fromhex(keys[person])).verify(raw, text)
            except (InvalidSignature, ValueError):
                raise Failed("the signature does not fit") from None

    def _population_registered(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        require(body["pop"] == data["population"], "names two populations")
        require(body["pop"] not in self.populations, "registered twice")
        require(data["relation"] == "add_remove", "unknown relation")
        held_out = Decimal(data["validation_fraction"]) > 0
        blocks = ["train", "validation"] if held_out else ["train"]
        require(data["blocks"] == blocks, "blocks do not follow from the fraction")
        self.populations[body["pop"]] = Population(
            blocks=blocks,
            patients_public=data["patients_public"],
            is_counted=data["patients_public_basis"] == "counted",
            overlap=data["overlap_with"],
        )
        return {}

    def _grant_proposed(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        population = self._population(body)
        require(0 < data["alpha_star"] <= 64, "order out of range")
        if population.alpha is not None:
            same = (data["alpha_star"], data["delta"]) == (population.alpha, population.delta)
            require(same, "order or delta differs from the first grant (I13)")
        below = Decimal(data["delta"]) * population.patients_public < 1
        require(below and Decimal(data["delta"]) > 0, "delta is not below 1/patients")
        self._price(
            int(data["limit"]), limit_pico(data["epsilon"], data["delta"], data["alpha_star"])
        )
        require(int(data["limit"]) > 0, "the limit is not positive")
        amount = int(data["limit"]) - int(data["limit_before"])
        require(int(data["amount"]) == amount, "amount is not the change of the limit")
        self._propose(body, data["grant"])
        return {}

    def _propose(self, body: dict[str, Any], subject: str) -> None:
        self.proposals[self.index] = {
            "body": body,
            "subject": subject,
            "signed": {},
            "is_open": True,
            "leaf": leaf_of(self.bundle.entries[self.index]),
        }

    def _decided(self, body: dict[str, Any], subject: str, decision: str) -> dict[str, int]:
        """A decision by a registered steward over exactly this proposal (I11)."""
        data = body["data"]
        proposal = self.proposals.get(data["proposal"])
        require(proposal is not None and proposal["subject"] == subject, "no such proposal")
        assert proposal is not None
        require(proposal["is_open"], "the proposal is decided already")
        require(body["pop"] == proposal["body"]["pop"], "another population")
        key = self.keys.get(body["actor"])
        require(key is not None, "signed by no registered steward")
        assert key is not None
        require(body["actor"] not in proposal["signed"], "signed twice by one person")
        leaf = base64.b64encode(bytes.fromhex(proposal["leaf"])).decode()
        text = f"dp-ledger-approval/v1\n{self.origin}\n{leaf}\n{decision}\n".encode()
        try:
            signature = base64.b64decode(data["signature"], validate=True)
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, text)
        except (InvalidSignature, ValueError):
            raise Failed("the signature does not fit") from None
        if decision == "approve":
            proposal["signed"][body["actor"]] = data["signature"]
        else:
            proposal["is_open"] = False
        return {}

    def _grant_approved(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        return self._decided(body, data["grant"], "approve")

    def _grant_rejected(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        return self._decided(body, data["grant"], "reject")

    def _release_approved(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        return self._decided(body, data["release"], "approve")

    def _release_rejected(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        return self._decided(body, data["release"], "reject")

    def _concluded(self, body: dict[str, Any], subject: str) -> dict[str, Any]:
        """The proposal, if two people signed it, the proposer among them."""
        data = body["data"]
        proposal = self.proposals.get(data["proposal"])
        require(proposal is not None and proposal["subject"] == subject, "no such proposal")
        assert proposal is not None
        told = {a["approver"]: a["signature"] for a in data["approvals"]}
        require(proposal["is_open"] and told == proposal["signed"], "approvals differ (I11)")
        people = len(told) >= 2 and proposal["body"]["actor"] in told
        require(people and len(told) == len(data["approvals"]), "not two people (I11)")
        require(proposal["body"]["pop"] == body["pop"], "another population")
        proposal["is_open"] = False
        proposed: dict[str, Any] = proposal["body"]["data"]
        return proposed

    def _grant_effective(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        proposed = self._concluded(body, data["grant"])
        require(all(data[key] == proposed[key] for key in GRANT_TERMS), "not as proposed")
        population = self._population(body)
        require(int(proposed["limit_before"]) == population.limit, "made for another limit")
        population.alpha, population.delta = data["alpha_star"], data["delta"]
        population.epsilon, population.limit = data["epsilon"], int(data["limit"])
        amount = int(proposed["amount"])
        post = {account(b, "issuance"): -amount for b in population.blocks}
        return post | {account(b, "budget"): amount for b in population.blocks}

    def _backup_restored(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        require(data["rule"] == "charge_whole", "an unknown rule of recovery")
        self._propose(body, data["restore"])
        return {}

    def _restore_approved(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        return self._decided(body, data["restore"], "approve")

    def _restore_rejected(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        return self._decided(body, data["restore"], "reject")

    def _correction(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        """After a restored backup: all that is free or held is spent, by two people's word."""
        proposal = self.proposals.get(data["proposal"])
        named = proposal is not None and proposal["subject"] == data["restore"]
        require(named and data["reason"] == "backup_restored", "a correction of nothing")
        assert proposal is not None
        signed = proposal["signed"]
        agreed = len(signed) >= 2 and proposal["body"]["actor"] in signed
        require(proposal["is_open"] and agreed, "not two people (I11)")
        require(proposal["body"]["type"] == "backup.restored", "a correction of nothing")
        post: dict[str, int] = {}
        for name, amount in self._population(body).balances.items():
            prefix, _, rest = name.rpartition("/")
            kind, _, job_id = rest.partition(":")
            if kind not in ("budget", "escrow"):
                continue
            block = prefix or "train"
            spent = account(block, "spent")
            post[name] = -amount
            post[spent] = post.get(spent, 0) + amount
            if job_id and self.jobs[job_id].settle is None:
                forfeited = self.jobs[job_id].forfeited
                forfeited[block] = forfeited.get(block, 0) + amount
        proposal.setdefault("corrected", set()).add(body["pop"])
        return post

    def _restore_effective(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        proposal = self.proposals.get(data["proposal"], {})
        require(
            proposal.get("corrected", set()) == set(self.populations),
            "a population was left out of the recovery",
        )
        self._concluded(body, data["restore"])
        return {}

    def _price(self, told: int, computed: int) -> None:
        self.prices_checked += 1
        require(told == computed, f"{told} pico where {computed} is due ({told - computed:+d})")

    def _reserve(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        population = self._population(body)
        require(data["job"] not in self.jobs, "a second reserve (I6)")
        require(population.alpha is not None, "no effective grant")
        require(data["alpha_star"] == population.alpha, "not at the population's order")
        require(Decimal(data["delta"]) <= Decimal(population.delta), "delta above the population's")
        require(data["patients_public"] <= population.patients_public, "too many patients stated")
        require(
            data["relation"] == "add_remove" and data["sampler"] == "poisson",
            "relation or sampler without accounting",
        )
        blocks = {block["block"]: block for block in data["blocks"]}
        named = "train" in blocks and set(blocks) <= set(population.blocks)
        require(named and len(blocks) == len(data["blocks"]), "blocks are not the population's")
        require(blocks["train"]["steps_max"] == data["steps_started_max"], "steps differ")
        self._job_rule(data, blocks["train"])
        post: dict[str, int] = {}
        for name, block in blocks.items():
            amount = self._block_worst_case(data, block)
            post |= {account(name, "budget"): -amount, account(name, "escrow", data["job"]): amount}
        self.jobs[data["job"]] = Job(
            population=body["pop"], terms=data, blocks=blocks, indexes={"reserve": [self.index]}
        )
        return post

    def _job_rule(self, data: dict[str, Any], train: dict[str, Any]) -> None:
        """The job's own claim: a schedule fixed beforehand, or a filter at a fixed order."""
        limit = int(data["job_limit"])
        if data["rule"] == "pld_fixed_schedule":
            schedule = data["schedule"] or []
            named = sorted({part["level"] for part in schedule}, key=Decimal)
            fits = named == [level["level"] for level in train["levels"]]
            steps = [part["steps"] for part in schedule]
            fits = fits and all(steps) and sum(steps) == limit == data["steps_started_max"]
            require(
                fits and data["alpha_job"] is None, "the schedule is not the one that is charged"
            )
        else:
            require(data["rule"] == "rdp_filter" and data["schedule"] is None, "unknown rule")
            require(data["alpha_job"] in ORDERS, "order out of range")
            self._price(limit, limit_pico(data["epsilon"], data["delta"], data["alpha_job"]))

    def _block_worst_case(self, data: dict[str, Any], block: dict[str, Any]) -> int:
        levels = [Decimal(level["level"]) for level in block["levels"]]
        rising = all(a < b for a, b in pairwise(levels))
        require(bool(levels) and rising, "levels do not rise")
        by_level = {}
        for level in block["levels"]:
            prices = step_prices(block["q"], level["level"])
            self._price(int(level["step_pico"]), prices[data["alpha_star"]])
            require(level["prices"] == [str(prices[a]) for a in ORDERS], "prices by order differ")
            self.prices_checked += len(ORDERS)
            by_level[level["level"]] = prices[data["alpha_star"]]
            own = None if block["block"] != "train" else str(self._job_price(data, prices))
            require(level["job_step_price"] == own, "the job's own price differs")
        worst = block["steps_max"] * max(by_level.values())
        if block["block"] == "train" and data["schedule"] is not None:
            worst = sum(part["steps"] * by_level[part["level"]] for part in data["schedule"])
        self._price(int(block["amount"]), worst)
        return int(block["amount"])

    @staticmethod
    def _job_price(terms: dict[str, Any], prices: dict[int, int]) -> int:
        return 1 if terms["rule"] == "pld_fixed_schedule" else prices[terms["alpha_job"]]

    def _reserve_refused(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        require(int(data["needed"]) > int(data["free"]), "refused although it fits")
        return {}

    def _attempt_started(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        job = self._job(data)
        require(data["epoch"] > job.epoch, "the epoch does not grow (I7)")
        require(body["actor"] == data["worker"], "not entered by its worker")
        job.epoch, job.worker = data["epoch"], data["worker"]
        job.attempts.append({"epoch": data["epoch"], "versions": data["versions"]})
        return {}

    def _charge(self, job: Job, data: dict[str, Any], block: str, steps: int) -> dict[str, int]:
        """The price of a charge and its escrow -> spent, inside rate, menu and steps."""
        require(block in job.blocks, "the block was not reserved")
        terms = job.blocks[block]
        require(data["q"] == terms["q"], "another sampling rate than reserved")
        menu = [level["level"] for level in terms["levels"]]
        require(data["level"] in menu, "a level outside the menu")
        if block == "train" and job.terms["schedule"] is not None:
            self._scheduled(job, data)
        prices = step_prices(data["q"], data["level"])
        cost = steps * prices[job.terms["alpha_star"]]
        self._price(int(data["charge"]), cost)
        job.started[block] = job.started.get(block, 0) + steps
        require(job.started[block] <= terms["steps_max"], "more steps than reserved (I8)")
        job.spent[block] = job.spent.get(block, 0) + cost
        return {account(block, "escrow", data["job"]): -cost, account(block, "spent"): cost}

    def _window_charge(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        job = self._job(data, is_running=True)
        require(body["actor"] == job.worker, "charged by another worker")
        require(job.revealed is None, "a charge after the audit's coins were revealed")
        require(not job.is_disputed, "a charge after the audit found a fault")
        require(data["inputs"] in ("public", "dp"), "a controller input that is not public or dp")
        require(data["window"] == len(job.windows), f"window {len(job.windows)} expected (I7)")
        # only the newest can be open: each had to end before the next was charged
        is_open = job.windows.get(len(job.windows) - 1) == "open"
        require(not is_open, "the window before is still open")
        require(1 <= data["steps"] <= job.terms["steps_per_window_max"], "steps of the window")
        require(data["first_step"] <= job.started.get("train", 0), "steps are skipped")
        post = self._charge(job, data, "train", data["steps"])
        own = self._job_price(job.terms, step_prices(data["q"], data["level"]))
        self._price(int(data["job_charge"]), data["steps"] * own)
        job.job_spent += int(data["job_charge"])
        require(job.job_spent <= int(job.terms["job_limit"]), "the job's limit is passed (I8)")
        self._noise(data)
        job.windows[data["window"]] = "open"
        job.window_steps[data["window"]] = data["steps"]
        return post

    @staticmethod
    def _scheduled(job: Job, data: dict[str, Any]) -> None:
        """Each started step has the level registered for its place; redone ones count on."""
        first = job.started.get("train", 0)
        last, begin = first + data["steps"], 0
        for part in job.terms["schedule"]:
            end = begin + part["steps"]
            if begin < last and first < end:  # a step past the whole schedule fails as I8
                require(data["level"] == part["level"], "another level than the schedule's")
            begin = end

    def _noise(self, data: dict[str, Any]) -> None:
        settings = self.bundle.settings.get(data["settings"])
        require(settings is not None, "the window's settings are missing")
        check_shape(settings, {"groups": [COMPONENT], "signals": [COMPONENT]}, "settings")
        assert settings is not None
        components = [*settings["groups"], *settings["signals"]]
        require(len({c["id"] for c in components}) == len(components), "a component stands twice")
        require(bool(settings["groups"]), "no clip group")
        require(noise_suffices(components, data["level"]), "less noise than the charged level")
        self.settings_used.add(data["settings"])

    def _window_done(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        job = self._job(data, is_running=True)
        require(job.windows.get(data["window"]) == "open", "the window is not open")
        require(data["steps_run"] <= job.window_steps[data["window"]], "more steps than charged")
        job.windows[data["window"]] = "done"
        return {}

    def _window_abandoned(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        job = self._job(data)
        require(data["epoch"] >= job.epoch, "by an older attempt (I7)")
        require(job.windows.get(data["window"]) == "open", "the window is not open")
        job.windows[data["window"]] = "abandoned"
        return {}

    def _audit_committed(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        """Which canaries take part is fixed before anything is drawn."""
        job = self._job(data)
        require(body["actor"] == job.worker, "committed by another worker")
        require(job.committed is None, "coins are committed twice")
        require(not job.windows, "coins are committed after the first charge")
        job.committed = data
        return {}

    def _audit_revealed(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        job = self._job(data)
        require(body["actor"] == job.worker, "revealed by another worker")
        require(job.committed is not None, "coins are revealed that were never committed")
        require(job.revealed is None, "coins are revealed twice")
        require("open" not in job.windows.values(), "coins are revealed inside a window")
        assert job.committed is not None
        opened = hashlib.sha256(bytes.fromhex(data["seed"] + job.committed["manifest"]))
        require(
            opened.hexdigest() == job.committed["commitment"],
            "the revealed seed does not open the commitment",
        )
        require(data["verdict"] in ("pass", "inconclusive", "fail"), "unknown verdict")
        job.revealed = data
        return {}

    def _incident(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        job = self._job(data, is_running=True)
        require(body["actor"] == job.worker, "entered by another worker")
        require(data["reason"] == "audit_failed", "an incident of an unknown kind")
        job.is_disputed = True
        return {}

    def _query_charge(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        job = self._job(data, is_running=True)
        require(body["actor"] == job.worker, "charged by another worker")
        require(data["block"] == "validation", "a query outside the validation block")
        require(data["query"] == job.queries, f"query {job.queries} expected")
        component = {"bound": data["sensitivity"], "std": data["scale"]}
        require(noise_suffices([component], data["level"]), "less noise than the charged level")
        job.queries += 1
        return self._charge(job, data, "validation", 1)

    def _settle(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        job, population = self._job(data), self._population(body)
        require("open" not in job.windows.values(), "a window is still open")
        failed = job.revealed is not None and job.revealed["verdict"] == "fail"
        require(
            not data["artifacts"] or not (job.is_disputed or failed),
            "files of a job whose audit found a fault",
        )
        outcomes = list(job.windows.values())
        counted = {
            "abandoned": outcomes.count("abandoned"),
            "charged": len(outcomes),
            "done": outcomes.count("done"),
        }
        require(data["windows"] == counted, "windows are counted wrongly")
        require(int(data["job_spent"]) == job.job_spent, "job_spent differs")
        started = {name: job.started.get(name, 0) for name in job.blocks}
        require(data["steps_started"] == started, "steps are counted wrongly")
        post: dict[str, int] = {}
        for name, block in job.blocks.items():
            rest = int(block["amount"]) - job.spent.get(name, 0) - job.forfeited.get(name, 0)
            require(data["returned"].get(name) == str(rest), "returned amount differs")
            post |= {account(name, "escrow", data["job"]): -rest, account(name, "budget"): rest}
        require(set(data["returned"]) == set(job.blocks), "returned names other blocks")
        job.settle = data
        job.limit_at_settle = {
            "alpha_star": population.alpha,
            "delta": population.delta,
            "epsilon": population.epsilon,
            "pico": str(population.limit),
        }
        return post

    def _key_rotated(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        """The vouching key and the new one have signed; whether they are pinned, policy tells."""
        require(body["pop"] is None, "a key belongs to no population")
        require(data["role"] in ("log", "receipt"), "unknown role of a key")
        require(data["new"] not in (data["old"], data["authority"]), "no new key")
        log_keys = [r for _, r in self.rotations if r["role"] == "log"]
        if data["role"] == "log":
            require(data["old"] == data["authority"], "the old log key does not vouch")
            used = {r["old"] for r in log_keys} | {r["new"] for r in log_keys}
            require(data["new"] not in used, "a log key used before")
        now = log_keys[-1]["new"] if log_keys else data["authority"]
        require(data["authority"] == now, "vouched for by a key that was rotated out")
        text = (
            f"dp-ledger-key-rotation/v1\n{data['origin']}\n{data['role']}\n"
            f"{data['old'] or '-'}\n{data['new']}\n"
        ).encode()
        for name in ("authority", "new"):
            key = Key("", 1, bytes.fromhex(data[name]))
            signed = key.fits(_base64(data[f"{name}_signature"]), text)
            require(signed, f"the signature of the {name} key does not fit")
        self.rotations.append((self.index, data))
        return {}

    def _redaction(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        """A value of an earlier entry was erased; what the entry says stays as it was."""
        require(data["ground"] in LEGAL_GROUNDS, "no legal ground of the list")
        what = (data["log"], data["entry"], data["path"])
        require(what not in self.redacted, "redacted twice")
        if data["log"] == self.log:
            require(what[1:] in self.commitments, "the entry discloses nothing of this name")
            erased = json.loads(self.bundle.entries[data["entry"]])
            require(erased["pop"] == body["pop"], "another population")
        self.redacted.add(what)
        return {}

    def _release_requested(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        job = self._job(data)
        require(job.settle is not None, "released before settle (I12)")
        assert job.settle is not None
        same = (data["artifacts"], data["certificate"]) == (
            job.settle["artifacts"],
            job.settle["certificate"],
        )
        require(same and bool(data["artifacts"]), "not the artifacts and certificate of settle")
        self._propose(body, data["release"])
        return {}

    def _release_published(self, body: dict[str, Any], data: dict[str, Any]) -> dict[str, int]:
        proposed = self._concluded(body, data["release"])
        require(all(data[key] == proposed[key] for key in RELEASE_TERMS), "not as requested")
        job = self._job(data)
        require(not job.released, "released twice")
        job.released = True
        self.published.append(body)
        return {}


# --- personal values that entries commit to -----------------------------------------------


def check_disclosures(replay: Replay) -> tuple[int, list[str]]:
    """Every value shown is the one committed to; how many, and what is neither shown nor erased.

    A bundle without `disclosures.jsonl` is made for callers who may not see them.
    """
    lines = replay.bundle.disclosures
    if lines is None:
        return 0, []
    shown: set[tuple[int, str]] = set()
    for line in lines:
        told = _disclosure(line)
        place = (told["idx"], told["path"])
        require(place in replay.commitments, "a disclosure that no entry commits to")
        require(place not in shown, "one disclosure twice")
        shown.add(place)
        if (replay.log, *place) in replay.redacted:
            raise Failed("a value is disclosed after its redaction", place[0])
        committed = bytes.fromhex(told["salt"]) + told["path"].encode() + told["value"].encode()
        if hashlib.sha256(committed).hexdigest() != replay.commitments[place]:
            raise Failed("the disclosure is not what the entry commits to", place[0])
    missing = [
        f"disclosure of entry {index}: neither shown nor redacted here"
        for index, path in sorted(set(replay.commitments) - shown)
        if (replay.log, index, path) not in replay.redacted
    ]
    return len(shown), missing


def _disclosure(line: bytes) -> dict[str, Any]:
    try:
        told = json.loads(line.decode("ascii"), object_pairs_hook=_no_duplicates)
        again = json.dumps(told, sort_keys=True, separators=(",", ":"))
        check_shape(told, DISCLOSURE, "disclosure")
        require(isinstance(told["value"], str), "a disclosure is no text")
        told["value"].encode()
    except (ValueError, RecursionError, TypeError):
        raise Failed("a bad line in disclosures.jsonl") from None
    require(again.encode() == line, "a bad line in disclosures.jsonl")
    result: dict[str, Any] = told
    return result


# --- certificates ---------------------------------------------------------------------


class Certificates:
    """Every number of every certificate against the replayed log."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        # job, q, (level, steps) of each part, delta, claimed epsilon
        self.schedules: list[tuple[str, str, tuple[tuple[str, int], ...], str, str]] = []

    def run(self) -> None:
        found = self.replay.bundle.certificates
        named = {}
        for job_id, job in self.replay.jobs.items():
            if job.settle is not None and job.settle["certificate"] is not None:
                named[job_id] = job
        require(set(found) <= set(named), "a certificate that no settle entry names")
        for job_id, job in named.items():
            index = job.indexes["settle"][0]
            if job_id not in found:
                raise Failed(f"the certificate of {job_id} is missing", index)
            try:
                self._check(job_id, job, *found[job_id])
            except Failed as failed:
                raise Failed(f"certificate of {job_id}: {failed.problem}", index) from None
            except (ArithmeticError, KeyError, TypeError, ValueError, AttributeError) as error:
                problem = f"certificate of {job_id} is malformed ({type(error).__name__})"
                raise Failed(problem, index) from None

    def _check(self, job_id: str, job: Job, digest: str, statement: dict[str, Any]) -> None:
        assert job.settle is not None
        require(digest == job.settle["certificate"], "its digest is not the one in settle")
        require(statement["_type"] == "https://in-toto.io/Statement/v1", "not an in-toto statement")
        subjects = {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}
        require(subjects == job.settle["artifacts"], "other artifacts than settle")
        predicate = statement["predicate"]
        self._claim(job_id, job, predicate["claim"])
        self._validation(job_id, job, predicate["validation"])
        self._scope(job_id, job, predicate["scope"])
        self._evidence(job, predicate["evidence"])
        self._verdict(job, predicate)
        self._training(job, predicate)

    def _training(self, job: Job, predicate: dict[str, Any]) -> None:
        """What the trainer says about itself must be what the log charged."""
        told, claim = predicate["training_claim"], predicate["claim"]
        for name in ("alpha_job", "delta", "epsilon", "relation", "rule", "unit"):
            require(told[name] == claim[name], f"two values of {name}")
        require(told["plan_digest"] == job.terms["plan"], "trained under another plan")
        held_out = predicate["validation"]
        epsilon = None if held_out is None else held_out["epsilon"]
        require(told["validation_block_epsilon"] == epsilon, "two values of the validation epsilon")
        steps, mechanism = predicate["steps"], predicate["mechanism"]
        started = job.started.get("train", 0)
        require(steps["started"] == started, "steps started differ from those charged")
        require(steps["finished"] <= started, "more steps finished than charged")
        require(steps["started_max"] == job.terms["steps_started_max"], "another step limit")
        train = job.blocks["train"]
        menu = [level["level"] for level in train["levels"]]
        same = (mechanism["noise_levels"], mechanism["sampling_probability"]) == (menu, train["q"])
        same = same and mechanism["sampler"] == job.terms["sampler"]
        changing = len(job.terms["schedule"] or []) > 1
        schedule = job.terms["schedule"] if changing else None
        require(same and mechanism.get("noise_schedule") == schedule, "another mechanism")
        if mechanism["noise_source"] != "os_entropy":
            require("generator_not_os_entropy" in predicate["reasons"], "a reservation is left out")

    def _claim(self, job_id: str, job: Job, claim: dict[str, Any]) -> None:
        for name in (
            "alpha_job",
            "delta",
            "epsilon",
            "relation",
            "rule",
            "steps_started_max",
            "unit",
        ):
            require(claim[name] == job.terms[name], f"claim.{name} differs from the log")
        if claim["rule"] == "pld_fixed_schedule":
            parts = tuple((part["level"], part["steps"]) for part in job.terms["schedule"])
            q = job.blocks["train"]["q"]
            self.schedules.append((job_id, q, parts, claim["delta"], claim["epsilon"]))

    def _validation(self, job_id: str, job: Job, told: dict[str, Any] | None) -> None:
        block = job.blocks.get("validation")
        require((told is None) == (block is None), "validation differs from the log")
        if told is None or block is None:
            return
        same = told["delta"] == job.terms["delta"] and told["evaluations_max"] == block["steps_max"]
        require(same and told["unit"] == job.terms["unit"], "validation differs from the log")
        parts = ((block["levels"][0]["level"], block["steps_max"]),)
        self.schedules.append((job_id, block["q"], parts, told["delta"], told["epsilon"]))

    def _scope(self, job_id: str, job: Job, scope: dict[str, Any]) -> None:
        require((scope["job"], scope["population"]) == (job_id, job.population), "another scope")
        limit = scope["population_limit"]
        require(
            {k: limit[k] for k in job.limit_at_settle} == job.limit_at_settle,
            "the population's limit differs",
        )
        spent = {name: str(job.spent.get(name, 0)) for name in job.blocks}
        require(scope["spent_pico"] == spent, "spent differs")
        overlap = self.replay.populations[job.population].overlap
        require(scope["overlap_with"] == overlap, "the overlap statement differs")

    def _evidence(self, job: Job, evidence: dict[str, Any]) -> None:
        replay = self.replay
        require((evidence["log"], evidence["origin"]) == (replay.log, replay.origin), "another log")
        before = {k: v for k, v in job.indexes.items() if k not in AFTER_SETTLE | {"settle"}}
        told, tree = evidence["indexes"], evidence["tree"]
        # a window still open is abandoned by settle itself, after the certificate was made
        for kind, indexes in before.items():
            until = [i for i in indexes if i < tree["size"]]
            require(told.get(kind, []) == until, f"indexes of {kind} differ")
        require(set(told) <= set(before), "indexes of other entries")
        require(evidence["attempts"] == job.attempts, "attempts differ")
        require(evidence["plan"] == job.terms["plan"], "another plan")
        self._audit(job, evidence.get("empirical_audit"))
        settled = job.indexes["settle"][0]
        require(0 < tree["size"] <= settled, "the tree is younger than settle")
        require(tree["root"] == merkle_root(replay.leaves[: tree["size"]]), "the root differs")

    def _audit(self, job: Job, told: dict[str, Any] | None) -> None:
        """Its files leave with the adapter; a model whose audit failed does not.

        PASS needs an audit of the job's own steps: coins committed before, revealed after.
        """
        if told is None:
            require(job.revealed is None, "the audit of the job's own steps is left out")
            return
        assert job.settle is not None
        files = set(job.settle["artifacts"].values())
        require({told["report_sha256"], told["scores_sha256"]} <= files, "another audit report")
        require(told["verdict"] in ("PASS", "INCONCLUSIVE"), "the audit found a fault")
        require(told["self_test"] in ("PASS", "INCONCLUSIVE"), "the self-test found a fault")
        if job.revealed is None:
            require(told["tier"] == "T1", "an audit of steps whose coins were never revealed")
            require(told["verdict"] == "INCONCLUSIVE", "a verdict that one tier cannot give")
            return
        require(told["report_sha256"] == job.revealed["report"], "another audit than revealed")
        require(told["verdict"].lower() == job.revealed["verdict"], "another verdict than revealed")

    def _verdict(self, job: Job, predicate: dict[str, Any]) -> None:
        reasons = set(predicate["reasons"])
        require(reasons <= REASONS, "an unknown reason")
        due = {"no_external_witness"} if predicate["evidence"]["witnesses"] == 0 else set()
        if job.terms["noise_source"] != "os_entropy":
            due.add("generator_not_os_entropy")
        if job.terms["unit"] == "record" or predicate["unit"]["enforced_by"] == "statement":
            due.add("unit_by_statement")
        if self.replay.populations[job.population].overlap is None:
            due.add("overlap_unstated")
        if self.replay.populations[job.population].is_counted:
            due.add("size_declared_exact")
        require(due <= reasons, "a reservation is left out")
        verdict = "none" if reasons & REASONS_NONE else "conditional" if reasons else "full"
        require(predicate["verdict"] == verdict, "the verdict does not follow from the reasons")
        require(verdict != "none" or not job.released, "released without a claim")


def check_schedules(schedules: Sequence[tuple[Any, ...]]) -> int:
    """Recomputes each PLD epsilon, all parts composed, with dp_accounting; a claim below it
    fails.

    Raises:
        ImportError: dp_accounting is not installed.
    """
    import dp_accounting
    from dp_accounting import pld

    @lru_cache(maxsize=4096)
    def epsilon(q: str, parts: tuple[tuple[str, int], ...], delta: str) -> Decimal:
        accountant = pld.PLDAccountant(
            dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
            value_discretization_interval=PLD_INTERVAL,
        )
        for level in sorted({part[0] for part in parts}, key=Decimal):
            step = dp_accounting.GaussianDpEvent(float(level))
            if float(q) < 1:
                step = dp_accounting.PoissonSampledDpEvent(float(q), step)
            steps = sum(n for name, n in parts if name == level)
            accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
        found = Decimal(repr(float(accountant.get_epsilon(float(delta)))))
        return found.quantize(Decimal("0.0001"), rounding=ROUND_CEILING)

    for job_id, q, parts, delta, claimed in schedules:
        due = epsilon(q, parts, delta)
        if Decimal(claimed) < due:
            raise Failed(f"certificate of {job_id} claims epsilon {claimed}, the PLD gives {due}")
    return len(schedules)


# --- RFC 3161 time stamps -----------------------------------------------------------------

SIGNED_DATA, TST_INFO = "2a864886f70d010702", "2a864886f70d0109100104"
CONTENT_TYPE, MESSAGE_DIGEST = "2a864886f70d010903", "2a864886f70d010904"
HASHES: dict[str, hashes.HashAlgorithm] = {
    "608648016503040201": hashes.SHA256(),
    "608648016503040202": hashes.SHA384(),
    "608648016503040203": hashes.SHA512(),
}


def der(raw: bytes) -> list[tuple[int, bytes, bytes]]:
    """The values that stand side by side in DER: (tag, content, whole)."""
    found, at = [], 0
    while at < len(raw):
        require(len(raw) - at >= 2 and raw[at] & 0x1F != 0x1F, "not DER")
        tag, length, start = raw[at], raw[at + 1], at + 2
        if length >= 0x80:
            count = length & 0x7F
            require(1 <= count <= 4 and len(raw) >= start + count, "not DER")
            length = int.from_bytes(raw[start : start + count], "big")
            start += count
        require(len(raw) >= start + length, "not DER")
        found.append((tag, raw[start : start + length], raw[at : start + length]))
        at = start + length
    return found


def _inside(value: tuple[int, bytes, bytes], tag: int) -> list[tuple[int, bytes, bytes]]:
    require(value[0] == tag, "a time stamp of another form")
    return der(value[1])


@dataclass(frozen=True)
class TimeStamp:
    """What a token says, and what its signature is over; nothing is trusted yet."""

    digest: bytes
    seconds: int
    certificates: tuple[x509.Certificate, ...]
    signed: bytes
    signature: bytes
    algorithm: hashes.HashAlgorithm


def parse_time_stamp(raw: bytes) -> TimeStamp:
    """Reads a TimeStampToken of one signer (RFC 3161 2.4.2, RFC 5652 5).

    Raises:
        Failed: another form, or the signed digest is not that of the content.
    """
    try:
        return _time_stamp(raw)
    except (IndexError, ValueError, KeyError, OverflowError):
        raise Failed("a malformed time stamp") from None


def _time_stamp(raw: bytes) -> TimeStamp:
    (token,) = der(raw)
    kind, wrapped = _inside(token, 0x30)
    require(kind[1].hex() == SIGNED_DATA, "a time stamp of another form")
    (signed_data,) = _inside(wrapped, 0xA0)
    parts = _inside(signed_data, 0x30)
    kind, held = _inside(parts[2], 0x30)
    require(kind[1].hex() == TST_INFO, "a signature over something else than a time stamp")
    ((tag, content, _),) = _inside(held, 0xA0)
    require(tag == 0x04, "a time stamp of another form")
    certificates = [
        x509.load_der_x509_certificate(one[2])
        for part in parts[3:]
        if part[0] == 0xA0
        for one in der(part[1])
        if one[0] == 0x30
    ]
    (signer,) = _inside(parts[-1], 0x31)
    fields = _inside(signer, 0x30)
    algorithm = HASHES[_inside(fields[2], 0x30)[0][1].hex()]
    require(fields[3][0] == 0xA0 and fields[5][0] == 0x04, "a time stamp of another form")
    told = {_inside(one, 0x30)[0][1].hex(): _inside(one, 0x30)[1] for one in der(fields[3][1])}
    ((_, content_type, _),) = _inside(told[CONTENT_TYPE], 0x31)
    ((_, digest, _),) = _inside(told[MESSAGE_DIGEST], 0x31)
    fits = hashlib.new(algorithm.name, content).digest() == digest
    require(fits and content_type.hex() == TST_INFO, "the time stamp was changed")
    info = _inside(der(content)[0], 0x30)
    imprint = _inside(info[2], 0x30)
    require(_inside(imprint[0], 0x30)[0][1].hex() == "608648016503040201", "not over a SHA-256")
    require(info[4][0] == 0x18, "a time stamp without a time")
    text = info[4][1].decode("ascii")
    require(bool(re.fullmatch(r"[0-9]{14}(\.[0-9]+)?Z", text)), "a time stamp without a time")
    return TimeStamp(
        digest=imprint[1][1],
        seconds=calendar.timegm(time.strptime(text[:14], "%Y%m%d%H%M%S")),
        certificates=tuple(certificates),
        signed=b"\x31" + fields[3][2][1:],  # a SET, as RFC 5652 5.4 has it
        signature=fields[5][1],
        algorithm=algorithm,
    )


def require_stamped(stamp: TimeStamp, pinned: Sequence[x509.Certificate]) -> None:
    """Fails unless a pinned authority, or one a pinned certificate has issued, signed it."""
    for certificate in (*stamp.certificates, *pinned):
        trusted = certificate in pinned or any(_issued(certificate, one) for one in pinned)
        if trusted and _signed_by(stamp, certificate) and _may_stamp(certificate, stamp.seconds):
            return
    raise Failed("a time stamp by no authority of the policy")


def _signed_by(stamp: TimeStamp, certificate: x509.Certificate) -> bool:
    key = certificate.public_key()
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(stamp.signature, stamp.signed, padding.PKCS1v15(), stamp.algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(stamp.signature, stamp.signed, ec.ECDSA(stamp.algorithm))
        elif isinstance(key, Ed25519PublicKey):
            key.verify(stamp.signature, stamp.signed)
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _may_stamp(certificate: x509.Certificate, seconds: int) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    begins = certificate.not_valid_before_utc.timestamp()
    in_time = begins <= seconds <= certificate.not_valid_after_utc.timestamp()
    return in_time and ExtendedKeyUsageOID.TIME_STAMPING in usage


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


# --- evidence: checkpoint, witnesses, growth, receipts --------------------------------------


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What the auditor kept from before: a root, a checkpoint, or a whole bundle."""

    size: int
    root: str
    origin: str | None = None
    note: Note | None = None
    leaves: list[str] | None = None


def read_earlier(text: str) -> Earlier:
    """SIZE:ROOT, the file of a checkpoint, or an earlier bundle.

    Raises:
        Unreadable: none of these.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,15}):([0-9a-f]{64})", text)
    if match is not None:
        return Earlier(size=int(match[1]), root=match[2])
    path = Path(text)
    if zipfile.is_zipfile(path):
        try:
            entries = read_bundle(path).entries
        except Failed as failed:
            raise Unreadable(f"{path}: {failed.problem}") from None
        leaves = [leaf_of(line) for line in entries]
        return Earlier(size=len(leaves), root=merkle_root(leaves), leaves=leaves)
    try:
        found = parse_checkpoint(path.read_bytes())
    except (OSError, Failed):
        raise Unreadable(f"{path}: no checkpoint and no bundle") from None
    return Earlier(size=found.size, root=found.root, origin=found.origin, note=found.note)


def blame_earlier(bundle: Bundle, earlier: Sequence[Earlier], index: int | None) -> None:
    """Names an entry before `index`, if what was kept shows that the log is bad before it.

    A rewritten entry is often found by what follows it: a steward's signature covers all
    that came before the proposal.
    """
    leaves = [leaf_of(line) for line in bundle.entries[:index]]
    for one in earlier:
        pairs = zip(one.leaves or (), leaves, strict=False)
        differing = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if differing is not None:
            raise Failed("the log was rewritten: the earlier bundle has another", differing)
    for one in earlier:
        is_of_log = one.origin in (None, bundle.manifest.get("origin"))
        if is_of_log and one.size <= len(leaves) and merkle_root(leaves[: one.size]) != one.root:
            raise Failed(f"the log was rewritten before size {one.size}", one.size - 1)


def _deployment(system_origin: str) -> str:
    """The system log's name without the number that each recovery adds."""
    return re.sub(r"/[0-9]{4}$", "", system_origin)


class Evidence:
    """Holds the log against what was signed, witnessed, promised and kept."""

    def __init__(self, replay: Replay, policy: Policy | None, now: float) -> None:
        self.replay, self.bundle = replay, replay.bundle
        self.policy, self.now = policy, now
        self.leaves, self.origin = replay.leaves, replay.origin
        self.open_points: list[str] = []
        self.told: dict[int, str] = {}  # index -> leaf, by somebody's signature
        self.system: Checkpoint | None = None
        self.witnesses = "no witnesses"
        self.receipts = self.envelopes = 0
        self.stamps = 0
        self.receipt_keys = set() if policy is None else {policy.receipt_key.hex()}

    def run(self, earlier: Sequence[Earlier], own_receipts: Sequence[bytes]) -> None:
        self._follow_keys()
        self._receipts(own_receipts)
        below = self._checkpoint(earlier)
        if below is not None:
            self._system(below)
            self._releases()
            self._anchors()
        elif self.policy is not None:
            self.open_points.append("no signed checkpoint in the bundle")
        for one in earlier:
            self._extends(one)
        if self.policy is not None:
            if self.policy.previous_required and not earlier:
                self.open_points.append("growth: the policy demands an earlier checkpoint")
            self._envelopes(self.policy)
            self._witness_claims(self.policy)

    def _follow_keys(self) -> None:
        """Every rotation in the log leads from one pinned log key to the next."""
        if self.policy is None:
            return
        chain = self.policy.log_keys
        for index, told in self.replay.rotations:
            if _deployment(told["origin"]) != _deployment(self.policy.system_origin):
                raise Failed("a key of another deployment", index)
            if told["authority"] not in chain:
                raise Failed("vouched for by a log key the policy does not pin", index)
            following = chain[chain.index(told["authority"]) + 1 :]
            if told["role"] == "log" and told["new"] not in following[:1]:
                raise Failed("rotated to a log key the policy does not pin", index)
            if told["role"] == "receipt":
                self.receipt_keys.add(told["new"])

    def _log_keys(self, size: int) -> list[str]:
        """The pinned keys that may sign this log at a size; one, once the log tells."""
        assert self.policy is not None
        told = [(i, r) for i, r in self.replay.rotations if r["role"] == "log"]
        if not told:
            return list(self.policy.log_keys)
        before = [r["new"] for index, r in told if index < size]
        return [before[-1] if before else told[0][1]["old"]]

    def _require_log_key(self, note: Note, origin: str, size: int, problem: str) -> None:
        if self.policy is None:
            return
        keys = list(self.policy.log_keys)
        if origin == self.origin:
            keys = self._log_keys(size)
        signed = any(note.is_signed_by(Key(origin, 1, bytes.fromhex(key))) for key in keys)
        require(signed, problem)

    def _log_signed(self, checkpoint: Checkpoint, what: str) -> None:
        problem = f"{what} is not signed by the log's key"
        self._require_log_key(checkpoint.note, checkpoint.origin, checkpoint.size, problem)

    def _system_key_follows(self, system: Checkpoint) -> None:
        """A key that this log has left may not sign the system log above it."""
        if self.policy is None or not any(r["role"] == "log" for _, r in self.replay.rotations):
            return
        (now,) = self._log_keys(len(self.leaves))
        since = self.policy.log_keys[self.policy.log_keys.index(now) :]
        signed = any(
            system.note.is_signed_by(Key(system.origin, 1, bytes.fromhex(key))) for key in since
        )
        require(signed, "the system checkpoint is signed by a log key that was rotated out")

    def _receipts(self, own: Sequence[bytes]) -> None:
        """Every leaf that was promised stands where it was promised."""
        for job, lines in self.bundle.receipts.items():
            require(job in self.replay.jobs, "receipts of an unknown job")
            for line in lines:
                index, _, note = line.partition(b" ")
                receipt = parse_receipt(_base64(note.decode("ascii", "replace")))
                require(index == str(receipt.index).encode(), "a receipt under another index")
                self._promised(receipt)
        for raw in own:
            proof = parse_proof(raw) if raw.startswith(PROOF_LINE.encode()) else None
            if proof is not None:
                require(proof.extra is not None, "a proof without a receipt")
            receipt = parse_receipt(raw if proof is None else proof.extra or b"")
            if proof is not None:
                require(proof.checkpoint.origin == self.origin, "a receipt of another log")
                self._log_signed(proof.checkpoint, "the checkpoint of a receipt")
                holds = proof.index == receipt.index and proof.holds(receipt.leaf)
                require(holds, "the proof of a receipt does not hold")
            self._promised(receipt)
        bad = [
            i for i, leaf in self.told.items() if i < len(self.leaves) and self.leaves[i] != leaf
        ]
        if bad:
            self._rewritten(min(bad), "a receipt tells another entry")

    def _promised(self, receipt: Receipt) -> None:
        self.receipts += 1  # one at a time: a long log has one for every second entry
        require(receipt.origin == self.origin, "a receipt of another log")
        if self.policy is not None:
            name = f"{receipt.origin}/receipts"
            keys = [Key(name, 1, bytes.fromhex(key)) for key in self.receipt_keys]
            signed = any(receipt.note.is_signed_by(key) for key in keys)
            require(signed, "a receipt not signed by the receipt key")
        same = self.told.setdefault(receipt.index, receipt.leaf) == receipt.leaf
        if not same:
            raise Failed("two receipts tell two entries", receipt.index)
        if receipt.index >= len(self.leaves):
            due = time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(self.now))
            if receipt.publish_by < due:
                problem = f"the log is cut: a receipt tells an entry due by {receipt.publish_by}"
                raise Failed(problem, len(self.leaves))
            self.open_points.append(f"entry {receipt.index} is not due before {receipt.publish_by}")

    def _rewritten(self, first_bad: int, problem: str) -> None:
        """A leaf commits to all before it: the edit lies after the last that still fits."""
        good = [i for i, leaf in self.told.items() if i < first_bad and self.leaves[i] == leaf]
        after = max(good, default=-1)
        place = "" if after + 1 == first_bad else f"; the first bad one is after entry {after}"
        raise Failed(f"{problem}{place}", first_bad)

    def _checkpoint(self, earlier: Sequence[Earlier]) -> Checkpoint | None:
        raw = self.bundle.evidence.get("checkpoint")
        if raw is None:
            without = not self.bundle.evidence and not self.bundle.anchors
            require(without, "proofs without a checkpoint")
            return None
        found = parse_checkpoint(raw)
        require(found.origin == self.origin, "the checkpoint of another log")
        self._log_signed(found, "the checkpoint")
        size = len(self.leaves)
        if found.size != size:
            problem = f"the checkpoint covers {found.size} entries and {size} are here"
            raise Failed(problem, min(size, found.size))
        if found.root != merkle_root(self.leaves):
            self._locate(earlier, size)
        return found

    def _locate(self, earlier: Sequence[Earlier], size: int) -> None:
        """The entries are not those that were signed: as near to the first bad one as can be."""
        for one in earlier:
            if one.leaves is not None or one.origin in (None, self.origin):
                self._extends(one)
        good = [i for i, leaf in self.told.items() if i < size]
        good += [one.size - 1 for one in earlier if one.origin in (None, self.origin)]
        after = max(good, default=-1)
        problem = f"the entries are not those of the checkpoint; the first bad one is after {after}"
        raise Failed(problem, min(after + 1, size - 1))

    def _system(self, below: Checkpoint) -> None:
        """The checkpoint stands in the log that witnesses watch, and they have signed that."""
        evidence = self.bundle.evidence
        for name in ("system-entry.json", "system.tlog-proof"):
            require(name in evidence, f"{name} is missing")
        raw = evidence["system-entry.json"]
        require(raw.endswith(b"\n"), "a bad line in system-entry.json")
        body = parse_canonical(raw[:-1])
        check_shape(body, BODY, "system entry")
        require((body["type"], body["v"]) == ("tenant.checkpoint", 1), "no tenant.checkpoint")
        check_shape(body["data"], CHECKPOINT_ENTRY, "system entry")
        told = body["data"]
        same = (told["log"], told["size"], told["root"]) == (
            self.replay.log,
            below.size,
            below.root,
        )
        require(same, "the system log tells another checkpoint of this log: a split view")
        proof = parse_proof(evidence["system.tlog-proof"])
        require(proof.index == body["idx"], "the proof is of another system entry")
        require(proof.holds(leaf_of(raw[:-1])), "the system entry is not under its checkpoint")
        self.system = proof.checkpoint
        if self.policy is not None:
            require(self.system.origin == self.policy.system_origin, "another system log")
        self._log_signed(self.system, "the system checkpoint")
        self._system_key_follows(self.system)
        self._cosigned(self.system)

    def _cosigned(self, system: Checkpoint) -> None:
        policy = self.policy
        if policy is None or not policy.witnesses:
            return
        times = [system.note.cosigned_at(key) for key in policy.witnesses]
        signed = sorted((t for t in times if t is not None), reverse=True)
        self.witnesses = f"witnesses {len(signed)} of {len(policy.witnesses)}"
        if len(signed) < policy.quorum:
            self.open_points.append(f"quorum: {len(signed)} of {policy.quorum} witnesses signed")
        elif policy.quorum:
            age = int(self.now) - signed[policy.quorum - 1]
            self.witnesses += f" ({age} s old)"
            if age > policy.max_age_seconds:
                self.open_points.append(f"age: cosigned {age} s ago, over {policy.max_age_seconds}")

    def _releases(self) -> None:
        """Each published release carries its own proof, and it is one of this log."""
        published = {body["data"]["release"]: body["idx"] for body in self.replay.published}
        require(set(self.bundle.releases) <= set(published), "a proof of no published release")
        for release, raw in self.bundle.releases.items():
            proof, index = parse_proof(raw), published[release]
            require(proof.checkpoint.origin == self.origin, "a release proof of another log")
            self._log_signed(proof.checkpoint, "the checkpoint of a release proof")
            body = self.bundle.entries[index]
            if (proof.index, proof.extra) != (index, body) or not proof.holds(leaf_of(body)):
                raise Failed(f"the proof of release {release} does not hold", index)

    def _extends(self, one: Earlier) -> None:
        if one.origin is not None and one.origin != self.origin:
            self._system_extends(one)
            return
        if one.note is not None:
            problem = "the earlier checkpoint has another signature"
            self._require_log_key(one.note, self.origin, one.size, problem)
        size, here = one.size, len(self.leaves)
        if one.leaves is not None:
            pairs = zip(one.leaves, self.leaves, strict=False)
            differing = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            if differing is not None:
                raise Failed("the log was rewritten: the earlier bundle has another", differing)
        if size > here:
            problem = f"the log was rewritten or cut: it had {size} entries and has {here}"
            raise Failed(problem, here)
        if merkle_root(self.leaves[:size]) != one.root:
            self._rewritten_before(size)

    def _rewritten_before(self, size: int) -> None:
        good = [i for i, leaf in self.told.items() if i < size and self.leaves[i] == leaf]
        after = max(good, default=-1)
        problem = f"the log was rewritten: it does not extend the root at size {size}"
        raise Failed(f"{problem}; the first bad entry is after {after}", min(after + 1, size - 1))

    def _system_extends(self, one: Earlier) -> None:
        system = self.system
        require(
            system is not None and one.origin == system.origin,
            "an earlier checkpoint of another log",
        )
        assert system is not None and one.note is not None
        problem = "the earlier checkpoint has another signature"
        self._require_log_key(one.note, system.origin, one.size, problem)
        if one.size == system.size:
            require(one.root == system.root, "two system logs of one size: a split view")
            return
        require(one.size < system.size, "the system log is shorter than it was: a rollback")
        raw = self.bundle.evidence.get("consistency.json")
        if raw is None:
            self.open_points.append(
                "growth of the system log: ask for a bundle with since= and system_since="
            )
            return
        told = _consistency(raw)["system"]
        if (told["from"], told["to"]) != (one.size, system.size):
            self.open_points.append(f"growth of the system log: ask with system_since={one.size}")
            return
        holds = extends(
            old=one.size,
            old_root=one.root,
            size=system.size,
            root=system.root,
            path=told["path"],
        )
        require(holds, "the system log does not extend the earlier checkpoint: a split view")

    def _anchors(self) -> None:
        """Each time stamp is over this log's checkpoint of that size, and not before its time."""
        roots = roots_at(self.leaves, list(self.bundle.anchors))
        for size, raw in sorted(self.bundle.anchors.items()):
            require(size in roots, "a time stamp beyond the log")
            root = base64.b64encode(bytes.fromhex(roots[size])).decode()
            stamp = parse_time_stamp(raw)
            if stamp.digest != hashlib.sha256(f"{self.origin}\n{size}\n{root}\n".encode()).digest():
                raise Failed(f"the time stamp at size {size} is over another log", size - 1)
            last = json.loads(self.bundle.entries[size - 1])["ts"]
            if last > time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(stamp.seconds + 60)):
                raise Failed("the entry is younger than the time stamp over it", size - 1)
            if self.policy is not None and self.policy.tsa:
                require_stamped(stamp, self.policy.tsa)
                self.stamps += 1
            elif self.policy is not None:
                self.open_points.append(f"time stamp at size {size}: the policy pins no authority")

    def _envelopes(self, policy: Policy) -> None:
        keys = [Key("", 1, bytes.fromhex(key)) for key in policy.log_keys]
        for job in self.bundle.certificates:
            require(job in self.bundle.envelopes, f"the certificate of {job} is not signed")
            require_signed(keys, *self.bundle.envelopes[job], f"the certificate of {job}")
            self.envelopes += 1

    def _witness_claims(self, policy: Policy) -> None:
        for job, (_, statement) in self.bundle.certificates.items():
            told = statement["predicate"]["evidence"]["witnesses"]
            known = type(told) is int and 0 <= told <= len(policy.witnesses)
            require(known, f"the certificate of {job} names more witnesses than the policy")


def verify_certificate(arguments: argparse.Namespace, policy: Policy | None) -> dict[str, Any]:
    """One certificate without a bundle: who signed it, that the log names it, which files.

    Its numbers are not recomputed: that needs the log.
    """
    require(policy is not None, "a certificate alone needs --policy: its signature is all there is")
    require(arguments.proof is not None, "a certificate alone needs --proof: that the log names it")
    assert policy is not None
    raw = _read_file(arguments.bundle, CERTIFICATE_BYTES).rstrip(b"\n")
    bundle = Bundle(
        entries=[],
        settings={},
        certificates={},
        envelopes={},
        receipts={},
        releases={},
        evidence={},
        manifest={},
    )
    payload = _open_envelope("it", raw, bundle)
    keys = [Key("", 1, bytes.fromhex(key)) for key in policy.log_keys]
    require_signed(keys, *bundle.envelopes["it"], "the certificate")
    statement = parse_canonical(payload)
    proof = parse_proof(_read_file(arguments.proof))
    require(proof.extra is not None and proof.holds(leaf_of(proof.extra)), "the proof fails")
    checkpoint = proof.checkpoint
    signed = any(checkpoint.note.is_signed_by(replace(key, name=checkpoint.origin)) for key in keys)
    require(signed, "the checkpoint is not signed by the log's key")
    assert proof.extra is not None
    body = parse_canonical(proof.extra)
    check_shape(body, BODY, "body")
    named = body["type"] in ("settle", "release.published") and body["idx"] == proof.index
    require(named and checkpoint.origin.endswith("/" + body["log"]), "a proof of something else")
    check_shape(body["data"], TYPES[body["type"]], body["type"])
    digest = hashlib.sha256(payload).hexdigest()
    require(body["data"]["certificate"] == digest, "the log names another certificate")
    try:
        subjects = {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}
        predicate = statement["predicate"]
        claim, verdict = predicate["claim"], predicate["verdict"]
    except (KeyError, TypeError):
        raise Failed("the certificate is malformed") from None
    require(subjects == body["data"]["artifacts"], "the log names other artifacts")
    for artifact in arguments.artifact:
        found = hashlib.sha256(_read_file(artifact, None)).hexdigest()
        require(found in subjects.values(), f"{artifact.name} is none of its artifacts")
    return {
        "claim": {name: claim.get(name) for name in ("epsilon", "delta", "unit", "rule")},
        "index": proof.index,
        "is_released": body["type"] == "release.published",
        "job": body["data"]["job"],
        "log": body["log"],
        "certificate_verdict": verdict,
        "not_established": [],
        "size": checkpoint.size,
        "verdict": "ok",
        "verifier": VERSION,
    }


def require_signed(
    keys: Sequence[Key], payload: bytes, signatures: Sequence[dict[str, str]], what: str
) -> None:
    """Fails unless one signature of a DSSE envelope is one of these keys' over the payload."""
    kind = DSSE_TYPE.encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    fits = any(key.fits(_base64(one["sig"]), signed) for one in signatures for key in keys)
    require(fits, f"{what} is not signed by the log's key")


def _consistency(raw: bytes) -> dict[str, Any]:
    try:
        told = json.loads(raw)
    except ValueError:
        raise Failed("consistency.json is not JSON") from None
    check_shape(told, {**CONSISTENCY, "system": CONSISTENCY}, "consistency.json")
    result: dict[str, Any] = told
    return result


# --- command line ---------------------------------------------------------------------


def verify(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs every check; the result says what was found and what stayed open."""
    policy = None if arguments.policy is None else read_policy(arguments.policy)
    if arguments.bundle.suffix == ".json":
        return verify_certificate(arguments, policy)
    if policy is not None and arguments.max_age is not None:
        policy = replace(policy, max_age_seconds=arguments.max_age)
    earlier = [read_earlier(text) for text in arguments.previous]
    own_receipts = [raw for path in arguments.receipt for raw in read_receipts(path)]
    bundle = read_bundle(arguments.bundle)
    pinned = [*arguments.steward_key, *(policy.steward_keys if policy else ())]
    replay = Replay(bundle, pinned)
    try:
        replay.run()
    except Failed as failed:
        blame_earlier(bundle, earlier, failed.index)
        raise
    root = merkle_root(replay.leaves)
    told = (bundle.manifest.get("size"), bundle.manifest.get("root"), bundle.manifest.get("log"))
    require(told == (len(replay.leaves), root, replay.log), "the manifest tells another log")
    evidence = Evidence(replay, policy, arguments.now)
    evidence.run(earlier, own_receipts)
    certificates = Certificates(replay)
    certificates.run()
    open_points, previous = evidence.open_points, "no earlier root given"
    disclosures, undisclosed = check_disclosures(replay)
    open_points += undisclosed
    if earlier:
        previous = "consistent with " + ", ".join(str(one.size) for one in earlier)
    for artifact in arguments.artifact:
        _check_artifact(artifact, replay)
    schedules = 0
    try:
        schedules = check_schedules(certificates.schedules) if certificates.schedules else 0
    except ImportError:
        open_points.append("epsilon of fixed schedules: dp-accounting is not installed")
    return {
        "certificates": len(bundle.certificates),
        "certificates_signed": evidence.envelopes,
        "checkpoint": "checkpoint" in bundle.evidence,
        "disclosures": disclosures,
        "entries": len(replay.leaves),
        "invariant_breaks": 0,
        "jobs": len(replay.jobs),
        "log": replay.log,
        "not_established": open_points,
        "pico_off": 0,
        "previous": previous,
        "prices": replay.prices_checked,
        "receipts": evidence.receipts,
        "redactions": len(replay.redacted),
        "root": root,
        "schedules": schedules,
        "signatures_checked": policy is not None,
        "steward_keys_pinned": bool(pinned),
        "time_stamps": evidence.stamps,
        "verdict": "incomplete" if open_points else "ok",
        "verifier": VERSION,
        "witnesses": evidence.witnesses,
    }


def _read_file(path: Path, limit: int | None = EVIDENCE_BYTES) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError:
        raise Unreadable(f"{path}: cannot be read") from None
    require(limit is None or len(raw) <= limit, f"{path.name} is too large")
    return raw


def read_receipts(path: Path) -> list[bytes]:
    """The receipts in a file, or in every file of a folder.

    A file is one receipt, one proof with a receipt, the receipts of a job from a bundle, or an
    answer of the service as it was received: JSON with `ledger.receipt` objects anywhere in it.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        found = [receipt for file in files for receipt in read_receipts(file)]
    else:
        raw = _read_file(path, RECEIPT_FILE_BYTES)
        found = _receipts_in(raw) if raw[:1] in b"{[0123456789" else [raw]
    if not found:
        raise Unreadable(f"{path}: no receipt in it")
    return found


def _receipts_in(raw: bytes) -> list[bytes]:
    if raw[:1] not in b"{[":
        return [
            _base64(line.partition(b" ")[2].decode("ascii", "replace")) for line in raw.splitlines()
        ]
    try:
        waiting = [json.loads(raw)]
    except (ValueError, RecursionError):
        raise Unreadable("a file of receipts that is no JSON") from None
    found = []
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            if value.get("object") == "ledger.receipt":
                text = value.get("proof") or value.get("receipt")
                require(isinstance(text, str), "a receipt that is no text")
                found.append(str(text).encode())
    return found


def _check_artifact(path: Path, replay: Replay) -> None:
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        raise Unreadable(f"{path}: cannot be read") from None
    known = {
        d for job in replay.jobs.values() if job.settle for d in job.settle["artifacts"].values()
    }
    require(digest in known, f"{path.name} is the artifact of no settled job")


def summary(result: dict[str, Any]) -> str:
    """One line for people."""
    if result["verdict"] == "failed":
        place = "" if result["index"] is None else f" at entry {result['index']}"
        return f"FAILED{place}: {result['problem']}"
    if "certificate_verdict" in result:
        claim = result["claim"]
        return (
            f"OK certificate of {result['job']}: epsilon {claim['epsilon']} at delta "
            f"{claim['delta']}, verdict {result['certificate_verdict']}, "
            f"{'released' if result['is_released'] else 'not released'}; named by entry "
            f"{result['index']} of {result['log']} under a signed checkpoint of {result['size']}; "
            "its numbers are recomputed from the bundle only"
        )
    head = "OK" if result["verdict"] == "ok" else "INCOMPLETE"
    line = (
        f"{head} {result['entries']} entries, root {result['root'][:12]}, {result['previous']}, "
        f"{result['witnesses']}, {result['jobs']} jobs recomputed, "
        f"{result['schedules']} epsilons by PLD, "
        f"{result['pico_off']} pico off, {result['invariant_breaks']} invariant breaks"
    )
    if result["checkpoint"] and not result["signatures_checked"]:
        line += "; signatures not checked: no --policy given"
    return line + "".join(f"; not established: {point}" for point in result["not_established"])


def _key(text: str) -> str:
    if re.fullmatch(PATTERNS["hash"], text) is None:
        raise argparse.ArgumentTypeError("64 hex digits")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line, verifies, prints, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="verify_ledger.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "bundle",
        type=Path,
        help="the zip from GET /v1/ledger/bundle, or one certificate: NAME.dsse.json",
    )
    parser.add_argument(
        "--proof",
        type=Path,
        metavar="FILE",
        help="with one certificate: its tlog-proof, from GET /v1/certificates/{job}/proof",
    )
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="policy.json: whose signatures you trust, how many witnesses, how fresh",
    )
    parser.add_argument(
        "--previous",
        action="append",
        default=[],
        metavar="WHAT",
        help="SIZE:ROOT, a checkpoint file, or an earlier bundle: the log must extend it; repeat",
    )
    parser.add_argument(
        "--max-age",
        type=int,
        metavar="SECONDS",
        help="how old the witnesses' signatures may be, instead of the policy's number",
    )
    parser.add_argument(
        "--receipt",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="a receipt you were given, an answer that holds some, or a folder of these: each "
        "entry must stand here; repeat for more",
    )
    parser.add_argument(
        "--steward-key",
        type=_key,
        action="append",
        default=[],
        metavar="HEX",
        help="public key of a steward, from elsewhere; repeat for each",
    )
    parser.add_argument(
        "--artifact",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a file you received: must be the artifact of a settled job",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--version", action="version", version=VERSION)
    arguments = parser.parse_args(argv)
    arguments.now = time.time()
    for text in arguments.previous:
        if ":" not in text and not Path(text).exists():
            parser.error("--previous: SIZE:ROOT (64 hex digits), or a file that exists")
    try:
        result = verify(arguments)
    except Unreadable as problem:
        print(f"UNREADABLE: {problem}", file=sys.stderr)
        return 2
    except Failed as failed:
        result = {
            "verdict": "failed",
            "index": failed.index,
            "problem": failed.problem,
            "verifier": VERSION,
        }
    print(json.dumps(result, sort_keys=True, indent=1) if arguments.json else summary(result))
    return {"ok": 0, "failed": 1, "incomplete": 3}[result["verdict"]]


if __name__ == "__main__":
    sys.exit(main())
