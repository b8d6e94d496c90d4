"""What is owed is written with the change, sent at least once, and given up on in the open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import select, update

from service.addresses import TargetRefused, rules_of
from service.auth.subject import Subject
from service.database import Database, now_us
from service.jobs import leases, steering
from service.ledger import grants, guard
from service.ledger.service import epsilon_limits
from service.settings import Settings
from service.webhooks import deliveries, events, service
from service.webhooks.deliveries import HOLD_SECONDS, SECOND, WAITS, Sender
from service.webhooks.models import WebhookDelivery, WebhookEndpoint
from service.webhooks.sender import SendFailed
from service.webhooks.vault import SecretVault
from tests.service.jobs import world as w
from tests.service.jobs.test_service import subject_of
from tests.service.ledger import world as lw
from tests.service.webhooks.receiver import Heard, open_receiver

ALL = sorted(events.EVENT_TYPES)


# On PostgreSQL in every CI run; the default run is quick.
@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.ci)])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    context = lw.sqlite_database(tmp_path) if request.param == "sqlite" else lw.postgres_database()
    with context as database:
        yield database


@pytest.fixture
def world(db: Database) -> lw.World:
    return lw.open_world(db)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        webhook_http_allowed=True,
        webhook_networks_allowed="127.0.0.0/8",
    )


def register(
    world: lw.World, settings: Settings, url: str = "https://hooks.example/", **changes: Any
) -> tuple[str, str]:
    """(endpoint id, secret) of a steward's webhook."""
    with world.db.transaction() as session:
        endpoint, secret = service.register(
            session,
            subject_of(world, "steward"),
            SecretVault(settings.keys_dir, make=True),
            rules_of(settings),
            url=url,
            events=changes.get("events", ALL),
        )
        return endpoint.id, secret


def owed(db: Database) -> list[WebhookDelivery]:
    with db.reading() as session:
        rows = session.scalars(select(WebhookDelivery).order_by(WebhookDelivery.id)).all()
        session.expunge_all()
        return list(rows)


def endpoint_row(db: Database, endpoint_id: str) -> WebhookEndpoint:
    with db.reading() as session:
        row = session.get_one(WebhookEndpoint, endpoint_id)
        session.expunge(row)
        return row


def make_due(db: Database) -> None:
    with db.transaction() as session:
        session.execute(update(WebhookDelivery).values(not_before=0, held_until=0))


def answering(*answers: int | Exception) -> Any:
    """A `post` that gives these answers, the last one again and again."""
    left = list(answers)

    def post(_url: str, **_: Any) -> int:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return post


class TestOwed:
    def test_each_end_of_a_job_is_told_in_the_same_transaction(
        self, world: lw.World, settings: Settings
    ) -> None:
        endpoint, _ = register(world, settings)
        job = w.queue_job(world)
        with pytest.raises(RuntimeError), world.db.transaction() as session:
            steering.cancel_job(session, subject_of(world), job)
            raise RuntimeError
        assert owed(world.db) == []
        with world.db.transaction() as session:
            steering.pause_job(session, subject_of(world), job)
        with world.db.transaction() as session:
            steering.cancel_job(session, subject_of(world), job)
        claim = w.running_job(world)
        leases.fail_attempt(world.db, claim.job_id, claim.epoch, "data_unreadable", True)
        rows = owed(world.db)
        assert [row.type for row in rows] == [
            "fine_tuning.job.paused",
            "fine_tuning.job.cancelled",
            "fine_tuning.job.failed",
        ]
        assert {row.endpoint_id for row in rows} == {endpoint}
        assert len({row.event_id for row in rows}) == 3

    def test_the_body_holds_ids_state_and_code_and_nothing_else(
        self, world: lw.World, settings: Settings
    ) -> None:
        register(world, settings)
        job = w.queue_job(world, labels={"ward": "canary"})
        with world.db.transaction() as session:
            steering.cancel_job(session, subject_of(world), job)
        told = json.loads(owed(world.db)[0].body)
        assert told.pop("id").startswith("evt_") and isinstance(told.pop("created_at"), int)
        assert told == {
            "object": "event",
            "type": "fine_tuning.job.cancelled",
            "data": {"id": job, "state": "cancelled", "reason_code": "cancel_requested"},
        }

    def test_only_those_who_asked_hear_of_it(self, db: Database, settings: Settings) -> None:
        here, there = lw.open_world(db), lw.open_world(db)
        wanted, _ = register(here, settings, events=["fine_tuning.job.cancelled"])
        register(here, settings, events=["release.published"])
        register(there, settings)
        job = w.queue_job(here)
        with db.transaction() as session:
            steering.cancel_job(session, subject_of(here), job)
        assert [row.endpoint_id for row in owed(db)] == [wanted]

    def test_stewards_hear_of_a_proposal_and_everybody_of_a_halt(
        self, world: lw.World, settings: Settings
    ) -> None:
        register(world, settings)
        with world.db.transaction() as session:
            grants.propose(
                session,
                tenant_id=world.tenant,
                actor=world.proposer,
                request=grants.GrantRequest(
                    population_id=world.population,
                    epsilon="40",
                    delta=None,
                    alpha_star=None,
                    reason_code="study_start",
                ),
            )
        for _ in range(2):
            with world.db.transaction() as session:
                guard.halt(session, reason="log_shorter", seen_size=9)
        rows = owed(world.db)
        assert [row.type for row in rows] == ["grant.proposed", "ledger.alert"]
        assert json.loads(rows[1].body)["data"] == {
            "state": "halted",
            "reason_code": "log_shorter",
        }

    def test_four_fifths_of_a_budget_are_told_once(self, db: Database, settings: Settings) -> None:
        world = lw.open_world(db, epsilon="3")
        register(world, settings)
        told: list[WebhookDelivery] = []
        before = used = 0.0
        for steps in (400, 400, 400, 20, 20, 20):  # 0.26 and 0.02 of the limit
            w.queue_job(world, run_plan=lw.plan(steps=steps))
            before, used = used, _used(world)
            told = owed(db)
            if told:
                break
        assert before < 0.8 <= used, (before, used)
        assert json.loads(told[0].body)["data"] == {
            "id": world.population,
            "block": "train",
            "state": "used_80_percent",
        }
        w.queue_job(world)
        assert len(owed(db)) == 1

    def test_a_release_is_told_with_its_job(
        self, world: lw.World, settings: Settings, tmp_path: Path
    ) -> None:
        from tests.service.jobs.test_runtime import finish

        register(world, settings)
        claim = w.running_job(world)
        finish(world, claim)
        lw.publish(world, claim.job_id)
        rows = owed(world.db)
        assert [row.type for row in rows] == ["fine_tuning.job.succeeded", "release.published"]
        assert json.loads(rows[1].body)["data"]["job"] == claim.job_id


def _used(world: lw.World) -> float:
    with world.db.reading() as session:
        block = epsilon_limits(session, world.population).blocks[0]
    return 1 - block.free_pico / block.limit_pico


class TestSent:
    def cancelled_job(self, world: lw.World) -> str:
        job = w.queue_job(world)
        with world.db.transaction() as session:
            steering.cancel_job(session, subject_of(world), job)
        return job

    def unwrap(self, heard: Heard, secret: str) -> Any:
        client = openai.OpenAI(api_key="none")
        return client.webhooks.unwrap(heard.body, heard.headers, secret=secret)

    def test_the_openai_client_verifies_and_reads_it(
        self, world: lw.World, settings: Settings
    ) -> None:
        with open_receiver() as receiver:
            _, secret = register(world, settings, receiver.url())
            job = self.cancelled_job(world)
            assert Sender(db=world.db, settings=settings).turn() == 1
            assert Sender(db=world.db, settings=settings).turn() == 0
        event = self.unwrap(receiver.heard[0], secret)
        assert (event.type, event.data.id) == ("fine_tuning.job.cancelled", job)
        row = owed(world.db)[0]
        assert receiver.heard[0].headers["webhook-id"] == row.event_id == event.id
        assert (row.state, row.attempts, row.last_status) == ("delivered", 1, 204)
        altered = Heard(path="/", headers=receiver.heard[0].headers, body=b"{}")
        with pytest.raises(openai.InvalidWebhookSignatureError):
            self.unwrap(altered, secret)

    def test_while_a_secret_is_rotated_both_verify_and_later_only_the_new_one(
        self, world: lw.World, settings: Settings
    ) -> None:
        vault = SecretVault(settings.keys_dir, make=True)
        with open_receiver() as receiver:
            endpoint, old = register(world, settings, receiver.url())
            with world.db.transaction() as session:
                new = service.rotate(session, session.get_one(WebhookEndpoint, endpoint), vault)
            self.cancelled_job(world)
            Sender(db=world.db, settings=settings).turn()
            with world.db.transaction() as session:
                session.execute(update(WebhookEndpoint).values(previous_until=now_us()))
            self.cancelled_job(world)
            Sender(db=world.db, settings=settings).turn()
        first, second = receiver.heard
        assert old != new
        for secret in (old, new):
            self.unwrap(first, secret)
        self.unwrap(second, new)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            self.unwrap(second, old)

    def test_secrets_lie_encrypted_and_bound_to_their_endpoint(
        self, world: lw.World, settings: Settings
    ) -> None:
        endpoint, secret = register(world, settings)
        other, _ = register(world, settings)
        row = endpoint_row(world.db, endpoint)
        assert secret not in row.secret and secret.removeprefix("whsec_") not in row.secret
        with world.db.transaction() as session:  # somebody swaps rows in the database
            session.execute(
                update(WebhookEndpoint).where(WebhookEndpoint.id == other).values(secret=row.secret)
            )
        self.cancelled_job(world)
        Sender(db=world.db, settings=settings, post=answering(200)).turn()
        told = {r.endpoint_id: (r.state, r.last_error) for r in owed(world.db)}
        assert told == {
            endpoint: ("delivered", None),
            other: ("pending", "secret_unreadable"),
        }

    @pytest.mark.parametrize(
        ("answer", "error", "status"),
        [
            (500, "status_refused", 500),
            (302, "status_refused", 302),
            (SendFailed("timeout"), "timeout", None),
            (TargetRefused("address_refused", ""), "address_refused", None),
        ],
    )
    def test_a_failed_try_is_repeated_under_the_same_id(
        self,
        world: lw.World,
        settings: Settings,
        answer: int | Exception,
        error: str,
        status: int | None,
    ) -> None:
        register(world, settings)
        self.cancelled_job(world)
        sender = Sender(db=world.db, settings=settings, post=answering(answer, 200))
        before = now_us()
        assert sender.turn() == 1
        row = owed(world.db)[0]
        assert (row.state, row.last_error, row.last_status) == ("pending", error, status)
        assert 5 * SECOND <= row.not_before - before <= 10 * SECOND
        assert sender.turn() == 0, "not before its time"
        make_due(world.db)
        assert sender.turn() == 1
        again = owed(world.db)[0]
        assert (again.state, again.attempts, again.event_id) == ("delivered", 2, row.event_id)

    def test_waits_grow_from_seconds_to_a_day_and_end_after_three(self) -> None:
        assert list(WAITS) == sorted(WAITS)
        assert (WAITS[0], WAITS[-1]) == (5, 24 * 3600)
        assert 2.5 * 86_400 < sum(WAITS) < 3.2 * 86_400

    def test_a_sender_that_dies_loses_nothing(self, world: lw.World, settings: Settings) -> None:
        register(world, settings)
        self.cancelled_job(world)
        died = Sender(db=world.db, settings=settings, post=answering(200))
        assert len(died._take()) == 1
        other = Sender(db=world.db, settings=settings, post=answering(200))
        assert other.turn() == 0, "held by the first"
        with world.db.transaction() as session:
            over = now_us() - SECOND
            assert owed(world.db)[0].held_until - now_us() <= HOLD_SECONDS * SECOND
            session.execute(update(WebhookDelivery).values(held_until=over))
        assert other.turn() == 1
        assert owed(world.db)[0].state == "delivered"

    def test_gone_switches_the_endpoint_off_with_its_reason(
        self, world: lw.World, settings: Settings
    ) -> None:
        endpoint, _ = register(world, settings)
        self.cancelled_job(world)
        self.cancelled_job(world)
        Sender(db=world.db, settings=settings, post=answering(410)).turn()
        row = endpoint_row(world.db, endpoint)
        assert (row.state, row.disabled_reason) == ("disabled", "gone")
        assert {r.state for r in owed(world.db)} == {"failed"}
        self.cancelled_job(world)
        assert len(owed(world.db)) == 2, "a disabled endpoint is owed nothing"

    def test_three_days_of_failure_switch_it_off(self, world: lw.World, settings: Settings) -> None:
        endpoint, _ = register(world, settings)
        self.cancelled_job(world)
        sender = Sender(db=world.db, settings=settings, post=answering(503))
        for _ in range(len(WAITS) + 1):
            assert endpoint_row(world.db, endpoint).state == "active"
            make_due(world.db)
            assert sender.turn() == 1
        row = endpoint_row(world.db, endpoint)
        assert (row.state, row.disabled_reason) == ("disabled", "failing")
        assert (owed(world.db)[0].state, owed(world.db)[0].attempts) == ("failed", 10)

    def test_one_event_that_is_never_taken_does_not_switch_off_an_endpoint_that_hears_others(
        self, world: lw.World, settings: Settings
    ) -> None:
        endpoint, _ = register(world, settings)
        self.cancelled_job(world)
        with world.db.transaction() as session:
            session.execute(update(WebhookDelivery).values(attempts=len(WAITS)))
            other = session.scalars(select(WebhookEndpoint)).one()
            heard = events.owe(session, [other], type=events.TEST, data={})[0]
            heard.state, heard.ended_at = "delivered", now_us()
        assert Sender(db=world.db, settings=settings, post=answering(500)).turn() == 1
        assert endpoint_row(world.db, endpoint).state == "active"

    def test_old_deliveries_are_forgotten(self, world: lw.World, settings: Settings) -> None:
        register(world, settings)
        self.cancelled_job(world)
        Sender(db=world.db, settings=settings, post=answering(200)).turn()
        self.cancelled_job(world)
        with world.db.transaction() as session:
            long_ago = now_us() - (deliveries.KEPT_SECONDS + 1) * SECOND
            session.execute(
                update(WebhookDelivery)
                .where(WebhookDelivery.state == "delivered")
                .values(ended_at=long_ago)
            )
        deliveries.forget_old(world.db)
        assert [row.state for row in owed(world.db)] == ["pending"]


def test_a_steward_of_another_hospital_sees_no_endpoint(db: Database, settings: Settings) -> None:
    here, there = lw.open_world(db), lw.open_world(db)
    endpoint, _ = register(here, settings)
    stranger = Subject(principal_id=there.proposer, tenant_id=there.tenant, role="steward")
    with db.reading() as session, pytest.raises(service.NotFound):
        service.one_endpoint(session, stranger, endpoint)
