"""One hospital's ledger under a seeded scheduler: kills, doubles, delays, lost replies (T2).

Everything that happens is drawn from the seed: which of the waiting calls runs next, and
what befalls it. A call may be killed before its commit, lose its reply after it, or arrive
twice; a worker that was replaced goes on as a zombie. The actors keep to the protocol of
the worker's journal: a window's steps run only after its charge was acknowledged.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from dp_core.plan import RunPlan
from service.ids import new_id
from service.ledger import fsck
from service.ledger import service as ledger
from service.ledger.entries import Receipt
from service.ledger.errors import (
    BudgetExceeded,
    ChargeRefused,
    ReservationClosed,
    StaleEpoch,
)
from service.ledger.models import Entry
from tests.service.ledger import world as w

CALLS = 60
FATES = ("ok", "ok", "ok", "ok", "ok", "killed", "lost", "double")
SIZES = (20, 40, 300)


class Killed(Exception):
    """The caller died; nothing of the call was committed."""


class Lost(Exception):
    """The call was committed; the caller never heard of it."""


@dataclass
class Worker:
    """One attempt; it may not know that it was replaced."""

    job: str
    epoch: int
    window: int = -1  # charged and being run; -1: none
    is_alive: bool = True


@dataclass
class Job:
    """What the world outside knows of a job."""

    plan: RunPlan
    is_reserved: bool = False
    is_settled: bool = False
    epoch: int = 0
    lost_calls: int = 0
    executed: set[int] = field(default_factory=set)


class Simulation:
    """One seed. `run` plays it; `check` compares what was told with what stands."""

    def __init__(self, world: w.World, seed: int) -> None:
        self.world, self.dice = world, random.Random(seed)
        self.world.population = w.add_population(world, code=new_id("pop_")[-12:])
        w.grant(world, world.population, "3")
        self.jobs: dict[str, Job] = {}
        self.workers: list[Worker] = []
        self.told: list[Receipt] = []  # every receipt that reached a caller

    # --- the scheduler ---------------------------------------------------------------

    def run(self) -> None:
        self.advance(CALLS)
        self.finish_all()

    def advance(self, calls: int) -> None:
        for _ in range(calls):
            choices: list[Callable[[], None]] = [self.submit]
            choices += [partial(self.claim, job) for job in self.open_jobs()]
            choices += [partial(self.work, one) for one in self.workers if one.is_alive] * 3
            choices += [partial(self.settle, job) for job in self.open_jobs()][:1]
            self.dice.choice(choices)()

    def finish_all(self) -> None:
        """Every open question is asked until it is answered, and every job ends."""
        for name in [name for name, job in self.jobs.items() if not job.is_reserved]:
            self.reserve(name, is_sure=True)  # a client that heard nothing asks until it does
        for name in self.open_jobs():
            self.settle(name, is_sure=True)

    def open_jobs(self) -> list[str]:
        return [name for name, job in self.jobs.items() if job.is_reserved and not job.is_settled]

    def call(self, work: Callable[[Session], Any], *, is_sure: bool = False) -> Any:
        """One transaction and its fate."""
        fate = "ok" if is_sure else self.dice.choice(FATES)
        with self.world.db.transaction() as session:
            answer = work(session)
            session.flush()
            if fate == "killed":
                session.rollback()
                raise Killed
        if fate == "double":
            with self.world.db.transaction() as session:
                again = work(session)
            assert again == answer, "a doubled call got another answer"
        if fate == "lost":
            raise Lost
        if isinstance(answer, Receipt):
            self.told.append(answer)
        return answer

    # --- the actors ------------------------------------------------------------------

    def submit(self) -> None:
        """A client sends a job, or repeats one of which it heard nothing."""
        waiting = [name for name, job in self.jobs.items() if not job.is_reserved]
        name = self.dice.choice(waiting) if waiting else new_id("ftjob-")
        self.jobs.setdefault(name, Job(plan=w.plan(steps=self.dice.choice(SIZES), margin_steps=20)))
        self.reserve(name)

    def reserve(self, name: str, *, is_sure: bool = False) -> None:
        job = self.jobs[name]
        try:
            self.call(
                lambda s: w.reserve(s, self.world, job=name, run_plan=job.plan), is_sure=is_sure
            )
            job.is_reserved = True
        except BudgetExceeded:
            del self.jobs[name]
        except (Killed, Lost):
            pass  # it will repeat

    def claim(self, name: str) -> None:
        """A worker takes the job; whoever had it becomes a zombie and does not know."""
        job = self.jobs[name]
        epoch = job.epoch + 1

        def take(session: Session) -> Receipt:
            receipt = w.start(session, name, epoch)
            lost = ledger.open_window(session, name)
            if lost is not None:
                ledger.abandon_window(
                    session, job_id=name, epoch=epoch, window=lost, reason_code="attempt_lost"
                )
            return receipt

        try:
            self.call(take)
        except Killed:
            return
        except Lost:
            job.epoch = epoch  # the row says so; this worker died with its answer
            return
        job.epoch = epoch
        self.workers.append(Worker(job=name, epoch=epoch))

    def work(self, worker: Worker) -> None:
        """The worker's next move: pay for a window, or end the one it runs."""
        job = self.jobs[worker.job]
        try:
            if worker.window < 0:
                self.charge(worker, job)
            else:
                self.finish(worker)
        except (StaleEpoch, ReservationClosed, ChargeRefused) as refusal:
            is_current = worker.epoch == job.epoch and not job.is_settled
            assert not is_current or isinstance(refusal, ChargeRefused), refusal
            worker.is_alive = False
        except Killed:
            worker.is_alive = False
        except Lost:
            job.lost_calls += 1
            worker.is_alive = self.dice.random() < 0.5  # it asks again, or is gone

    def charge(self, worker: Worker, job: Job) -> None:
        with self.world.db.reading() as session:
            at = ledger.position(session, job_id=worker.job, epoch=worker.epoch)
            is_open = ledger.open_window(session, worker.job)
        number = at.next_chunk if is_open is None else is_open  # a lost reply: the same again
        charge = w.window(number, epoch=worker.epoch, run_plan=job.plan)
        self.call(
            lambda s: ledger.charge_window(s, job_id=worker.job, epoch=worker.epoch, charge=charge)
        )
        assert (worker.epoch, job.is_settled) == (job.epoch, False), "a zombie was let in"
        assert number not in job.executed, "a window would run twice"
        worker.window = number
        job.executed.add(number)

    def finish(self, worker: Worker) -> None:
        window = worker.window
        self.call(
            lambda s: ledger.finish_window(
                s, job_id=worker.job, epoch=worker.epoch, window=window, steps_run=10
            )
        )
        worker.window = -1

    def settle(self, name: str, *, is_sure: bool = False) -> None:
        if not is_sure and self.dice.random() < 0.8:
            return

        def close(session: Session) -> Receipt:
            return ledger.settle(
                session,
                job_id=name,
                final_state="cancelled",
                artifact_digests={},
                certificate_digest=None,
            )

        try:
            self.call(close, is_sure=is_sure)
            self.jobs[name].is_settled = True
        except Killed:
            pass
        except Lost:
            self.jobs[name].is_settled = True

    # --- the oracle ------------------------------------------------------------------

    def check(self) -> None:
        """P1, P2, P4 and T5 over this seed's population."""
        with self.world.db.reading() as session:
            budget = ledger.epsilon_limits(session, self.world.population)
            (block,) = budget.blocks
            assert block.held_pico + block.spent_pico + block.free_pico == budget.limit_pico
            assert (block.held_pico, block.free_pico >= 0) == (0, True)
            self._check_jobs(session, block.spent_pico)
            for receipt in self.told:
                stands = session.get_one(Entry, (receipt.log, receipt.idx))
                assert stands.leaf == receipt.leaf, "an answer differs from the log"

    def _check_jobs(self, session: Session, spent: int) -> None:
        charges = 0
        for name, job in self.jobs.items():
            kinds: dict[str, int] = defaultdict(int)
            if job.is_reserved:
                assert fsck.check_job(session, name) == []
            rows = session.execute(select(Entry.type, Entry.body).where(Entry.job_id == name))
            for kind, body in rows:
                kinds[kind] += 1
                charges += charge_of(body) if kind == "window.charge" else 0
            assert kinds["reserve"] <= 1 and kinds["settle"] <= 1
            over = kinds["window.charge"] - len(job.executed)
            assert 0 <= over <= job.lost_calls, "charged more than was lost, or less than ran"
        assert charges == spent


def charge_of(body: str) -> int:
    return int(json.loads(body)["data"]["charge"])
