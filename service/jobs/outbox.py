"""Messages that leave after commit, at least once, and the doorbells rung again."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Select, delete, select, update

from service.database import Database
from service.idempotency import store as idempotency
from service.jobs.lifecycle import CLAIMABLE, TERMINAL
from service.jobs.models import Job, NaturalKey, Outbox
from service.jobs.transitions import SECOND, clock_us

HOLD_SECONDS = 30
RING_AGAIN_SECONDS = 60
NATURAL_KEY_SECONDS = 600
KEPT_SECONDS = 86_400


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message on its way: a doorbell, or the news that a job changed its state."""

    seq: int
    topic: str
    job_id: str
    state: str


def take(db: Database, *, limit: int = 50) -> list[Message]:
    """Messages due now, held for this caller for a while.

    A sender that dies lets its hold run out, and the message is taken again: at least
    once. The hold is a short transaction, so that a slow broker blocks no writer.
    """
    if not _any_due(db):
        return []
    with db.transaction() as session:
        now = clock_us(session)
        due = _due(now).limit(limit).with_for_update(skip_locked=True)
        rows = session.execute(
            update(Outbox)
            .where(Outbox.seq.in_(due))
            .values(held_until=now + HOLD_SECONDS * SECOND)
            .returning(Outbox.seq, Outbox.topic, Outbox.job_id, Outbox.state)
            .execution_options(synchronize_session=False)
        ).all()
    messages = [Message(seq=r.seq, topic=r.topic, job_id=r.job_id, state=r.state) for r in rows]
    return sorted(messages, key=lambda message: message.seq)


def _due(now: int) -> Select[int]:
    return (
        select(Outbox.seq)
        .where(Outbox.sent_at.is_(None), Outbox.not_before <= now, Outbox.held_until <= now)
        .order_by(Outbox.seq)
    )


def _any_due(db: Database) -> bool:
    """A look without a lock: an idle dispatcher must not hold up writers."""
    with db.reading() as session:
        return session.scalar(_due(clock_us(session)).limit(1)) is not None


def mark_sent(db: Database, seqs: list[int]) -> None:
    """Notes that the messages left."""
    with db.transaction() as session:
        now = clock_us(session)
        session.execute(update(Outbox).where(Outbox.seq.in_(seqs)).values(sent_at=now))


def give_back(db: Database, seqs: list[int]) -> None:
    """Ends the hold of messages that could not be sent."""
    with db.transaction() as session:
        session.execute(update(Outbox).where(Outbox.seq.in_(seqs)).values(held_until=0))


def ring_again(db: Database) -> int:
    """A new doorbell for each job that has waited long since its last one."""
    with db.transaction() as session:
        now = clock_us(session)
        rows = session.execute(
            update(Job)
            .where(
                Job.state.in_(CLAIMABLE),
                Job.not_before <= now,
                Job.rung_at <= now - RING_AGAIN_SECONDS * SECOND,
            )
            .values(rung_at=now)
            .returning(Job.id, Job.state)
            .execution_options(synchronize_session=False)
        ).all()
        session.add_all(
            Outbox(
                topic="doorbell",
                job_id=row.id,
                state=row.state,
                created_at=now,
                not_before=now,
                held_until=0,
                sent_at=None,
            )
            for row in rows
        )
        return len(rows)


def clean(db: Database) -> None:
    """Drops natural keys of jobs over for ten minutes, and keys and messages a day old."""
    with db.transaction() as session:
        now = clock_us(session)
        over = select(Job.id).where(
            Job.state.in_(TERMINAL), Job.finished_at <= now - NATURAL_KEY_SECONDS * SECOND
        )
        session.execute(
            delete(NaturalKey)
            .where(NaturalKey.job_id.in_(over))
            .execution_options(synchronize_session=False)
        )
        idempotency.forget_old(session)
        session.execute(delete(Outbox).where(Outbox.sent_at <= now - KEPT_SECONDS * SECOND))
