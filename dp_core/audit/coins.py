"""Commit, hide, reveal: which canaries take part, decided by coins nobody can bend.

The commitment SHA-256(seed || SHA-256(manifest)) is charged before step 0. The seed stays
with the audit code until the last step; revealed, it lets anyone recompute every coin,
guess and bound (audit.md 3).
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

import numpy as np

from dp_core.audit.errors import AuditInvalid, CommitmentMismatch
from dp_core.events import canonical_digest, decimal_of

SEED_BYTES = 32
LOOKS = (1, 2, 5, 10, 20, 50, 100, 200, 400, 800, 1600, 3200)
LOOKS_MAX = 12
GUESSED_ONE_IN = 10

CanaryKind = Literal["gradient", "text"]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about an audit that is fixed before its coins are thrown (AU10). Public.

    `k_plus` and `k_minus` are floor(m / 10), not a choice: thresholds that may follow the
    scores report a positive epsilon on pure noise (AU26).

    Raises:
        AuditInvalid: a field has an unacceptable value.
    """

    kind: CanaryKind
    ids: tuple[str, ...]
    construction_seed: str  # hex, public
    layout_digest: str
    k_plus: int
    k_minus: int
    score: str
    looks: tuple[int, ...]
    delta_audit: str = "1e-6"
    alpha_gate: str = "0.001"
    alpha_report: str = "0.05"
    companion_sha256: str | None = None  # of the text canaries' manifest, under one commitment

    def __post_init__(self) -> None:
        if self.kind not in get_args(CanaryKind):
            raise AuditInvalid("kind", "neither gradient nor text")
        if len(set(self.ids)) != len(self.ids) or len(self.ids) < GUESSED_ONE_IN:
            raise AuditInvalid("ids", f"needs {GUESSED_ONE_IN} or more different ids")
        if not self.k_plus == self.k_minus == len(self.ids) // GUESSED_ONE_IN:
            raise AuditInvalid("k_plus, k_minus", "each must be floor(m / 10)")
        if not 1 <= len(self.looks) <= LOOKS_MAX or sorted(set(self.looks)) != list(self.looks):
            raise AuditInvalid("looks", f"needs 1 to {LOOKS_MAX} ascending steps")
        for name in ("delta_audit", "alpha_gate", "alpha_report"):
            if not 0 < decimal_of(getattr(self, name), field=name) < 1:
                raise AuditInvalid(name, "outside (0, 1)")

    @property
    def m(self) -> int:
        return len(self.ids)

    def to_dict(self) -> dict[str, Any]:
        document = dataclasses.asdict(self)
        if self.companion_sha256 is None:  # as a job's manifest without text canaries always was
            del document["companion_sha256"]
        return document | {"ids": list(self.ids), "looks": list(self.looks), "m": self.m}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Manifest:
        """Inverse of `to_dict`. Unknown, missing or contradicting fields are refused."""
        fields = dict(document)
        try:
            count = fields.pop("m")
            fields["ids"], fields["looks"] = tuple(fields["ids"]), tuple(fields["looks"])
            manifest = cls(**fields)
        except (KeyError, TypeError):
            raise AuditInvalid("manifest", "unknown or missing fields") from None
        if count != manifest.m:
            raise AuditInvalid("m", "differs from the number of ids")
        return manifest

    def digest(self) -> str:
        """SHA-256 of the canonical form, in hex."""
        return canonical_digest(self.to_dict())


def new_manifest(
    *,
    kind: CanaryKind,
    canaries: int,
    layout_digest: str,
    steps_planned: int,
    score: str,
    alpha_gate: str = "0.001",
) -> Manifest:
    """A manifest with a construction seed and ids of its own, never used before (AU13).

    Two kinds of canaries in one job share `alpha_gate` equally: 0.0005 each (AU29).
    """
    seed = secrets.token_hex(SEED_BYTES)
    return Manifest(
        kind=kind,
        ids=canary_ids(seed, canaries),
        construction_seed=seed,
        layout_digest=layout_digest,
        k_plus=canaries // GUESSED_ONE_IN,
        k_minus=canaries // GUESSED_ONE_IN,
        score=score,
        looks=look_steps(steps_planned),
        alpha_gate=alpha_gate,
    )


def canary_ids(construction_seed: str, canaries: int) -> tuple[str, ...]:
    """Ids made before the coins, hence in no order of membership (AU11)."""
    digests = [
        hashlib.sha256(f"canary id {construction_seed} {i}".encode()).hexdigest()
        for i in range(canaries)
    ]
    return tuple(digest[:16] for digest in digests)


def look_steps(steps_planned: int) -> tuple[int, ...]:
    """Public steps at which the self-test is evaluated: 1, 2, 5, ... and the last, at most 12."""
    if steps_planned < 1:
        raise AuditInvalid("steps_planned", "below 1")
    early = [step for step in LOOKS if step < steps_planned]
    return (*early[: LOOKS_MAX - 1], steps_planned)


class CoinSeed:
    """The secret 32 bytes behind the coins. Cannot be shown, pickled or compared.

    Heads: the canary joins the sampled patients. Tails: it never exists for the trainer.
    A resumed attempt restores the same seed from the sealed store, hence the same coins.
    """

    __slots__ = ("_seed",)

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise AuditInvalid("coin seed", f"needs {SEED_BYTES} bytes")
        self._seed = seed

    @classmethod
    def fresh(cls) -> CoinSeed:
        """From the operating system, shared with no sampler or noise stream (N4)."""
        return cls(secrets.token_bytes(SEED_BYTES))

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError("The coin seed stays with the audit code until it is revealed.")

    __repr__ = __str__ = __format__ = __reduce__ = __reduce_ex__ = _refuse
    __eq__ = __hash__ = _refuse

    def reveal(self) -> str:
        """The seed in hex, for the report after the last step and for the sealed store."""
        return self._seed.hex()

    def coins(self, canaries: int, *, kind: CanaryKind = "gradient") -> np.ndarray:
        """(m,) bool, True is heads: the lowest bit of HMAC-SHA256(seed, "coin" || i).

        `i` is written as 8 bytes, big-endian. Text canaries have coins of their own (AU13):
        their label is "text coin".
        """
        label = b"coin" if kind == "gradient" else b"text coin"
        return np.array(
            [
                hmac.digest(self._seed, label + i.to_bytes(8, "big"), "sha256")[-1] & 1 == 1
                for i in range(canaries)
            ]
        )

    def commitment(self, manifest_sha256: str) -> str:
        """SHA-256(seed || SHA-256(manifest)) in hex; hides the seed, binds both."""
        return hashlib.sha256(self._seed + bytes.fromhex(manifest_sha256)).hexdigest()


def commitment_opens(commitment: str, *, manifest_sha256: str, revealed_seed: str) -> bool:
    """Whether a revealed seed and a manifest's digest are those that were committed to."""
    try:
        made = CoinSeed(bytes.fromhex(revealed_seed)).commitment(manifest_sha256)
    except (ValueError, AuditInvalid):
        return False
    return hmac.compare_digest(made, commitment)


def open_coins(commitment: str, manifest: Manifest, revealed_seed: str) -> np.ndarray:
    """The coins of a finished audit, as an outsider recomputes them (AU12).

    Raises:
        CommitmentMismatch: another seed or manifest was committed to.
    """
    if not commitment_opens(
        commitment, manifest_sha256=manifest.digest(), revealed_seed=revealed_seed
    ):
        raise CommitmentMismatch
    return CoinSeed(bytes.fromhex(revealed_seed)).coins(manifest.m)
