"""A job's stream: what it says is what the routes answer, who may listen, where it goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from service import hub as hubs
from service.jobs import leases, runtime
from service.jobs.lifecycle import Reason
from service.jobs.stream_endpoints import Follower
from tests.service.jobs import world as w
from tests.service.jobs.test_endpoints import JOBS, Site, site
from tests.service.worker.test_supervisor import wait_for

__all__ = ["site"]  # a fixture
Message = tuple[str, Any, str]  # kind, data, id


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "LOOK_SECONDS", 0.02)


def parsed(text: str) -> list[Message]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if "event" in fields:
            found.append((fields["event"], json.loads(fields["data"]), fields.get("id", "")))
    return found


def windows(site: Site, claim: leases.Claim, *steps: int) -> None:
    for step in steps:
        runtime.record_window(
            site.world.db,
            claim.job_id,
            claim.epoch,
            step=step,
            window=step // 10 - 1,
            metrics=[
                runtime.Metric(name="loss_noised", step=step, value_text=f"{step / 10}"),
                runtime.Metric(name="clip_norm", group="0.A", step=step, value_text="0.5"),
            ],
            event_message=f"Window at {step}.",
            event_data={"step": step},
        )


def end(site: Site, claim: leases.Claim) -> None:
    leases.fail_attempt(site.world.db, claim.job_id, claim.epoch, Reason.MODEL_REFUSED, True)


@contextmanager
def listening(site: Site, job: str, role: str = "submitter") -> Iterator[list[str]]:
    """The text of the whole stream, once it is over; the block runs while it is open."""
    texts: list[str] = []

    def listen() -> None:
        texts.append(site.call("GET", f"{JOBS}/{job}/stream", role).text)

    thread = threading.Thread(target=listen)
    thread.start()
    hub = hubs.hub_of(site.client.app)  # type: ignore[arg-type]
    topic = hubs.Topic(site.world.tenant, job)
    wait_for(lambda: topic in hub._versions)
    yield texts
    thread.join(20)
    assert not thread.is_alive(), "the stream ends by itself"


def test_a_job_is_told_from_its_state_to_its_end_as_the_routes_answer_it(site: Site) -> None:
    claim = w.running_job(site.world)
    with listening(site, claim.job_id) as texts:
        windows(site, claim, 10)
        runtime.record_evaluation(
            site.world.db, claim.job_id, claim.epoch, step=10, loss="3", std="1", reference="r1"
        )
        windows(site, claim, 20)
        end(site, claim)
    said = parsed(texts[0])
    whole = f"{JOBS}/{claim.job_id}"
    states = [data for kind, data, _ in said if kind == "state"]
    assert [state["state"] for state in states] == ["running", "failed"]
    assert states[-1] == site.call("GET", whole).json()
    assert said[-1][0] == "state", "the end comes last"
    steps = [data["step"] for kind, data, _ in said if kind == "progress"]
    assert steps[0] == 0 and steps[-1] == 20
    told: dict[tuple[str, str | None, str], list[Any]] = {}
    for kind, data, _ in said:
        if kind == "metric":
            points = told.setdefault((data["name"], data["group"], data["class"]), [])
            points += data["points"]
    answered = site.call("GET", f"{whole}/metrics").json()["series"]
    assert told == {(s["name"], s["group"], s["class"]): s["points"] for s in answered}
    assert len(told) == 3, "each point once, the late one of a step too"
    documented(site, said)


def documented(site: Site, said: list[Message]) -> None:
    """Every message is one that the OpenAPI document describes, and each kind is there."""
    document = site.client.app.openapi()  # type: ignore[attr-defined]
    answer = document["paths"][f"{JOBS}/{{job_id}}/stream"]["get"]["responses"]["200"]
    kinds = answer["content"]["text/event-stream"]["itemSchema"]["oneOf"]
    shapes = {
        kind["properties"]["event"]["const"]: kind["properties"]["data"]["contentSchema"]
        for kind in kinds
    }
    assert {kind for kind, *_ in said} == set(shapes)
    for kind, data, _ in said:
        whole = {**shapes[kind], "components": document["components"]}
        Draft202012Validator(whole).validate(data)


def test_it_goes_on_where_the_caller_left_off(site: Site) -> None:
    claim = w.running_job(site.world)
    windows(site, claim, 10, 20, 30)
    end(site, claim)
    path = f"{JOBS}/{claim.job_id}/stream"
    first = parsed(site.call("GET", path).text)
    figures, last = [name for *_, name in first if name]
    assert (figures, last) == (f"{claim.epoch}.30", f"{claim.epoch}.30.end")
    again = {"Authorization": f"Bearer {site.keys['submitter']}", "Last-Event-ID": figures}
    assert parsed(site.client.get(path, headers=again).text)[-1] == first[-1], "the end is told"
    done = site.client.get(
        path,
        headers={"Authorization": f"Bearer {site.keys['submitter']}", "Last-Event-ID": last},
    )
    assert (done.status_code, done.content) == (204, b""), "no client asks again for ever"


def points_of(site: Site, job: str, follower: Follower) -> list[Any]:
    with site.world.db.reading() as session:
        said = parsed("".join(follower.news(session, w.row(site.world.db, job))))
    series = [data for kind, data, _ in said if kind == "metric" and data["name"] == "loss_noised"]
    return [point for one in series for point in one["points"]]


def test_a_cursor_skips_what_was_told_and_hears_a_window_that_was_run_again(site: Site) -> None:
    claim = w.running_job(site.world)
    windows(site, claim, 10, 20)
    follower = Follower.after(f"{claim.epoch}.20")
    assert points_of(site, claim.job_id, follower) == [[20, "2.0"]], "its own step may come again"
    assert points_of(site, claim.job_id, follower) == []
    leases.fail_attempt(site.world.db, claim.job_id, claim.epoch, Reason.TRAINER_KILLED, False)
    w.skip_back_off(site.world.db, claim.job_id)
    again = leases.claim(
        site.world.db, worker_id="wk_b", job_id=claim.job_id, lease_seconds=w.LEASE_SECONDS
    )
    assert again is not None
    windows(site, again, 20)
    assert points_of(site, claim.job_id, follower) == [[20, "2.0"]]


@pytest.mark.parametrize("strange", [None, "", "x", "1.", "-1.2", "1.2.3", "9" * 60])
def test_a_cursor_that_is_not_ours_starts_anew(strange: str | None) -> None:
    assert Follower.after(strange) == Follower()


def test_a_revoked_key_hears_nothing_more(site: Site) -> None:
    claim = w.running_job(site.world)
    (key_id,) = (one["id"] for one in site.call("GET", "/v1/api_keys").json()["data"])
    with listening(site, claim.job_id) as texts:
        path = f"/v1/api_keys/{key_id}"
        mine = {"Authorization": f"Bearer {site.keys['submitter']}"}
        tag = {"If-Match": site.call("GET", path).headers["etag"]}
        assert site.client.delete(path, headers=mine | tag).status_code == 200
        windows(site, claim, 10)
    assert [kind for kind, *_ in parsed(texts[0])] == ["progress", "state"], "from before it"


def test_one_too_many_is_told_when_to_come_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "STREAMS_MAX", 0)
    answer = site.call("GET", f"{JOBS}/{w.queue_job(site.world)}/stream")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
    assert answer.json()["error"]["code"] == "rate_limited"
