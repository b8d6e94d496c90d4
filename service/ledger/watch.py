"""Watches the invariants while the service runs, and halts the ledger when one breaks.

The first look is fsck's full check. Each later one checks every balance (I1, I2, I4) and
only those entries that are new, so its cost does not grow with the log; a change of an old
entry, or of what lies beside entries, that leaves balances alone is found at the next start,
by `rldp ledger fsck`, or by the verifier.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.database import Database
from service.ledger import fsck, guard
from service.ledger.errors import LedgerBroken
from service.ledger.findings import Finding
from service.ledger.fsck_evidence import check_evidence
from service.ledger.models import LogHead

logger = logging.getLogger(__name__)

NAMED_MAX = 7  # names of a halt, within 40 characters


@dataclass(kw_only=True)
class Watch:
    """One watcher; remembers how far it has read. Used by one thread."""

    db: Database
    _replays: dict[str, fsck.Replay] = field(default_factory=dict, init=False)

    def turn(self) -> int:
        """One look; the number of findings. Any finding halts reservations and charges."""
        try:
            findings = self._look()
        except BaseException:
            self._replays = {}  # half a look is no ground for the next one
            raise
        if findings:
            self._replays = {}  # what broke is looked at whole again
            names = sorted({f.invariant for f in findings}, key=lambda name: int(name[1:]))
            reason = guard.BROKEN + ",".join(names[:NAMED_MAX])
            with self.db.transaction() as session:
                guard.halt(session, reason=reason, seen_size=0)
            logger.error("ledger halted", extra={"code": reason})
        return len(findings)

    def _look(self) -> list[Finding]:
        with self.db.snapshot() as session:
            try:
                return self._check(session)
            except (LookupError, TypeError, ValueError, LedgerBroken):
                # A row that cannot be read as what it claims to be is a break as well.
                return [Finding(invariant="I14", subject="log", problem="unreadable")]

    def _check(self, session: Session) -> list[Finding]:
        is_first = not self._replays
        findings: list[Finding] = []
        posted: Counter[str] = Counter()
        for head in session.scalars(select(LogHead).order_by(LogHead.log_id)):
            replay = self._replays.setdefault(head.log_id, fsck.Replay(head.log_id))
            replay.advance(session, head)
            if is_first:
                replay.check_tiles()
            findings += replay.findings
            posted.update(replay.posted)
        findings += fsck.check_balances(session, posted)
        if is_first:
            findings += fsck.check_populations(session) + check_evidence(session)
        return findings
