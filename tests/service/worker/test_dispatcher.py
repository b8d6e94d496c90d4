"""Outbox, repeated bells and the reaper, on both databases."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from service.database import Database, now_us
from service.dispatcher import BrokerUnreachable, Dispatcher
from service.jobs import leases, outbox
from service.jobs.models import Job, Outbox
from service.settings import Settings
from tests.service.jobs import world as w
from tests.service.ledger import world as lw


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    context = lw.sqlite_database(tmp_path) if request.param == "sqlite" else lw.postgres_database()
    with context as database:
        yield database


@pytest.fixture
def world(db: Database) -> lw.World:
    return lw.open_world(db)


class Broker:
    """Takes doorbells; can be down."""

    def __init__(self) -> None:
        self.rung: list[str] = []
        self.is_up = True

    def ring(self, job_id: str) -> None:
        if not self.is_up:
            raise ConnectionError("no broker")
        self.rung.append(job_id)


def dispatcher(world: lw.World, broker: Broker | None) -> Dispatcher:
    return Dispatcher(db=world.db, settings=Settings(), ring=broker and broker.ring)


class TestOutbox:
    def test_a_doorbell_leaves_once(self, world: lw.World) -> None:
        broker = Broker()
        job = w.queue_job(world)
        assert dispatcher(world, broker).send() == 1
        assert dispatcher(world, broker).send() == 0
        assert broker.rung == [job]

    def test_changes_that_need_no_worker_ring_nobody(self, world: lw.World) -> None:
        broker = Broker()
        w.running_job(world)
        assert dispatcher(world, broker).send() == 3  # queued, starting, running
        assert len(broker.rung) == 1

    def test_a_bell_for_a_job_in_back_off_waits(self, world: lw.World) -> None:
        broker = Broker()
        claim = w.running_job(world)
        dispatcher(world, broker).send()
        leases.fail_attempt(world.db, claim.job_id, claim.epoch, "trainer_killed", False)
        assert dispatcher(world, broker).send() == 0
        with world.db.transaction() as session:
            session.execute(update(Outbox).values(not_before=now_us() - w.SECOND))
        assert dispatcher(world, broker).send() == 1
        assert broker.rung == [claim.job_id] * 2

    def test_a_dead_broker_loses_nothing(self, world: lw.World) -> None:
        broker = Broker()
        broker.is_up = False
        job = w.queue_job(world)
        with pytest.raises(BrokerUnreachable):
            dispatcher(world, broker).send()
        broker.is_up = True
        assert dispatcher(world, broker).send() == 1
        assert broker.rung == [job]

    def test_a_dispatcher_that_died_while_sending_is_followed_by_another(
        self, world: lw.World
    ) -> None:
        broker = Broker()
        job = w.queue_job(world)
        assert len(outbox.take(world.db)) == 1  # taken, never sent
        assert dispatcher(world, broker).send() == 0
        with world.db.transaction() as session:
            session.execute(update(Outbox).values(held_until=now_us() - w.SECOND))
        assert dispatcher(world, broker).send() == 1
        assert broker.rung == [job]

    def test_two_dispatchers_share_the_messages(self, world: lw.World) -> None:
        jobs = {w.queue_job(world) for _ in range(6)}
        brokers = Broker(), Broker()
        gate = threading.Barrier(2)

        def send(broker: Broker) -> None:
            gate.wait()
            dispatcher(world, broker).send()

        threads = [threading.Thread(target=send, args=(broker,)) for broker in brokers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rung = brokers[0].rung + brokers[1].rung
        assert sorted(rung) == sorted(jobs)

    def test_without_a_broker_messages_are_settled_and_workers_poll(self, world: lw.World) -> None:
        w.queue_job(world)
        assert dispatcher(world, None).send() == 1


class TestRingAgain:
    def test_a_job_that_waits_long_gets_another_bell(self, world: lw.World) -> None:
        broker = Broker()
        job = w.queue_job(world)
        dispatcher(world, broker).send()
        assert outbox.ring_again(world.db) == 0
        with world.db.transaction() as session:
            session.execute(update(Job).values(rung_at=now_us() - 61 * w.SECOND))
        assert outbox.ring_again(world.db) == 1
        dispatcher(world, broker).send()
        assert broker.rung == [job, job]
        assert outbox.ring_again(world.db) == 0


class TestLoop:
    def test_it_reaps_and_rings_even_while_the_broker_is_down(self, world: lw.World) -> None:
        broker = Broker()
        broker.is_up = False
        claim = w.running_job(world)
        w.expire_lease(world.db, claim.job_id)
        stop = threading.Event()
        thread = threading.Thread(target=dispatcher(world, broker).run, args=(stop,))
        thread.start()
        try:
            for _ in range(100):
                if w.state(world.db, claim.job_id) == "recovering":
                    break
                stop.wait(0.05)
        finally:
            stop.set()
            thread.join(10)
        assert w.state(world.db, claim.job_id) == "recovering"
        assert not thread.is_alive()


def test_expired_uploads_are_erased_by_the_running_dispatcher(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[Path] = []
    monkeypatch.setattr(
        "service.datasets.retention.sweep", lambda _db, files: swept.append(files) or 0
    )
    stop = threading.Event()
    settings = Settings(data_dir=tmp_path)
    runner = threading.Thread(
        target=Dispatcher(db=db, settings=settings, ring=None).run, args=(stop,)
    )
    runner.start()
    deadline = time.monotonic() + 20
    while not swept and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    runner.join()
    assert swept == [settings.files_dir]
