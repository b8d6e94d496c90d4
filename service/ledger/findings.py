"""What a check of the ledger's rows reports."""

from __future__ import annotations

from dataclasses import dataclass

# I1-I11, I13, I14 are those of ledger.md 5. I12 needs the access log and is the verifier's.
# Ours: I15 personal details, I16 keys, I17 time stamps, against what the log says of them.
INVARIANTS = tuple(f"I{number}" for number in (*range(1, 12), *range(13, 18)))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One broken invariant."""

    invariant: str
    subject: str
    problem: str
