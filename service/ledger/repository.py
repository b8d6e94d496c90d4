"""All reads of ledger rows that decide or show something; one method says who may see what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, select
from sqlalchemy.orm import Session

from dp_core.noise_schedule import NoiseSchedule
from service.ledger.errors import LedgerNotFound, ReservationClosed, StaleEpoch
from service.ledger.models import (
    ACCOUNT_IN_USE,
    Account,
    Attempt,
    Entry,
    LogHead,
    Reservation,
    ReservationBlock,
)
from service.populations.models import Population
from service.tenants.models import SYSTEM_TENANT


def visible_population(
    session: Session, tenant_id: str, population_id: str, *, for_update: bool = False
) -> Population:
    """The population, if it belongs to the tenant.

    Raises:
        LedgerNotFound: absent or another tenant's; the caller cannot tell which.
    """
    statement = select(Population).where(
        Population.id == population_id, Population.tenant_id == tenant_id
    )
    if for_update:
        # its key does not change: charges, whose rows refer to it, need not wait
        statement = statement.with_for_update(key_share=True)
        statement = statement.execution_options(populate_existing=True)
    found = session.scalar(statement)
    if found is None:
        raise LedgerNotFound("population")
    return found


def locked_reservation(session: Session, job_id: str) -> Reservation:
    """The reservation, locked and fresh: first lock of every later ledger write of a job.

    Raises:
        LedgerNotFound: the job reserved nothing.
    """
    session.flush()
    statement = select(Reservation).where(Reservation.job_id == job_id).with_for_update()
    found = session.scalar(statement.execution_options(populate_existing=True))
    if found is None:
        raise LedgerNotFound("reservation")
    return found


def reservation_of(session: Session, job_id: str) -> Reservation:
    """The reservation as committed now, without a lock.

    Raises:
        LedgerNotFound: the job reserved nothing.
    """
    statement = select(Reservation).where(Reservation.job_id == job_id)
    found = session.scalar(statement.execution_options(populate_existing=True))
    if found is None:
        raise LedgerNotFound("reservation")
    return found


def visible_reservation(session: Session, tenant_id: str, job_id: str) -> Reservation:
    """The reservation, if it belongs to the tenant.

    Raises:
        LedgerNotFound: absent or another tenant's.
    """
    found = session.get(Reservation, job_id)
    if found is None or found.tenant_id != tenant_id:
        raise LedgerNotFound("job")
    return found


def block_of(session: Session, job_id: str, block: str) -> ReservationBlock | None:
    statement = select(ReservationBlock).where(
        ReservationBlock.job_id == job_id, ReservationBlock.block == block
    )
    return session.scalar(statement.execution_options(populate_existing=True))


def blocks_of(session: Session, job_id: str) -> Sequence[ReservationBlock]:
    return session.scalars(
        select(ReservationBlock)
        .where(ReservationBlock.job_id == job_id)
        .order_by(ReservationBlock.block)
        .execution_options(populate_existing=True)
    ).all()


def schedule_of(session: Session, held: Reservation) -> NoiseSchedule:
    """The schedule of a job of fixed noise, from the `reserve` entry that fixed it."""
    body = session.scalars(
        select(Entry.body).where(Entry.log_id == held.log_id, Entry.idx == held.reserved_idx)
    ).one()
    return NoiseSchedule.from_list(json.loads(body)["data"]["schedule"])


def latest_attempt(session: Session, job_id: str) -> Attempt | None:
    return session.scalar(
        select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.epoch.desc()).limit(1)
    )


def fenced_reservation(session: Session, job_id: str, epoch: int) -> tuple[Reservation, Attempt]:
    """Locks the job and checks the fence, on repeats too (ledger.md 8.4).

    Raises:
        LedgerNotFound, StaleEpoch, ReservationClosed.
    """
    held = locked_reservation(session, job_id)
    attempt = latest_attempt(session, job_id)
    if attempt is None or attempt.epoch != epoch:
        raise StaleEpoch(job_id=job_id, epoch=epoch, latest=attempt.epoch if attempt else 0)
    if held.state != "open":
        raise ReservationClosed(job_id=job_id)
    return held, attempt


def balances(session: Session, population_id: str) -> dict[str, dict[str, int]]:
    """Sums of balances by block and kind; escrows of ended jobs hold nothing and are left out."""
    rows = session.execute(
        select(Account.block, Account.kind, func.sum(Account.balance_pico))
        .where(Account.population_id == population_id, ACCOUNT_IN_USE)
        .group_by(Account.block, Account.kind)
    )
    found: dict[str, dict[str, int]] = {}
    for block, kind, total in rows:
        found.setdefault(block, {})[kind] = int(total)
    return found


def is_ledger_of(tenant_id: str) -> ColumnElement[bool]:
    """The condition that a log is a ledger of the tenant, by its name `<tenant>/<year>`."""
    return LogHead.log_id.startswith(f"{tenant_id}/", autoescape=True)


def is_ledger() -> ColumnElement[bool]:
    """The condition that a log is some hospital's ledger: no access log, not the system's."""
    return and_(
        LogHead.tenant_id != SYSTEM_TENANT,
        LogHead.log_id.startswith(LogHead.tenant_id + "/"),
    )


def head_of(session: Session, tenant_id: str, log_id: str | None = None) -> LogHead | None:
    """The named or newest ledger of the tenant; its access logs are none."""
    statement = select(LogHead).where(is_ledger_of(tenant_id))
    if log_id is not None:
        statement = statement.where(LogHead.log_id == log_id)
    return session.scalar(statement.order_by(LogHead.log_id.desc()).limit(1))


def visible_entries(tenant_id: str) -> Select[Any]:
    """Entries of the tenant's own logs, in index order."""
    return (
        select(Entry)
        .join(LogHead, LogHead.log_id == Entry.log_id)
        .where(is_ledger_of(tenant_id))
        .order_by(Entry.log_id, Entry.idx)
    )


def entries_of_job(session: Session, job_id: str) -> list[dict[str, Any]]:
    """Bodies of a job's entries in index order, each with its leaf."""
    rows = session.execute(
        select(Entry.body, Entry.leaf)
        .where(Entry.job_id == job_id)
        .order_by(Entry.log_id, Entry.idx)
    )
    return [{**json.loads(body), "leaf": leaf} for body, leaf in rows]


def bodies_of_population(
    session: Session, log_id: str, population_id: str, idx: int
) -> list[dict[str, Any]]:
    """Bodies that touch a population, up to and with `idx`, in index order."""
    rows = session.scalars(
        select(Entry.body)
        .where(Entry.log_id == log_id, Entry.population_id == population_id, Entry.idx <= idx)
        .order_by(Entry.idx)
    )
    return [json.loads(body) for body in rows]
