"""A process killed at any statement of any write loses and invents nothing (T3, P2, P4).

Each write of a job's life runs in a forked process that is really killed (SIGKILL) before
its first statement, before its second, ... before its commit, and after it with the reply
lost. Then the caller does what callers do: it repeats the call.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from sqlalchemy import event, func, select
from sqlalchemy.orm import Session

from service.certificates.service import build_certificate
from service.database import Database
from service.ids import new_id
from service.ledger import fsck, grants, releases
from service.ledger import service as ledger
from service.ledger.models import Entry
from tests.service.ledger import world as w

PLAN = w.plan(validation=True)
FEWEST = 3  # statements of the shortest write: fewer points would mean that nothing was cut
DIGESTS = {"adapter_config.json": "c" * 64, "adapter_model.safetensors": "d" * 64}
Act = Callable[[Session], Any]


@dataclass
class Job:
    """One job of the hospital, brought to where the write under test comes next."""

    world: w.World
    id: str = ""
    grant: dict[str, Any] | None = None
    release: dict[str, Any] | None = None

    def reserve(self, session: Session) -> None:
        w.reserve(session, self.world, job=self.id, run_plan=PLAN)

    def start(self, session: Session) -> None:
        w.start(session, self.id)

    def query(self, session: Session) -> None:
        asked = w.query(0, run_plan=PLAN)
        ledger.charge_query(session, job_id=self.id, epoch=1, charge=asked)

    def charge(self, session: Session) -> None:
        charge = w.window(0, run_plan=PLAN)
        ledger.charge_window(session, job_id=self.id, epoch=1, charge=charge)

    def finish(self, session: Session) -> None:
        ledger.finish_window(session, job_id=self.id, epoch=1, window=0, steps_run=10)

    def claim(self, session: Session) -> None:
        """Another worker takes over: the window of the first is lost, and stays paid."""
        w.start(session, self.id, 2)
        ledger.abandon_window(
            session, job_id=self.id, epoch=2, window=0, reason_code="attempt_lost"
        )

    def settle(self, session: Session) -> None:
        certificate = build_certificate(
            session,
            job_id=self.id,
            plan=PLAN.to_dict(),
            claim=w.claim_of(PLAN, 10),
            artifact_digests=DIGESTS,
        )
        ledger.settle(
            session,
            job_id=self.id,
            final_state="succeeded",
            artifact_digests=DIGESTS,
            certificate_digest=certificate.digest,
        )

    def request_release(self, session: Session) -> None:
        made = releases.request_release(
            session, tenant_id=self.world.tenant, actor=self.world.proposer, job_id=self.id
        )
        self.release = releases.release_to_dict(session, made)

    def approve_release(self, session: Session, steward: str) -> None:
        assert self.release is not None
        releases.decide(
            session,
            tenant_id=self.world.tenant,
            release_id=self.release["id"],
            approver=steward,
            decision="approve",
            signature=self.world.sign(steward, self.release["entry"]),
        )

    def approve_release_first(self, session: Session) -> None:
        self.approve_release(session, self.world.proposer)

    def approve_release_last(self, session: Session) -> None:
        self.approve_release(session, self.world.second)

    def approve_grant(self, session: Session, steward: str) -> None:
        assert self.grant is not None
        grants.decide(
            session,
            tenant_id=self.world.tenant,
            grant_id=self.grant["id"],
            approver=steward,
            decision="approve",
            signature=self.world.sign(steward, self.grant["entry"]),
        )

    def approve_grant_first(self, session: Session) -> None:
        self.approve_grant(session, self.world.proposer)

    def approve_grant_last(self, session: Session) -> None:
        self.approve_grant(session, self.world.second)


LIFE = ("reserve", "start", "query", "charge", "finish", "settle")
RELEASE = ("request_release", "approve_release_first", "approve_release_last")
WAYS: dict[str, tuple[str, ...]] = {name: LIFE[: LIFE.index(name)] for name in LIFE}
WAYS["claim"] = ("reserve", "start", "query", "charge")
WAYS |= {name: LIFE + RELEASE[: RELEASE.index(name)] for name in RELEASE}
WAYS |= {"approve_grant_first": (), "approve_grant_last": ("approve_grant_first",)}


def prepare(world: w.World, write: str) -> Job:
    job = Job(world=world, id=new_id("ftjob-"))
    if write.startswith("approve_grant"):
        # Another population: a raise of ours could not be repeated for every point.
        population = w.add_population(world, code=new_id("pop_")[-12:])
        job.grant = w.propose(world, population, "3", delta="1e-6")
    for step in WAYS[write]:
        run(world.db, getattr(job, step))
    return job


def run(db: Database, act: Act) -> None:
    with db.transaction() as session:
        act(session)


def dies_at(world: w.World, point: int, act: Act) -> bool:
    """Runs the write in a process of its own that is killed there; False: it got through."""
    world.db.dispose()  # no connection is shared with the child
    child = os.fork()
    if child == 0:
        try:
            _play(world.db.url, point, act)
        finally:
            os._exit(70)  # an error of the write itself
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, f"the write failed by itself at point {point}"
    return False


def _play(url: str, point: int, act: Act) -> None:
    db, seen = Database(url), count()

    def statement(*_: Any) -> None:
        if next(seen) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(db.engine, "before_cursor_execute", statement)
    event.listen(db.engine, "commit", statement)
    run(db, act)
    os._exit(0)


def size(db: Database) -> int:
    with db.reading() as session:
        return session.scalar(select(func.count()).select_from(Entry)) or 0


@pytest.fixture
def life_world(db: Database) -> w.World:
    return w.open_world(db, validation_fraction="0.1")


@pytest.mark.ci
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("write", WAYS)
def test_killed_anywhere_and_repeated_it_stands_once(life_world: w.World, write: str) -> None:
    db = life_world.db
    for point in count():
        job = prepare(life_world, write)
        act, before = getattr(job, write), size(db)
        died = dies_at(life_world, point, act)
        if died:
            assert size(db) == before, "half a write was kept"
        whole = size(db)
        run(db, act)  # the caller heard nothing and repeats
        assert size(db) > before
        assert died or size(db) == whole, "the repeat wrote again"
        if not died:
            break
    assert point >= FEWEST
    check_books(life_world)


def check_books(world: w.World) -> None:
    """All that was charged was asked for: one window and one query a job at most."""
    with world.db.reading() as session:
        assert fsck.check_all(session) == []
        budget = ledger.epsilon_limits(session, world.population)
        of_charges = select(Entry.job_id, Entry.type).where(
            Entry.type.in_(("window.charge", "query.charge"))
        )
        charges = session.execute(of_charges).all()
        assert len(charges) == len(set(charges))
        for block in budget.blocks:
            assert block.held_pico + block.spent_pico + block.free_pico == budget.limit_pico
            assert block.free_pico >= 0


def test_a_reply_lost_with_its_worker_costs_one_window_and_no_more(life_world: w.World) -> None:
    """The charge was committed, the worker died before it ran a step (P2)."""
    job = prepare(life_world, "charge")
    assert not dies_at(life_world, 10**9, job.charge)
    run(life_world.db, job.claim)
    again = w.window(1, epoch=2, run_plan=PLAN)
    with life_world.db.transaction() as session:
        ledger.charge_window(session, job_id=job.id, epoch=2, charge=again)
        ledger.finish_window(session, job_id=job.id, epoch=2, window=1, steps_run=10)
        assert ledger.position(session, job_id=job.id, epoch=2).steps_started == 20
        assert fsck.check_job(session, job.id) == []
