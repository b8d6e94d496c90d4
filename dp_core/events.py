"""What was spent, as plain frozen values with one canonical byte form.

Law: an event kind, once released in a version, keeps its meaning for ever; new
behaviour gets a new kind. Unknown kinds are refused, never guessed.
(Habit: google/differential-privacy `dp_event.py`.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from dp_core.errors import PlanInvalid

_INTEGER_LIMIT = 2**53


def canonical_json(value: Any) -> bytes:
    """The one byte form of a value that is hashed, stored or signed.

    RFC 8785 under the limits of our ledger: objects with string keys, lists,
    printable ASCII strings, integers within +-(2^53 - 1), booleans and null. Under
    these limits it equals "sorted keys, no spaces".

    Raises:
        PlanInvalid: the value holds a float, a larger integer or other text.
    """
    _check_canonical(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def canonical_digest(value: Any) -> str:
    """SHA-256 of the canonical bytes, in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _check_canonical(value: Any) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, int):
        if not -_INTEGER_LIMIT < value < _INTEGER_LIMIT:
            raise PlanInvalid("canonical form", "an integer beyond 2^53", "Write it as a string.")
    elif isinstance(value, str):
        if not (value.isascii() and value.isprintable()):  # " " to "~"
            raise PlanInvalid("canonical form", "text beyond printable ASCII")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_canonical(item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise PlanInvalid("canonical form", "a key that is not text")
            _check_canonical(key)
            _check_canonical(item)
    else:
        raise PlanInvalid("canonical form", f"a {type(value).__name__}", "Write it as a string.")


def decimal_of(text: str, *, field: str) -> Decimal:
    """Reads a finite decimal string; a float never takes part in an amount.

    Raises:
        PlanInvalid: not a finite decimal.
    """
    try:
        value = Decimal(text)
    except (InvalidOperation, TypeError, ValueError):
        raise PlanInvalid(field, "not a decimal number") from None
    if not value.is_finite():
        raise PlanInvalid(field, "not a finite number")
    return value


@dataclass(frozen=True, kw_only=True)
class PoissonGaussian:
    """`steps` Poisson-subsampled Gaussian releases of one multiplier.

    `q` and `noise_multiplier` are the decimal strings from which every amount is
    computed. The multiplier is the effective one of the whole step (privacy.md G2).
    """

    q: str
    noise_multiplier: str
    steps: int

    def __post_init__(self) -> None:
        if not 0 < decimal_of(self.q, field="q") <= 1:
            raise PlanInvalid("q", "outside (0, 1]")
        if decimal_of(self.noise_multiplier, field="noise_multiplier") <= 0:
            raise PlanInvalid("noise_multiplier", "not positive", "Noise cannot be switched off.")
        if self.steps < 0:
            raise PlanInvalid("steps", "negative")

    def to_dict(self) -> dict[str, Any]:
        return {
            "v": 1,
            "kind": "poisson_gaussian",
            "q": self.q,
            "noise_multiplier": self.noise_multiplier,
            "steps": self.steps,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> PoissonGaussian:
        if value.get("v") != 1 or value.get("kind") != "poisson_gaussian":
            raise PlanInvalid("event", "an unknown kind or version", "Update the reader.")
        return cls(
            q=value["q"], noise_multiplier=value["noise_multiplier"], steps=int(value["steps"])
        )


@dataclass(frozen=True, kw_only=True)
class Component:
    """One noised part of a step: its L2 sensitivity and noise std, as decimal strings.

    Both are exact decimal expansions of float32 numbers, so that anyone can
    recompute 1/sigma^2 = sum (sensitivity/std)^2.
    """

    id: str
    sensitivity: str
    std: str
