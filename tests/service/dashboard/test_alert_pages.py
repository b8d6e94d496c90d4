"""Acknowledging an alert on the dashboard and through the API: for admins alone."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from service.database import now_us
from service.fleet import registry
from tests.service.dashboard.scene import Scene
from tests.service.dashboard.test_operations_page import admin_of, section
from tests.service.dashboard.test_pages import _token, sign_in
from tests.service.dashboard.test_steer_pages import press
from tests.service.operations.test_acknowledgements import deafen

NOTE = "the fan <b>is</b> ordered"


@pytest.fixture
def worker(own: Scene) -> Iterator[str]:
    """One that fell silent."""
    db, name = own.world.db, f"wk_{uuid.uuid4().hex}"
    registry.join(db, name, device="CPU, 2 cores", version="0.1.0", beat_seconds=15)
    deafen(db, name, minutes=5)
    yield name
    registry.leave(db, name)


@pytest.fixture
def alert(own: Scene, worker: str) -> str:
    """The way to the page of the alert about it."""
    headers = {"Authorization": f"Bearer {own.keys['admin']}"}
    listed = own.client().get("/v1/operations", headers=headers).json()["alerts"]
    (found,) = [one["id"] for one in listed if one["subject"] == worker]
    return f"/alerts/{found}"


def token_of(client: TestClient, path: str) -> str:
    return _token(client.get(path).text.partition("<main")[2])


def api(own: Scene, role: str, alert: str, **body: str) -> tuple[int, dict[str, object]]:
    path = f"/v1/operations{alert}/acknowledgement"
    headers = {"Authorization": f"Bearer {own.keys[role]}"}
    answer = own.client().post(path, headers=headers, json=body)
    return answer.status_code, answer.json()


def test_it_asks_first_and_then_stands_below_the_strip(own: Scene, worker: str, alert: str) -> None:
    client = admin_of(own)
    assert f'href="{alert}"' in client.get("/").text
    asked = client.get(alert).text
    assert "It mends nothing" in asked and "last heard of" in asked
    assert press(client, alert, token_of(client, alert), note=NOTE) == (303, "/")
    html = client.get("/").text
    told = section(html, "alerts")
    assert f'href="{alert}"' not in html
    assert "1 acknowledged, not over yet" in told
    assert own.world.admin[-6:] in told
    assert "the fan &lt;b&gt;is&lt;/b&gt; ordered" in html and NOTE not in html
    assert "acknowledged already" in client.get(alert).text
    registry.leave(own.world.db, worker)
    assert client.get(alert).status_code == 404
    assert "acknowledged" not in section(client.get("/").text, "alerts")


def test_the_live_part_holds_the_way_and_no_form(own: Scene, alert: str) -> None:
    part = admin_of(own).get("/live/operations").text
    assert f'href="{alert}"' in part and "form_token" not in part


def test_nobody_but_an_admin_and_never_without_a_token(own: Scene, alert: str) -> None:
    assert press(own.client(), alert, "")[1] == "/signin"
    for role in ("submitter", "steward", "auditor"):
        client = own.client()
        sign_in(client, own.keys[role])
        assert client.get(alert).status_code == 404
        assert press(client, alert, _token(client.get("/").text))[0] == 404
    admin = admin_of(own)
    for token in ("", "0" * 64):
        assert press(admin, alert, token)[0] == 400
    assert press(admin, alert, token_of(admin, alert), note="x" * 201)[0] == 422
    assert press(admin, alert, token_of(admin, alert), note="a\x07b")[0] == 422
    assert press(admin, "/alerts/alert_none", token_of(admin, alert))[0] == 404
    assert f'href="{alert}"' in admin.get("/").text


def test_the_api_says_and_does_the_same(own: Scene, alert: str) -> None:
    assert api(own, "steward", alert)[0] == 403
    assert api(own, "admin", "/alerts/alert_none")[0] == 404
    assert api(own, "admin", alert, note="x" * 201)[0] == 422
    assert api(own, "admin", alert, note="a\x07b")[0] == 422
    status, told = api(own, "admin", alert, note="known")
    assert status == 200 and told["code"] == "worker_deaf"
    known = told["acknowledged"]
    assert isinstance(known, dict) and (known["by"], known["note"]) == (own.world.admin, "known")
    assert abs(known["at"] - now_us() // 1_000_000) < 60
    assert api(own, "admin", alert, note="other")[1] == told
    headers = {"Authorization": f"Bearer {own.keys['admin']}"}
    listed = own.client().get("/v1/operations", headers=headers).json()["alerts"]
    assert told in listed
