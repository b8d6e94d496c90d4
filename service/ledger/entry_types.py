"""The closed list of entry types, each with its newest schema number (ledger.md 6).

An entry type keeps its meaning for ever; new behaviour gets a new type or number. What is
not listed is never written, and stops fsck and the verifier, which has the same list.
"""

from __future__ import annotations

COMMITTING = ("grant.proposed", "release.requested")  # version 2 may carry commitments
VOUCHED = ("principal.registered",)  # version 2 carries a registered steward's signature

LEDGER = (
    "log.opened",
    "principal.registered",
    "population.registered",
    "grant.proposed",
    "grant.approved",
    "grant.rejected",
    "grant.effective",
    "reserve",
    "reserve.refused",
    "attempt.started",
    "window.charge",
    "window.done",
    "window.abandoned",
    "query.charge",
    "audit.committed",
    "audit.revealed",
    "incident",
    "settle",
    "key.rotated",
    "redaction",
    "release.requested",
    "release.approved",
    "release.rejected",
    "release.published",
    "backup.restored",
    "restore.approved",
    "restore.rejected",
    "correction",
    "restore.effective",
)
ELSEWHERE = ("access.read", "tenant.checkpoint")  # in access logs and in the system log
VERSIONS: dict[str, int] = {
    kind: 2 if kind in COMMITTING + VOUCHED else 1 for kind in (*LEDGER, *ELSEWHERE)
}


def is_known(kind: str, version: int) -> bool:
    """Whether entries of this type and schema number have a meaning."""
    return 1 <= version <= VERSIONS.get(kind, 0)
