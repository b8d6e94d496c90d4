"""What an auditor should look at first: oddities of a tenant's ledger (ledger.md 13, 19.3).

Facts only, each from rows of this tenant, none a verdict. The list is computed anew with
every call; kinds are a closed list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.audits.models import JobAudit
from service.database import now_us
from service.ledger import checkpoints, guard, repository
from service.ledger.models import Attempt, Entry, LogHead, Reservation
from service.populations.models import Population

OLD_HOLD_DAYS = 7
REFUSALS_IN_A_ROW = 3
USED_SHARES = (95, 80, 50)  # per cent
CHECKPOINT_AGE_SECONDS = 120
KINDS = (
    "ledger_halted",
    "invariant_broken",
    "audit_failed",
    "witness_stale",
    "witness_late",
    "checkpoint_late",
    "balance_broken",
    "budget_used",
    "windows_abandoned",
    "old_hold",
    "refusals_in_a_row",
    "population_overlap",
    "overlap_unstated",
)


@dataclass(frozen=True, kw_only=True)
class Anomaly:
    """One oddity and what it concerns."""

    kind: str
    subject: str
    detail: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        assert self.kind in KINDS
        return {
            "id": f"{self.kind}/{self.subject}",
            "object": "ledger.anomaly",
            "kind": self.kind,
            "subject": self.subject,
            "detail": self.detail,
        }


def anomalies_of(session: Session, tenant_id: str) -> list[Anomaly]:
    """All of them, in the order of KINDS."""
    found = [
        *_guard(session),
        *_checkpoints(session, tenant_id),
        *_budgets(session, tenant_id),
        *_audits(session, tenant_id),
        *_jobs(session, tenant_id),
        *_refusals(session, tenant_id),
        *_overlaps(session, tenant_id),
    ]
    return sorted(found, key=lambda anomaly: (KINDS.index(anomaly.kind), anomaly.subject))


def _guard(session: Session) -> Iterator[Anomaly]:
    state = guard.state(session)
    age = state["quorum_age_seconds"]
    detail = {key: state[key] for key in ("quorum", "quorum_age_seconds", "reason")}
    for name in sorted(guard.broken_invariants(session)):
        yield Anomaly(kind="invariant_broken", subject=name, detail={})
    if state["state"] == "halted":
        yield Anomaly(kind="ledger_halted", subject="log", detail=detail)
    elif state["state"] == "stale":
        yield Anomaly(kind="witness_stale", subject="log", detail=detail)
    elif age is not None and age > 2 * guard.ALERT_SECONDS:
        # One period between two cosignatures is normal; a second one without any is not.
        yield Anomaly(kind="witness_late", subject="log", detail=detail)


def _checkpoints(session: Session, tenant_id: str) -> Iterator[Anomaly]:
    heads = session.execute(
        select(LogHead.log_id, LogHead.size).where(repository.is_ledger_of(tenant_id))
    )
    for log_id, size in heads.all():
        signed = checkpoints.newest(session, log_id)
        covered = 0 if signed is None else signed.size
        if covered == size:
            continue
        oldest = session.get_one(Entry, (log_id, covered))
        if oldest.ts < _minutes_ago(CHECKPOINT_AGE_SECONDS):
            detail = {"size": size, "checkpoint_size": covered, "uncovered_since": oldest.ts}
            yield Anomaly(kind="checkpoint_late", subject=log_id, detail=detail)


def _minutes_ago(seconds: int) -> str:
    then = datetime.fromtimestamp(now_us() // 1_000_000 - seconds, UTC)
    return then.strftime("%Y-%m-%dT%H:%MZ")


def _budgets(session: Session, tenant_id: str) -> Iterator[Anomaly]:
    populations = select(Population).where(Population.tenant_id == tenant_id)
    for population in session.scalars(populations.order_by(Population.id)):
        for block, sums in repository.balances(session, population.id).items():
            subject = f"{population.id}/{block}"
            if sum(sums.values()):
                broken = {"sum_pico": str(sum(sums.values()))}
                yield Anomaly(kind="balance_broken", subject=subject, detail=broken)
            limit = -sums.get("issuance", 0)
            used = sums.get("spent", 0) + sums.get("escrow", 0)
            passed = [share for share in USED_SHARES if limit and used * 100 >= share * limit]
            if passed:
                detail = {"percent_at_least": passed[0], "used_pico": str(used)}
                yield Anomaly(kind="budget_used", subject=subject, detail=detail)


def _audits(session: Session, tenant_id: str) -> Iterator[Anomaly]:
    """Attempts whose audit contradicts what the ledger would have claimed."""
    failed = select(JobAudit).where(JobAudit.tenant_id == tenant_id, JobAudit.verdict == "FAIL")
    for row in session.scalars(failed):
        summary = json.loads(row.summary)
        detail = {
            "tier": summary["tier"],
            "self_test": summary["self_test"],
            "smallest_p": summary["self_test_min_p"],
            "report_sha256": summary["report_sha256"],
        }
        yield Anomaly(kind="audit_failed", subject=f"{row.job_id}/{row.epoch}", detail=detail)


def _jobs(session: Session, tenant_id: str) -> Iterator[Anomaly]:
    lost = session.execute(
        select(Reservation.job_id, Reservation.windows_abandoned).where(
            Reservation.tenant_id == tenant_id, Reservation.windows_abandoned > 0
        )
    )
    for job_id, count in lost:
        attempts = session.scalar(
            select(func.count()).select_from(Attempt).where(Attempt.job_id == job_id)
        )
        detail: dict[str, Any] = {"windows": count, "attempts": attempts}
        yield Anomaly(kind="windows_abandoned", subject=job_id, detail=detail)
    held = session.execute(
        select(Reservation.job_id, Entry.ts)
        .join(
            Entry,
            (Entry.log_id == Reservation.log_id) & (Entry.idx == Reservation.reserved_idx),
        )
        .where(Reservation.tenant_id == tenant_id, Reservation.state == "open")
    )
    for job_id, ts in held:
        if ts < _minutes_ago(OLD_HOLD_DAYS * 24 * 3600):
            yield Anomaly(kind="old_hold", subject=job_id, detail={"held_since": ts})


def _refusals(session: Session, tenant_id: str) -> Iterator[Anomaly]:
    """Populations whose newest decisions on reservations were all refusals."""
    populations = select(Population.id).where(Population.tenant_id == tenant_id)
    for population_id in session.scalars(populations.order_by(Population.id)).all():
        newest = session.scalars(
            select(Entry.type)
            .where(Entry.population_id == population_id)
            .where(Entry.type.in_(("reserve", "reserve.refused")))
            .order_by(Entry.log_id.desc(), Entry.idx.desc())
            .limit(20)
        ).all()
        row = next((i for i, kind in enumerate(newest) if kind == "reserve"), len(newest))
        if row >= REFUSALS_IN_A_ROW:
            yield Anomaly(kind="refusals_in_a_row", subject=population_id, detail={"at_least": row})


def _overlaps(session: Session, tenant_id: str) -> Iterator[Anomaly]:
    rows = session.execute(
        select(Population.id, Population.overlap_with).where(Population.tenant_id == tenant_id)
    )
    for population_id, overlap in rows:
        if overlap is None:
            yield Anomaly(kind="overlap_unstated", subject=population_id, detail={})
        elif json.loads(overlap):
            detail = {"with": json.loads(overlap)}
            yield Anomaly(kind="population_overlap", subject=population_id, detail=detail)
