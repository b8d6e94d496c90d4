"""How firmly an entry stands: stored, under a signed checkpoint, or witnessed (ledger.md 9.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.ledger import checkpoints
from service.ledger.models import Cosignature, LedgerGuard, SignedCheckpoint


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How many entries of a log are signed, and how many of those enough witnesses have seen.

    Without a quorum nothing counts as published: our own signature binds us, it does not
    watch us.
    """

    integrated: int
    published: int
    quorum: int
    witnesses: int  # that cosigned the newest system checkpoint over `published` entries

    def state_of(self, idx: int) -> str:
        if idx < self.published:
            return "published"
        return "integrated" if idx < self.integrated else "stored"

    def is_evident(self, idx: int) -> bool:
        """Under a signed checkpoint, and one that the quorum has witnessed if there is one."""
        return idx < (self.published if self.quorum else self.integrated)

    def at(self, idx: int | None) -> dict[str, Any]:
        """What an answer about entry `idx` says of its evidence."""
        return {
            "state": "stored" if idx is None else self.state_of(idx),
            "checkpoint_size": self.integrated or None,
            "witnesses": f"{self.witnesses} of {self.quorum} needed" if self.quorum else "none",
        }


def standing_of(session: Session, log_id: str) -> Standing:
    """Of one tenant's log, now."""
    newest = checkpoints.newest(session, log_id)
    guard = session.get(LedgerGuard, 1)
    quorum = 0 if guard is None else guard.quorum
    seen_size = guard.quorum_size if guard is not None and quorum else None
    published, witnesses = None, 0
    if seen_size is not None:
        published = session.scalar(
            select(SignedCheckpoint.size)
            .where(SignedCheckpoint.log_id == log_id, SignedCheckpoint.system_idx < seen_size)
            .order_by(SignedCheckpoint.size.desc())
            .limit(1)
        )
        witnesses = witness_count(session, seen_size)
    return Standing(
        integrated=0 if newest is None else newest.size,
        published=published or 0,
        quorum=quorum,
        witnesses=witnesses,
    )


def witness_count(session: Session, size: int) -> int:
    """Witnesses that cosigned the system log at this size."""
    signed = select(func.count()).where(
        Cosignature.log_id == checkpoints.system_log(session), Cosignature.size == size
    )
    return session.scalar(signed) or 0
