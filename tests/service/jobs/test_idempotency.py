"""`Idempotency-Key` on job creation (service.md 4): one job, one reservation, one answer."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, update

from service.app import create_app
from service.errors import IdempotencyKeyReused, RequestInProgress
from service.idempotency import store as idempotency
from service.idempotency.models import IdempotencyKey
from service.jobs import outbox, service, steering
from service.jobs.models import Job
from service.jobs.service import _keyed
from service.ledger.models import Reservation
from service.settings import Settings
from tests.service.jobs import world as w
from tests.service.jobs.test_endpoints import keys_of
from tests.service.jobs.test_service import BODY, request, subject_of
from tests.service.ledger import world as lw

DAY_US = 86_400 * w.SECOND


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def file_id(world: lw.World, tmp_path: Path) -> str:
    return w.add_dataset(world, tmp_path)[0]


def create(world: lw.World, settings: Settings, file_id: str, key: str, **changes: Any) -> Any:
    body = request(file_id, **changes)
    return service.create_job(world.db, settings, subject_of(world), body, key)


def counts(world: lw.World) -> tuple[int | None, int | None, int | None]:
    with world.db.reading() as session:
        jobs, reservations, keys = (
            session.scalar(select(func.count()).select_from(table))
            for table in (Job, Reservation, IdempotencyKey)
        )
    return jobs, reservations, keys


class TestKey:
    def test_the_first_answer_is_given_again_even_after_the_job_changed(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        first = create(world, settings, file_id, "k-1")
        with world.db.transaction() as session:
            steering.cancel_job(session, subject_of(world), first.answer["id"])
        again = create(world, settings, file_id, '"k-1"')
        assert again.is_replayed and not first.is_replayed
        assert json.dumps(again.answer) == json.dumps(first.answer)
        assert counts(world) == (1, 1, 1)

    def test_a_key_with_another_body_is_refused_and_writes_nothing(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        create(world, settings, file_id, "k-1")
        with pytest.raises(IdempotencyKeyReused):
            create(world, settings, file_id, "k-1", seed=8)
        assert counts(world) == (1, 1, 1)

    def test_another_key_with_an_equal_body_still_finds_the_live_job(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        first = create(world, settings, file_id, "k-1")
        second = create(world, settings, file_id, "k-2")
        assert second.is_replayed and second.answer["id"] == first.answer["id"]
        assert counts(world) == (1, 1, 2)

    def test_a_key_holds_where_the_natural_key_is_switched_off(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        first = create(world, settings, file_id, "k-1", allow_duplicate=True)
        again = create(world, settings, file_id, "k-1", allow_duplicate=True)
        assert again.answer == first.answer
        assert create(world, settings, file_id, "k-2", allow_duplicate=True).answer != first.answer
        assert counts(world) == (2, 2, 2)

    def test_a_day_later_the_key_is_free_and_the_dispatcher_drops_it(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        create(world, settings, file_id, "k-1")
        outbox.clean(world.db)
        assert counts(world)[2] == 1
        with world.db.transaction() as session:
            old = IdempotencyKey.created_at - DAY_US
            session.execute(update(IdempotencyKey).values(created_at=old))
        assert not create(world, settings, file_id, "k-1", seed=8).is_replayed
        with world.db.transaction() as session:
            session.execute(update(IdempotencyKey).values(created_at=0))
        outbox.clean(world.db)
        assert counts(world) == (2, 2, 0)

    def test_a_refused_budget_leaves_the_key_free(
        self, world: lw.World, settings: Settings, file_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError("the reservation fails")

        with monkeypatch.context() as patched:
            patched.setattr(service.ledger, "reserve", refuse)
            with pytest.raises(RuntimeError):
                create(world, settings, file_id, "k-1")
        assert counts(world) == (0, 0, 0)
        assert not create(world, settings, file_id, "k-1").is_replayed

    def test_equal_requests_at_once_make_one_job(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        def post(_: int) -> Any:
            return create(world, settings, file_id, "k-1", allow_duplicate=True)

        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(post, range(4)))
        assert len({one.answer["id"] for one in made}) == 1
        assert [one.is_replayed for one in made].count(False) == 1
        assert counts(world) == (1, 1, 1)


def test_a_key_held_longer_than_two_seconds_is_answered_in_progress(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "WAIT_MILLISECONDS", 100)
    with lw.postgres_database() as db:
        world = lw.open_world(db)
        file_id = w.add_dataset(world, tmp_path)[0]
        held = _keyed(subject_of(world), request(file_id), "k-1")
        assert held is not None
        with db.transaction() as session:
            assert idempotency.take(session, held) is None
            with pytest.raises(RequestInProgress):
                create(world, settings, file_id, "k-1")
            idempotency.forget_old(session)
            session.rollback()
        assert counts(world) == (0, 0, 0)
        assert not create(world, settings, file_id, "k-1").is_replayed


class LosesReplies(httpx.BaseTransport):
    """Passes each request on, and loses the first replies after the server has committed."""

    def __init__(self, inner: Any, *, losses: int) -> None:
        self.inner, self.losses, self.seen = inner, losses, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.seen += 1
        answer = self.inner.request(
            request.method,
            str(request.url),
            content=request.read(),
            headers=dict(request.headers),
        )
        if self.seen <= self.losses:
            raise httpx.ReadError("connection lost")
        return httpx.Response(
            answer.status_code, headers={"content-type": "application/json"}, text=answer.text
        )


class TestOpenAiClient:
    """The unmodified client retries by itself when a reply is lost."""

    def test_a_lost_reply_ends_in_one_job_and_one_reservation(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        with TestClient(create_app(settings, world.db), raise_server_exceptions=False) as inner:
            transport = LosesReplies(inner, losses=2)
            client = openai.OpenAI(
                api_key=keys_of(world)["submitter"],
                base_url="http://testserver/v1",
                max_retries=3,
                http_client=httpx.Client(transport=transport),
            )
            job = client.fine_tuning.jobs.create(
                model=BODY["model"],
                training_file=file_id,
                extra_body={k: v for k, v in BODY.items() if k not in ("model", "training_file")},
                extra_headers={"Idempotency-Key": "order-1"},
            )
        assert transport.seen == 3
        with world.db.reading() as session:
            assert session.scalars(select(Job.id)).all() == [job.id]
        assert counts(world) == (1, 1, 1)

    def test_another_body_under_the_key_is_told_what_to_do(
        self, world: lw.World, settings: Settings, file_id: str
    ) -> None:
        key = keys_of(world)["submitter"]
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "order-1"}
        body = {**BODY, "training_file": file_id}
        with TestClient(create_app(settings, world.db)) as client:
            first = client.post("/v1/fine_tuning/jobs", json=body, headers=headers)
            again = client.post("/v1/fine_tuning/jobs", json=body, headers=headers)
            other = client.post("/v1/fine_tuning/jobs", json={**body, "seed": 8}, headers=headers)
        assert (first.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")
        assert again.json() == first.json()
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
        assert "new key" in other.json()["error"]["message"]
