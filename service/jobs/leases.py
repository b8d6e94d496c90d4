"""Who owns a job: claim, lease, fence, and taking it back (service.md 9).

Guarantee: an attempt writes only under its epoch and a live lease, and the update itself
asks for both; one that lost either gets `FencedOut` and has written nothing. Of two
claimers of one job, one wins. Only the database's clock counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import BigInteger, CursorResult, Update, func, literal, select, update
from sqlalchemy import cast as sql_cast
from sqlalchemy.orm import Session, aliased

from service.database import Database
from service.jobs.errors import FencedOut
from service.jobs.lifecycle import (
    CHARGING,
    CLAIMABLE,
    LEASED,
    MACHINE_REASONS,
    Reason,
    State,
)
from service.jobs.models import Job
from service.jobs.transitions import (
    SECOND,
    announce,
    change_state,
    clock_us,
    end_without_adapter,
    locked_job,
)
from service.ledger import service as ledger

LEASE_SECONDS = 60
ATTEMPTS_MAX = 5


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job that is now ours, under this epoch."""

    job_id: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Hold:
    """What a supervisor watches: whose the job is and how it goes. Times in microseconds."""

    state: State
    epoch: int
    lease_left: int | None  # None: nobody holds the job
    progress_age: int  # since the claim or the last finished step
    cancel_requested: bool


def claim(
    db: Database,
    *,
    worker_id: str,
    job_id: str | None = None,
    lease_seconds: int = LEASE_SECONDS,
    versions: Mapping[str, str] | None = None,
) -> Claim | None:
    """Takes the named job, or the one that waits first; None if there is none to take.

    In the same transaction: epoch + 1, lease, `attempt.started`, and the open window of a
    lost attempt marked as abandoned. Of two claimers one wins, the other gets None.
    """
    with db.transaction() as session:
        now = clock_us(session)
        claimed = session.execute(_claim_statement(worker_id, job_id, lease_seconds, now)).first()
        if claimed is None:
            return None
        job = locked_job(session, claimed.id)
        announce(session, job, now)
        ledger.start_attempt(
            session,
            job_id=job.id,
            epoch=job.epoch,
            worker_key=worker_id,
            versions=dict(versions or {}),
        )
        lost = ledger.open_window(session, job.id)
        if lost is not None:
            ledger.abandon_window(
                session, job_id=job.id, epoch=job.epoch, window=lost, reason_code="attempt_lost"
            )
        return Claim(job_id=job.id, epoch=job.epoch)


def _claim_statement(worker_id: str, job_id: str | None, lease_seconds: int, now: int) -> Any:
    """Priority first, then the tenant with the fewest jobs running, then age."""
    other = aliased(Job)
    tenant_running = (
        select(func.count())
        .select_from(other)
        .where(other.tenant_id == Job.tenant_id, other.state.in_(LEASED))
        .correlate(Job)
        .scalar_subquery()
    )
    waiting = (
        select(Job.id)
        .where(Job.state.in_(CLAIMABLE), Job.not_before <= now)
        .order_by(Job.priority.desc(), tenant_running, Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=Job)
    )
    if job_id is not None:
        waiting = waiting.where(Job.id == job_id)
    return (
        update(Job)
        .where(Job.id == waiting.scalar_subquery(), Job.state.in_(CLAIMABLE))
        .values(
            state=State.STARTING.value,
            reason_code=None,
            state_at=now,
            epoch=Job.epoch + 1,
            attempt=Job.attempt + 1,
            lease_owner=worker_id,
            lease_expires_at=now + lease_seconds * SECOND,
            lease_seconds=lease_seconds,
            progress_at=now,
            started_at=func.coalesce(Job.started_at, now),
        )
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )


def renew_lease(db: Database, job_id: str, epoch: int, worker_id: str) -> bool:
    """Extends the lease by its length. False: fenced out, stop at once."""
    with db.transaction() as session:
        now = clock_us(session)
        statement = mine(job_id, epoch, LEASED, now).where(Job.lease_owner == worker_id)
        return _changed(session, statement.values(lease_expires_at=lease_end(now))) == 1


def cancel_requested(db: Database, job_id: str) -> bool:
    """Whether somebody asked to cancel the job."""
    with db.reading() as session:
        return bool(session.scalar(select(Job.cancel_requested).where(Job.id == job_id)))


def fence(
    session: Session, job_id: str, epoch: int, *, states: frozenset[State] = CHARGING
) -> None:
    """First statement of a charge: still mine? Extends the lease; `starting` gets `running`.

    With `FINISHING` it is the first statement of what brings an open window to its end: a
    pause lets that through, and no new window.

    Raises:
        FencedOut: another epoch, no live lease, or a state in which this is not written.
    """
    now = clock_us(session)
    statement = mine(job_id, epoch, states, now).values(lease_expires_at=lease_end(now))
    require_changed(session, statement, job_id, epoch)
    job = locked_job(session, job_id)
    if job.state == State.STARTING:
        change_state(session, job, State.RUNNING, now=now)


def hold_of(db: Database, job_id: str) -> Hold:
    """A look at the job, at one moment of the database's clock."""
    with db.reading() as session:
        now = clock_us(session)
        job = session.get_one(Job, job_id)
        return Hold(
            state=State(job.state),
            epoch=job.epoch,
            lease_left=None if job.lease_expires_at is None else job.lease_expires_at - now,
            progress_age=now - job.progress_at,
            cancel_requested=job.cancel_requested,
        )


def fail_attempt(
    db: Database,
    job_id: str,
    epoch: int,
    reason_code: str,
    permanent: bool,
    *,
    attempts_max: int = ATTEMPTS_MAX,
    is_saved: bool = False,
) -> State | None:
    """Takes the job back from an attempt whose process is gone.

    It recovers (first retry at once, then 10 s doubled each time), or fails: permanent
    cause, attempts used up, or the same cause of its own twice running. A job that was
    being cancelled is cancelled now, and one that was being paused is paused, unless the
    cause is permanent. An attempt that `is_saved` ended its window because its worker left:
    nothing is lost, so the job may go on at once and has no attempt less.
    None: the job no longer belongs to this attempt.
    """
    with db.transaction() as session:
        job = locked_job(session, job_id)
        if job.epoch != epoch or job.state not in LEASED:
            return None
        return take_back(
            session,
            job,
            Reason(reason_code),
            now=clock_us(session),
            permanent=permanent,
            attempts_max=attempts_max,
            is_saved=is_saved,
        )


def take_back(
    session: Session,
    job: Job,
    reason: Reason,
    *,
    now: int,
    permanent: bool = False,
    attempts_max: int = ATTEMPTS_MAX,
    is_saved: bool = False,
) -> State:
    """As `fail_attempt`, inside the caller's transaction, on a locked job in a worker's hands."""
    ledger.end_attempt(session, job_id=job.id, epoch=job.epoch, reason_code=reason.value)
    if job.state == State.CANCELLING:
        end_without_adapter(session, job, State.CANCELLED, now=now, reason=Reason.CANCEL_REQUESTED)
        return State.CANCELLED
    if reason is Reason.PAUSE_REQUESTED:
        job.pauses += 1
        change_state(session, job, State.PAUSED, now=now, reason=reason)
        return State.PAUSED
    repeated = job.last_failure_code == reason and reason not in MACHINE_REASONS
    job.last_failure_code = reason.value
    if job.state == State.PAUSING and not permanent:  # a lost process pauses it as well
        change_state(session, job, State.PAUSED, now=now, reason=Reason.PAUSE_REQUESTED)
        return State.PAUSED
    if is_saved:
        job.pauses += 1
        job.not_before = now
        change_state(session, job, State.RECOVERING, now=now, reason=reason)
        return State.RECOVERING
    attempts = job.attempt - job.pauses
    if permanent or repeated or attempts >= attempts_max:
        ending = reason if permanent or repeated else Reason.ATTEMPTS_USED
        end_without_adapter(session, job, State.FAILED, now=now, reason=ending)
        return State.FAILED
    job.not_before = now + _back_off_us(attempts)
    change_state(session, job, State.RECOVERING, now=now, reason=reason)
    return State.RECOVERING


def _back_off_us(attempt: int) -> int:
    """1 s after the first attempt, so that one accident costs little; then 10 s * 2^n."""
    return SECOND if attempt <= 1 else 10 * SECOND * 2 ** (attempt - 2)


def reap_expired(db: Database, *, attempts_max: int = ATTEMPTS_MAX) -> list[str]:
    """Takes back every job whose lease is over. Its zombie, if any, can write nothing."""
    with db.reading() as session:
        now = clock_us(session)
        ids = session.scalars(
            select(Job.id).where(Job.state.in_(LEASED), Job.lease_expires_at <= now)
        ).all()
    return [job_id for job_id in ids if _reap(db, job_id, attempts_max)]


def _reap(db: Database, job_id: str, attempts_max: int) -> bool:
    with db.transaction() as session:
        job, now = locked_job(session, job_id), clock_us(session)
        if job.state not in LEASED or (job.lease_expires_at or now) > now:
            return False
        take_back(session, job, Reason.LEASE_EXPIRED, now=now, attempts_max=attempts_max)
        return True


def lease_end(now: int) -> Any:
    return sql_cast(Job.lease_seconds, BigInteger) * SECOND + literal(now, BigInteger)


def mine(job_id: str, epoch: int, states: frozenset[State], now: int) -> Update:
    """An update of the job that touches nothing unless the attempt still owns it."""
    return (
        update(Job)
        .where(
            Job.id == job_id,
            Job.epoch == epoch,
            Job.state.in_(states),
            Job.lease_expires_at > now,
        )
        .execution_options(synchronize_session=False)
    )


def _changed(session: Session, statement: Update) -> int:
    return cast("CursorResult[Any]", session.execute(statement)).rowcount


def require_changed(session: Session, statement: Update, job_id: str, epoch: int) -> State:
    """Runs an update of `mine`; the state that the job is in."""
    state = session.execute(statement.returning(Job.state)).scalar_one_or_none()
    if state is None:
        raise FencedOut(job_id=job_id, epoch=epoch)
    return State(state)


def require_mine(job: Job, epoch: int, now: int, *, states: frozenset[State] = CHARGING) -> None:
    """The same question asked of a locked row."""
    is_live = job.lease_expires_at is not None and job.lease_expires_at > now
    if job.epoch != epoch or job.state not in states or not is_live:
        raise FencedOut(job_id=job.id, epoch=epoch)
