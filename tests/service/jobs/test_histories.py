"""Random lives of a job end legally, with one settle and a ledger that adds up."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from service.jobs import leases, runtime
from service.jobs.errors import FencedOut, StateConflict
from service.jobs.leases import Claim
from service.jobs.lifecycle import CHANGES, FINISHING, TERMINAL, State
from service.jobs.models import Job
from service.jobs.steering import cancel_job, pause_job, resume_job
from service.ledger import fsck
from service.ledger import service as ledger
from service.ledger.errors import LedgerError
from tests.service.jobs import world as w
from tests.service.jobs.test_service import subject_of
from tests.service.ledger import world as lw

SEEDS = range(12)
MOVES = 20


class Life:
    """One job and every attempt it ever had; old attempts keep trying to write."""

    def __init__(self, world: lw.World, chance: random.Random) -> None:
        self.world, self.chance = world, chance
        self.job_id = w.queue_job(world)
        self.claims: list[Claim] = []

    def moves(self) -> list[Callable[[], object]]:
        often = [self.claim, self.charge, self.close, self.pause, self.resume]
        return [*often, self.lose, self.fail, self.leave, self.cancel, self.finish]

    def any_claim(self) -> Claim:
        return self.chance.choice([*self.claims, Claim(job_id=self.job_id, epoch=0)])

    def claim(self) -> None:
        w.skip_back_off(self.world.db, self.job_id)
        claimed = leases.claim(self.world.db, worker_id="wk_a", job_id=self.job_id)
        if claimed is not None:
            self.claims.append(claimed)

    def charge(self) -> None:
        claim = self.any_claim()
        with self.world.db.transaction() as session:
            number = ledger.position(session, job_id=self.job_id, epoch=claim.epoch).next_chunk
        w.charge(self.world, claim, number)

    def close(self) -> None:
        claim = self.any_claim()
        with self.world.db.transaction() as session:
            window = ledger.open_window(session, self.job_id)
            if window is not None:
                runtime.fence(session, self.job_id, claim.epoch, states=FINISHING)
                ledger.finish_window(
                    session, job_id=self.job_id, epoch=claim.epoch, window=window, steps_run=10
                )

    def lose(self) -> None:
        if w.row(self.world.db, self.job_id).lease_owner is not None:
            w.expire_lease(self.world.db, self.job_id)
            leases.reap_expired(self.world.db)

    def fail(self) -> None:
        claim = self.any_claim()
        leases.fail_attempt(self.world.db, self.job_id, claim.epoch, "trainer_killed", False)

    def leave(self) -> None:
        """The supervisor's end of an attempt that a pause ended."""
        job = w.row(self.world.db, self.job_id)
        if job.state == "pausing":
            leases.fail_attempt(self.world.db, self.job_id, job.epoch, "pause_requested", False)

    def pause(self) -> None:
        with self.world.db.transaction() as session:
            pause_job(session, subject_of(self.world), self.job_id)

    def resume(self) -> None:
        with self.world.db.transaction() as session:
            resume_job(session, subject_of(self.world), self.job_id)

    def cancel(self) -> None:
        if self.chance.random() < 0.3:
            with self.world.db.transaction() as session:
                cancel_job(session, subject_of(self.world), self.job_id)

    def finish(self) -> None:
        claim = self.any_claim()
        runtime.finish(
            self.world.db,
            self.job_id,
            claim.epoch,
            final_state="succeeded",
            artifacts=[],
            certificate=None,
        )

    def end(self) -> None:
        """Whatever happened, a cancel request and the reaper bring it to an end."""
        if State(w.state(self.world.db, self.job_id)) not in TERMINAL:
            with self.world.db.transaction() as session:
                cancel_job(session, subject_of(self.world), self.job_id)
        self.lose()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_life_ends_legally_with_one_settle(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    with lw.sqlite_database(tmp_path) as db:
        world = lw.open_world(db)
        life = Life(world, chance)
        for _ in range(MOVES):
            try:
                chance.choice(life.moves())()
            except (FencedOut, StateConflict, LedgerError):
                continue  # refused moves are part of a life
        life.end()
        job = w.row(db, life.job_id)
        assert State(job.state) in TERMINAL
        told = w.history(db, life.job_id)
        assert all((State(a), State(b)) in CHANGES for a, b in pairwise(told)), told
        assert w.entry_types(db, life.job_id).count("settle") == 1
        epochs = [claim.epoch for claim in life.claims]
        assert epochs == sorted(set(epochs)), "epochs only grow"
        with db.reading() as session:
            assert fsck.check_job(session, life.job_id) == []
            block = ledger.epsilon_limits(session, world.population).blocks[0]
        assert block.held_pico == 0
        assert block.free_pico + block.spent_pico == block.limit_pico


def test_no_column_of_a_job_holds_private_facts() -> None:
    """Sizes and digests of data live in the datasets' tables, never here."""
    assert not {"size_bytes", "rows", "patients_exact"} & set(Job.__table__.columns.keys())
