"""Acknowledged alerts: known until their cause is over, and news when it comes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select, update

from service import row_fence
from service.auth.subject import Subject
from service.database import Database, now_us
from service.dispatcher import Dispatcher
from service.errors import NotFound
from service.fleet import registry
from service.fleet.models import Worker
from service.jobs import leases
from service.jobs.lifecycle import Reason
from service.ledger import access
from service.operations import acknowledgements, alerts
from service.operations.acknowledgements import acknowledge, end_what_is_over, known_alerts
from service.operations.models import AlertAcknowledgement
from service.operations.summary import summary_answer, summary_of
from service.settings import Settings
from tests.service.fenced import fenced_database
from tests.service.jobs import world as jw
from tests.service.ledger import world as lw

MINUTE = 60_000_000


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with lw.sqlite_database(tmp_path) as made:
        yield made


@pytest.fixture
def world(db: Database) -> lw.World:
    return lw.open_world(db)


def admin_of(world: lw.World) -> Subject:
    return Subject(principal_id=world.admin, tenant_id=world.tenant, role="admin")


def deafen(db: Database, worker: str = "wk_d", minutes: int = 10) -> None:
    with db.transaction() as session:
        heard = now_us() - minutes * MINUTE
        session.execute(update(Worker).where(Worker.id == worker).values(heard_at=heard))


def deaf(world: lw.World, worker: str = "wk_d") -> None:
    registry.join(world.db, worker, device="CPU, 2 cores", version="0.1.0", beat_seconds=15)
    deafen(world.db, worker)


def found(world: lw.World, directory: Path) -> list[alerts.Alert]:
    with world.db.reading() as session:
        known = known_alerts(session, admin_of(world), directory)
    return [alert for alert in known if alert.code != "disk_nearly_full"]


def say(world: lw.World, directory: Path, note: str | None = None) -> alerts.Alert:
    """Acknowledges the only alert."""
    (alert,) = found(world, directory)
    with world.db.transaction() as session:
        return acknowledge(session, admin_of(world), directory, alert.id, note)


def is_known(world: lw.World, directory: Path) -> bool:
    (alert,) = found(world, directory)
    return alert.acknowledged is not None


def test_it_is_told_with_its_person_and_note_and_out_of_the_strip(
    world: lw.World, tmp_path: Path
) -> None:
    deaf(world)
    before = found(world, tmp_path)[0]
    assert before.acknowledged is None
    said = say(world, tmp_path, "new fan is ordered")
    assert said.id == before.id and said.acknowledged is not None
    with world.db.reading() as session:
        summary = summary_of(session, admin_of(world), tmp_path)
    assert [alert.code for alert in summary.known_alerts] == ["worker_deaf"]
    assert "worker_deaf" not in [alert.code for alert in summary.unknown_alerts]
    told = next(a for a in summary_answer(summary)["alerts"] if a["code"] == "worker_deaf")
    assert told["id"] == before.id and "about" not in told and "degree" not in told
    assert told["acknowledged"]["by"] == world.admin
    assert told["acknowledged"]["note"] == "new fan is ordered"
    assert abs(told["acknowledged"]["at"] - now_us() // 1_000_000) < 60


def test_the_access_log_holds_who_and_what_and_not_the_note(
    world: lw.World, tmp_path: Path
) -> None:
    deaf(world)
    said = say(world, tmp_path, "CANARY-NOTE")
    say(world, tmp_path, "again")  # changes nothing, hence no second entry
    with world.db.reading() as session:
        entries = session.scalars(access.visible_reads(world.tenant)).all()
        shown = [access.read_to_dict(entry) for entry in entries]
    assert [(one["actor"], one["route"], one["shown"]) for one in shown] == [
        (world.admin, acknowledgements.ROUTE, said.id)
    ]
    assert "CANARY-NOTE" not in entries[0].body


def test_the_first_word_counts(world: lw.World, tmp_path: Path) -> None:
    deaf(world)
    say(world, tmp_path, "first")
    again = say(world, tmp_path, "second")
    assert again.acknowledged is not None and again.acknowledged.note == "first"


def test_what_does_not_stand_cannot_be_acknowledged(world: lw.World, tmp_path: Path) -> None:
    deaf(world)
    (alert,) = found(world, tmp_path)
    registry.beat(world.db, "wk_d")
    for wanted in (alert.id, "alert_none"):
        with world.db.transaction() as session, pytest.raises(NotFound):
            acknowledge(session, admin_of(world), tmp_path, wanted, None)


def test_what_was_over_is_news_when_it_comes_back(world: lw.World, tmp_path: Path) -> None:
    """A budget's alert looks the same each time: only a look between tells two of them apart."""
    full = {(world.population, "train"): 0.85}
    none: dict[Any, float] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alerts.accounts, "used_ratios", lambda *_: full)
        say(world, tmp_path)
        assert end_what_is_over(world.db, tmp_path) == 0 and is_known(world, tmp_path)
        patch.setattr(alerts.accounts, "used_ratios", lambda *_: none)
        assert found(world, tmp_path) == []
        dispatcher = Dispatcher(
            db=world.db, settings=Settings(data_dir=tmp_path / "data"), ring=None
        )
        assert dispatcher.look_at_known_alerts() == 1
        assert dispatcher.look_at_known_alerts() == 0
        patch.setattr(alerts.accounts, "used_ratios", lambda *_: full)
        assert not is_known(world, tmp_path)
    with world.db.reading() as session:
        (row,) = session.scalars(select(AlertAcknowledgement)).all()
    assert row.ended_at is not None  # kept, with its end


def test_the_dispatcher_looks_by_itself(world: lw.World, tmp_path: Path) -> None:
    deaf(world)
    say(world, tmp_path)
    registry.beat(world.db, "wk_d")
    stop, settings = threading.Event(), Settings(data_dir=tmp_path / "data")
    with pytest.MonkeyPatch.context() as patch:
        dispatcher = Dispatcher(db=world.db, settings=settings, ring=None)
        patch.setattr(dispatcher, "publish", lambda: stop.set() or 0)  # the last of a round
        dispatcher.run(stop)
    with world.db.reading() as session:
        assert session.scalars(select(AlertAcknowledgement.ended_at)).one() is not None


def test_another_episode_is_news_without_any_look_between(world: lw.World, tmp_path: Path) -> None:
    deaf(world)
    say(world, tmp_path)
    registry.beat(world.db, "wk_d")
    deafen(world.db, minutes=5)
    assert not is_known(world, tmp_path)


def test_worse_is_news_and_better_is_not(world: lw.World, tmp_path: Path) -> None:
    shares = {(world.population, "train"): 0.91}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alerts.accounts, "used_ratios", lambda *_: shares)
        say(world, tmp_path, "at 91")
        for share, expected in ((0.94, True), (0.82, True), (0.96, False)):
            shares[world.population, "train"] = share
            assert is_known(world, tmp_path) is expected, share
        say(world, tmp_path, "at 96")
        assert is_known(world, tmp_path)
    with world.db.reading() as session:
        rows = session.scalars(select(AlertAcknowledgement).order_by("created_at")).all()
    assert [(row.note, row.degree, row.ended_at is None) for row in rows] == [
        ("at 91", 1, False),
        ("at 96", 2, True),
    ]


def test_a_further_failed_attempt_is_news(world: lw.World, tmp_path: Path) -> None:
    job = jw.queue_job(world)

    def fail(reason: Reason) -> None:
        jw.skip_back_off(world.db, job)
        claim = leases.claim(world.db, worker_id="wk_b", job_id=job)
        assert claim is not None
        leases.fail_attempt(world.db, job, claim.epoch, reason, False)

    fail(Reason.TRAINER_CRASHED)
    fail(Reason.TRAINER_KILLED)
    assert say(world, tmp_path).code == "failed_twice"
    assert is_known(world, tmp_path)
    fail(Reason.TRAINER_CRASHED)
    assert not is_known(world, tmp_path)


def test_the_disk_is_news_again_as_it_fills(
    world: lw.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(free: int) -> alerts.Alert:
        usage = SimpleNamespace(total=100 * 2**30, free=free * 2**30)
        monkeypatch.setattr(alerts.shutil, "disk_usage", lambda _: usage)
        with world.db.reading() as session:
            (alert,) = known_alerts(session, admin_of(world), tmp_path)
        return alert

    with world.db.transaction() as session:
        acknowledge(session, admin_of(world), tmp_path, full(9).id, None)
    known = [full(free).acknowledged is not None for free in (9, 7, 5, 4, 1)]
    assert known == [True, True, True, False, False]


def test_each_hospital_speaks_for_itself(world: lw.World, tmp_path: Path) -> None:
    other = lw.open_world(world.db)
    deaf(world)  # workers are the installation's: both see it
    say(world, tmp_path)
    assert is_known(world, tmp_path) and not is_known(other, tmp_path)


def test_two_admins_at_once_leave_one_word(tmp_path: Path) -> None:
    """On PostgreSQL, behind the fence: both find it unknown, one of them comes first."""
    with fenced_database() as db:
        world, other = lw.open_world(db), lw.open_world(db)
        deaf(world)
        admin, barrier = admin_of(world), threading.Barrier(2)
        (alert,) = found(world, tmp_path)
        insert, answers = acknowledgements._insert, []

        def insert_together(*arguments: Any) -> bool:
            barrier.wait(10)
            return insert(*arguments)

        def press(note: str) -> None:
            with row_fence.request():
                row_fence.bind(world.tenant)
                with db.transaction() as session:
                    answers.append(acknowledge(session, admin, tmp_path, alert.id, note))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(acknowledgements, "_insert", insert_together)
            threads = [threading.Thread(target=press, args=(note,)) for note in "ab"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
        assert len({one.acknowledged for one in answers}) == 1 and len(answers) == 2
        with db.reading() as session:
            entries = session.scalars(access.visible_reads(world.tenant)).all()
            assert len(entries) == 1
        with row_fence.request():
            row_fence.bind(other.tenant)
            with db.reading() as session:
                assert session.scalars(select(AlertAcknowledgement)).all() == []
        assert end_what_is_over(db, tmp_path) == 0
        registry.beat(db, "wk_d")
        assert end_what_is_over(db, tmp_path) == 1
