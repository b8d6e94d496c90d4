"""The stream of a tab: who may open one, when it speaks, when it ends; parts drawn once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service import hub as hubs
from service import logged_reads
from service.auth.keys import issue_key
from service.hub import STREAMS_MAX, Hub, TooManyStreams, Topic
from service.jobs import runtime
from tests.service.apart import run_apart
from tests.service.dashboard.scene import Scene
from tests.service.dashboard.test_pages import sign_in
from tests.service.ledger import world as w

WAIT = 20.0


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "LOOK_SECONDS", 0.02)


async def _quiet(stream: AsyncIterator[bool]) -> None:
    """Takes what is said until nothing has changed for a while."""
    async with asyncio.timeout(WAIT):
        while await anext(stream):
            pass


async def _change(stream: AsyncIterator[bool]) -> None:
    """Waits through signs of life until a change is told."""
    async with asyncio.timeout(WAIT):
        while not await anext(stream):
            pass


class TestAccess:
    def test_strangers_and_other_hospitals_hear_nothing(self, scene: Scene) -> None:
        assert scene.client().get("/live/stream").status_code == 401
        other = w.found(scene.world.db)
        with scene.world.db.transaction() as session:
            key = issue_key(session, other.proposer).text
        client = scene.client()
        sign_in(client, key)
        theirs = client.get(f"/live/stream?job={scene.running}")
        assert (theirs.status_code, client.get("/live/stream?job=x").status_code) == (404, 404)

    def test_a_person_has_at_most_twenty(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hubs, "STREAMS_MAX", 0)
        client = scene.client()
        sign_in(client, scene.keys["steward"])
        answer = client.get("/live/stream")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")


@pytest.mark.usefixtures("fast")
class TestHub:
    def test_it_speaks_when_its_topic_changes_and_not_for_another(
        self, own: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hubs, "BEAT_SECONDS", 0.3)
        run_apart(self._listen(own))

    async def _listen(self, scene: Scene) -> None:
        hub, tenant = Hub(scene.world.db), scene.world.tenant
        async with (
            aclosing(hub.listen(Topic(tenant), "a")) as everything,
            aclosing(hub.listen(Topic(tenant, scene.running), "a")) as running,
            aclosing(hub.listen(Topic(tenant, scene.waiting), "a")) as waiting,
        ):
            for stream in (everything, running, waiting):
                await _quiet(stream)
            runtime.record_step(scene.world.db, scene.running, 1, 71)
            await _change(running)
            await _change(everything)
            assert not await anext(waiting)
        await asyncio.sleep(0.1)
        assert hub._task is not None and hub._task.done()  # nobody listens, nobody looks

    def test_it_ends_by_age_and_refuses_one_too_many(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hubs, "AGE_SECONDS", 0.2)
        monkeypatch.setattr(hubs, "BEAT_SECONDS", 0.05)
        run_apart(self._age(scene))

    async def _age(self, scene: Scene) -> None:
        hub, topic = Hub(scene.world.db), Topic(scene.world.tenant)
        streams = [hub.listen(topic, "a") for _ in range(STREAMS_MAX)]
        for stream in streams:
            await anext(stream)
        with pytest.raises(TooManyStreams):
            await anext(hub.listen(topic, "a"))
        assert hub.has_room("b")
        async with asyncio.timeout(WAIT):
            for stream in streams:
                assert [said async for said in stream][-1:] != [True]
        assert hub.has_room("a")

    def test_a_part_is_drawn_once_a_change_and_per_audience(self, scene: Scene) -> None:
        run_apart(self._draw(scene))

    async def _draw(self, scene: Scene) -> None:
        hub, topic, drawn = Hub(scene.world.db), Topic(scene.world.tenant), []

        def draw() -> bytes:
            drawn.append(1)
            return b"part"

        hub.part(topic, "steward", draw)
        hub.part(topic, "steward", draw)
        assert len(drawn) == 2  # nobody listens: nothing is known of changes
        async with aclosing(hub.listen(topic, "a")) as stream:
            await anext(stream)
            await anext(stream)
            for audience in ("steward", "steward", "auditor"):
                assert hub.part(topic, audience, draw) == b"part"
            assert len(drawn) == 4
            hub._versions[topic] += "changed"
            hub.part(topic, "steward", draw)
            assert len(drawn) == 5


def test_parts_hold_no_form_since_they_are_shared(scene: Scene) -> None:
    client: TestClient = scene.client()
    sign_in(client, scene.keys["submitter"])
    for path in ("/live/overview", f"/live/jobs/{scene.running}", f"/live/jobs/{scene.released}"):
        assert "form_token" not in client.get(path).text


def test_equal_reads_of_an_hour_are_entered_once_and_then_cost_no_write(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    record = logged_reads.access.record

    def counted(*given: Any, **named: Any) -> Any:
        written.append(named["route"])
        return record(*given, **named)

    monkeypatch.setattr(logged_reads.access, "record", counted)
    monkeypatch.setattr(logged_reads, "this_minute", lambda: "2031-01-01T10:00Z")
    client = scene.client()
    sign_in(client, scene.keys["steward"])
    for _ in range(3):
        client.get("/live/overview")
    client.get(f"/live/jobs/{scene.running}")
    assert written == ["/live/overview", "/live/jobs/{job_id}"]
    monkeypatch.setattr(logged_reads, "this_minute", lambda: "2031-01-01T11:00Z")
    client.get("/live/overview")
    assert written[2:] == ["/live/overview"]
