"""A worker's sign of life, and what a reader may conclude from it.

Guarantee: nobody is called alive by hope. A worker that was not heard of for three of its
own beats is deaf; the job's lease alone decides whose a job is (service.md 9), so that a wrong
word here costs a look, never a charge. Only the database's clock counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from service.database import Database, clock_us
from service.fleet.models import Worker

SECOND = 1_000_000
BEATS_MISSED = 3
REMEMBERED = 7 * 86_400 * SECOND
SHOWN = 86_400 * SECOND  # those that left or fell silent are shown for a day
WORKERS_MAX = 500


def join(db: Database, worker_id: str, *, device: str, version: str, beat_seconds: int) -> None:
    """Enters a worker that has just started, and forgets those of last week."""
    with db.transaction() as session:
        now = clock_us(session)
        session.execute(delete(Worker).where(Worker.heard_at < now - REMEMBERED))
        session.add(
            Worker(
                id=worker_id,
                device=device[:80],
                version=version[:40],
                beat_seconds=beat_seconds,
                started_at=now,
                heard_at=now,
                left_at=None,
                draining=False,
            )
        )


def beat(db: Database, worker_id: str) -> None:
    """The worker lives. Does nothing for one that never joined."""
    with db.transaction() as session:
        now = clock_us(session)
        session.execute(update(Worker).where(Worker.id == worker_id).values(heard_at=now))


def leave(db: Database, worker_id: str) -> None:
    """The worker ends, on purpose."""
    with db.transaction() as session:
        now = clock_us(session)
        gone = update(Worker).where(Worker.id == worker_id)
        session.execute(gone.values(heard_at=now, left_at=now))


def is_draining(db: Database, worker_id: str) -> bool:
    """Whether somebody asked it to take no more work."""
    with db.reading() as session:
        return bool(session.scalar(select(Worker.draining).where(Worker.id == worker_id)))


def drain(session: Session, worker_id: str) -> Worker | None:
    """The worker finishes what it has and takes no more, until it is started anew.

    None: there is no such worker, it has left, or was not heard of for a day.
    """
    wanted = update(Worker).where(
        Worker.id == worker_id,
        Worker.left_at.is_(None),
        Worker.heard_at > clock_us(session) - SHOWN,
    )
    return session.scalar(wanted.values(draining=True).returning(Worker))


def known(session: Session, now: int) -> Sequence[Worker]:
    """Workers heard of within a day, oldest first."""
    heard = select(Worker).where(Worker.heard_at > now - SHOWN)
    return session.scalars(heard.order_by(Worker.started_at, Worker.id).limit(WORKERS_MAX)).all()


def is_deaf(worker: Worker, now: int) -> bool:
    """It said no goodbye, and three of its beats did not come."""
    silence = BEATS_MISSED * worker.beat_seconds * SECOND
    return worker.left_at is None and now - worker.heard_at > silence


def is_alive(worker: Worker, now: int) -> bool:
    return worker.left_at is None and not is_deaf(worker, now)
