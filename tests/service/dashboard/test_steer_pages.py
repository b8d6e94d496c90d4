"""Buttons: pause, resume, cancel after a question, drain; for whom, and never without a token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from service.auth.keys import issue_key
from service.fleet import registry
from tests.service.dashboard.scene import Scene
from tests.service.dashboard.test_pages import _token, sign_in
from tests.service.jobs import world as jw
from tests.service.ledger import world as w

Enter = Callable[[str], TestClient]


@pytest.fixture
def enter(own: Scene) -> Enter:
    def entered(role: str) -> TestClient:
        client = own.client()
        sign_in(client, own.keys[role])
        return client

    return entered


@pytest.fixture
def job(own: Scene) -> str:
    return jw.queue_job(own.world)


def press(client: TestClient, path: str, token: str, **more: str) -> tuple[int, str]:
    answer = client.post(path, data={"form_token": token, **more})
    return answer.status_code, answer.headers.get("location", "")


@pytest.mark.parametrize("role", ["submitter", "steward", "admin"])
def test_the_buttons_of_a_job_pause_resume_and_cancel_it(
    own: Scene, enter: Enter, job: str, role: str
) -> None:
    client = enter(role)
    page = client.get(f"/jobs/{job}").text
    assert f'formaction="/jobs/{job}/pause"' in page and "/resume" not in page
    token = _token(page.partition("<main")[2])
    assert press(client, f"/jobs/{job}/pause", token) == (303, f"/jobs/{job}")
    assert jw.state(own.world.db, job) == "paused"
    assert f'formaction="/jobs/{job}/resume"' in client.get(f"/jobs/{job}").text
    assert press(client, f"/jobs/{job}/resume", token, back="overview") == (303, "/")
    assert jw.state(own.world.db, job) == "queued"
    asked = client.get(f"/jobs/{job}/cancel").text
    assert "It cannot be resumed" in asked and jw.state(own.world.db, job) == "queued"
    assert press(client, f"/jobs/{job}/cancel", _token(asked.partition("<main")[2]))[0] == 303
    assert jw.state(own.world.db, job) == "cancelled"
    over = client.get(f"/jobs/{job}").text
    assert "/pause" not in over and f"/jobs/{job}/cancel" not in over


def test_without_the_sessions_token_nothing_changes(own: Scene, enter: Enter, job: str) -> None:
    client = enter("submitter")
    other = _token(enter("steward").get(f"/jobs/{job}").text.partition("<main")[2])
    for token in ("", "0" * 64, other):
        assert press(client, f"/jobs/{job}/cancel", token)[0] == 400
    assert jw.state(own.world.db, job) == "queued"


def test_nobody_steers_what_they_may_not_see(own: Scene, enter: Enter, job: str) -> None:
    assert press(own.client(), f"/jobs/{job}/cancel", "")[1] == "/signin"
    auditor = enter("auditor")
    assert auditor.get(f"/jobs/{job}/cancel").status_code == 404
    assert press(auditor, f"/jobs/{job}/cancel", "")[0] == 404
    other = w.found(own.world.db)
    with own.world.db.transaction() as session:
        key = issue_key(session, other.proposer).text
    client = own.client()
    sign_in(client, key)
    token = _token(client.get("/").text)
    theirs = client.post(f"/jobs/{job}/cancel", data={"form_token": token})
    absent = client.post("/jobs/ftjob-none/cancel", data={"form_token": token})
    assert (theirs.status_code, theirs.text) == (absent.status_code, absent.text)
    assert theirs.status_code == 404 and jw.state(own.world.db, job) == "queued"


def test_what_cannot_be_done_is_told_and_changes_nothing(own: Scene, enter: Enter) -> None:
    client = enter("steward")
    token = _token(client.get("/").text)
    answer = client.post(f"/jobs/{own.released}/pause", data={"form_token": token})
    assert answer.status_code == 409
    assert "A job in state succeeded cannot become paused." in answer.text
    assert client.post(f"/jobs/{own.released}/praise", data={}).status_code == 422
    assert "over already" in client.get(f"/jobs/{own.released}/cancel").text


def test_only_admins_drain_a_worker(own: Scene, enter: Enter) -> None:
    db = own.world.db
    registry.join(db, "wk_tired", device="CPU, 2 cores", version="0.1.0", beat_seconds=60)
    steward, admin = enter("steward"), enter("admin")
    path = "/workers/wk_tired/drain"
    assert press(steward, path, _token(steward.get("/").text))[0] == 404
    assert press(admin, path, "")[0] == 400
    assert not registry.is_draining(db, "wk_tired")
    page = admin.get("/").text
    assert f'formaction="{path}"' in page
    assert press(admin, path, _token(page.partition("<main")[2])) == (303, "/")
    assert registry.is_draining(db, "wk_tired")
    assert press(admin, "/workers/wk_none/drain", _token(page))[0] == 404
    registry.leave(db, "wk_tired")
