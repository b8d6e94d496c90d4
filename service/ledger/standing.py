"""How firmly an entry stands: stored, under a signed checkpoint, or witnessed (ledger.md 9.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.ledger import checkpoints
from service.ledger.models import Cosignature, LedgerGuard


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
    published, witnesses = _witnessed(session, log_id) if quorum else (0, 0)
    return Standing(
        integrated=0 if newest is None else newest.size,
        published=published,
        quorum=quorum,
        witnesses=witnesses,
    )


def _witnessed(session: Session, log_id: str) -> tuple[int, int]:
    """Size of the log's newest witnessed checkpoint, and how many have cosigned above it.

    What was witnessed under the system log before a recovery stays witnessed.
    """
    for system in checkpoints.system_logs(session):
        seen = seen_size(session, system)
        size = None if seen is None else checkpoints.newest_named(session, log_id, system, seen)
        if seen is not None and size is not None:
            return size, witness_count(session, seen, system)
    return 0, 0


def seen_size(session: Session, system: str) -> int | None:
    """How much of a system log enough witnesses have cosigned; None if they have not."""
    guard = session.get(LedgerGuard, 1)
    if guard is None or not guard.quorum:
        return None
    if system == checkpoints.system_log(session):
        return guard.quorum_size
    return session.scalar(  # a log left behind by a recovery: nobody counts for it any more
        select(Cosignature.size)
        .where(Cosignature.log_id == system)
        .group_by(Cosignature.size)
        .having(func.count() >= guard.quorum)
        .order_by(Cosignature.size.desc())
        .limit(1)
    )


def witness_count(session: Session, size: int, system: str | None = None) -> int:
    """Witnesses that cosigned a system log, or the one in use, at this size."""
    log_id = checkpoints.system_log(session) if system is None else system
    signed = select(func.count()).where(Cosignature.log_id == log_id, Cosignature.size == size)
    return session.scalar(signed) or 0
