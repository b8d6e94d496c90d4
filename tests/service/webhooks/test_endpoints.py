"""Routes of webhooks: anonymous, wrong role, other hospital's, invalid, valid."""

from __future__ import annotations

from typing import Any

import pytest

from service.settings import Settings
from service.webhooks import deliveries
from service.webhooks.models import WebhookDelivery
from tests.service.hospital import ROLES, Hospital, Person

WEBHOOKS = "/v1/webhooks"
BODY: dict[str, Any] = {"url": "https://hooks.example/rldp", "events": ["release.published"]}
ROUTES = [
    ("POST", "", BODY),
    ("GET", "", None),
    ("GET", "/{id}", None),
    ("PATCH", "/{id}", {"state": "disabled"}),
    ("POST", "/{id}/rotate", None),
    ("POST", "/{id}/test", None),
    ("GET", "/{id}/deliveries", None),
    ("POST", "/{id}/deliveries/{delivery}/replay", None),
    ("DELETE", "/{id}", None),
]


def call(hospital: Hospital, person: Person | None, method: str, path: str, **more: Any) -> Any:
    headers = (person.headers if person else {}) | more.pop("headers", {})
    return hospital.client.request(method, WEBHOOKS + path, headers=headers, **more)


def make(hospital: Hospital, person: Person | None = None, **changes: Any) -> dict[str, Any]:
    answer = call(hospital, person or hospital.people["steward"], "POST", "", json=BODY | changes)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def sent_delivery(hospital: Hospital, webhook: str) -> str:
    """A delivery that was made, so that it can be replayed."""
    steward = hospital.people["steward"]
    made = call(hospital, steward, "POST", f"/{webhook}/test").json()
    settings = Settings(data_dir=hospital.settings.data_dir)
    sender = deliveries.Sender(db=hospital.database, settings=settings, post=lambda *_, **__: 200)
    assert sender.turn() == 1
    return str(made["id"])


class TestAccess:
    @pytest.mark.parametrize(("method", "path", "body"), ROUTES)
    def test_only_stewards_of_the_same_hospital(
        self, hospital: Hospital, method: str, path: str, body: Any
    ) -> None:
        webhook = make(hospital)["id"]
        url = path.format(id=webhook, delivery=sent_delivery(hospital, webhook))
        more = {"json": body} if body else {}
        more["headers"] = {"If-Match": "*"}
        assert call(hospital, None, method, url, **_copy(more)).status_code == 401
        for role in set(ROLES) - {"steward"}:
            answer = call(hospital, hospital.people[role], method, url, **_copy(more))
            assert answer.status_code == 403, (role, answer.text)
            assert answer.json()["error"]["code"] == "role_forbidden"
        stranger = call(hospital, hospital.others["steward"], method, url, **_copy(more))
        if "{id}" in path:
            absent = path.format(id="wh_none", delivery="whd_none")
            same = call(hospital, hospital.others["steward"], method, absent, **_copy(more))
            assert stranger.status_code == same.status_code == 404
        elif method == "GET":
            assert stranger.json()["data"] == []
        allowed = call(hospital, hospital.people["steward"], method, url, **_copy(more))
        assert allowed.status_code in (200, 201), allowed.text

    def test_a_delivery_is_replayed_by_its_own_endpoint_only(self, hospital: Hospital) -> None:
        mine, other = make(hospital)["id"], make(hospital)["id"]
        delivery = sent_delivery(hospital, mine)
        steward = hospital.people["steward"]
        path = f"/{other}/deliveries/{delivery}/replay"
        assert call(hospital, steward, "POST", path).status_code == 404


def _copy(more: dict[str, Any]) -> dict[str, Any]:
    return {name: dict(value) for name, value in more.items()}


class TestBody:
    @pytest.mark.parametrize(
        ("changes", "pointer"),
        [
            ({"url": "http://hooks.example/"}, "/url"),
            ({"url": "https://169.254.169.254/"}, "/url"),
            ({"url": "https://localhost.localdomain:99999/"}, "/url"),
            ({"url": "no url"}, "/url"),
            ({"url": 7}, "/url"),
            ({"events": []}, "/events"),
            ({"events": ["release.*"]}, "/events/0"),
        ],
    )
    def test_an_unacceptable_value_is_refused_and_never_repeated(
        self, hospital: Hospital, changes: dict[str, Any], pointer: str
    ) -> None:
        steward = hospital.people["steward"]
        answer = call(hospital, steward, "POST", "", json=BODY | changes)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == pointer
        assert "169.254" not in answer.text and "hooks.example" not in answer.text

    def test_an_unknown_field_is_refused(self, hospital: Hospital) -> None:
        steward = hospital.people["steward"]
        answer = call(hospital, steward, "POST", "", json=BODY | {"secret": "whsec_x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_field")

    def test_ten_are_enough(self, hospital: Hospital) -> None:
        for _ in range(10):
            made = make(hospital)
        steward = hospital.people["steward"]
        answer = call(hospital, steward, "POST", "", json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "quota_exceeded")
        call(hospital, steward, "DELETE", f"/{made['id']}", headers={"If-Match": "*"})
        make(hospital)

    def test_production_makes_no_key_by_itself(self, hospital: Hospital) -> None:
        hospital.app.state.settings = hospital.settings.model_copy(
            update={"environment": "production"}
        )
        steward = hospital.people["steward"]
        answer = call(hospital, steward, "POST", "", json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert answer.json()["checks"] == {"webhook_key": "unusable"}


class TestLife:
    def test_the_secret_is_shown_once(self, hospital: Hospital) -> None:
        steward = hospital.people["steward"]
        made = make(hospital)
        assert made["secret"].startswith("whsec_") and made["state"] == "active"
        read = call(hospital, steward, "GET", f"/{made['id']}").json()
        assert read == {name: value for name, value in made.items() if name != "secret"}
        listed = call(hospital, steward, "GET", "")
        assert listed.json()["data"] == [read]
        rotated = call(hospital, steward, "POST", f"/{made['id']}/rotate").json()
        assert rotated["secret"] != made["secret"] and rotated["previous_secret_until"]

    def test_changes_need_the_etag_that_was_read(self, hospital: Hospital) -> None:
        steward = hospital.people["steward"]
        webhook = make(hospital)["id"]
        tag = call(hospital, steward, "GET", f"/{webhook}").headers["etag"]
        change = {"json": {"events": ["ledger.alert"]}}
        assert call(hospital, steward, "PATCH", f"/{webhook}", **change).status_code == 428
        assert call(hospital, steward, "DELETE", f"/{webhook}").status_code == 428
        first = call(hospital, steward, "PATCH", f"/{webhook}", headers={"If-Match": tag}, **change)
        assert first.status_code == 200 and first.json()["events"] == ["ledger.alert"]
        assert first.headers["etag"] != tag
        again = call(hospital, steward, "PATCH", f"/{webhook}", headers={"If-Match": tag}, **change)
        assert (again.status_code, again.json()["error"]["code"]) == (412, "etag_mismatch")

    def test_a_deleted_one_is_gone_and_its_secret_with_it(self, hospital: Hospital) -> None:
        steward = hospital.people["steward"]
        webhook = make(hospital)["id"]
        answer = call(hospital, steward, "DELETE", f"/{webhook}", headers={"If-Match": "*"})
        assert answer.json() == {"id": webhook, "object": "webhook", "deleted": True}
        assert call(hospital, steward, "GET", f"/{webhook}").status_code == 404
        assert call(hospital, steward, "GET", "").json()["data"] == []

    def test_a_test_is_delivered_and_can_be_replayed(self, hospital: Hospital) -> None:
        steward = hospital.people["steward"]
        webhook = make(hospital)["id"]
        pending = call(hospital, steward, "POST", f"/{webhook}/test").json()
        assert (pending["type"], pending["state"]) == ("webhook.test", "pending")
        replay = f"/{webhook}/deliveries/{pending['id']}/replay"
        early = call(hospital, steward, "POST", replay)
        assert (early.status_code, early.headers["x-should-retry"]) == (409, "false")
        settings = Settings(data_dir=hospital.settings.data_dir)
        deliveries.Sender(db=hospital.database, settings=settings, post=lambda *_, **__: 200).turn()
        replayed = call(hospital, steward, "POST", replay)
        assert replayed.status_code == 201
        listed = call(hospital, steward, "GET", f"/{webhook}/deliveries").json()["data"]
        assert [row["id"] for row in listed] == [replayed.json()["id"], pending["id"]]
        assert {row["event_id"] for row in listed} == {pending["event_id"]}
        assert [row["state"] for row in listed] == ["pending", "delivered"]

    def test_a_disabled_one_is_switched_on_again(self, hospital: Hospital) -> None:
        steward = hospital.people["steward"]
        webhook = make(hospital)["id"]
        call(hospital, steward, "POST", f"/{webhook}/test")
        match = {"If-Match": "*"}

        def switch(state: str) -> Any:
            body = {"state": state}
            return call(hospital, steward, "PATCH", f"/{webhook}", headers=match, json=body).json()

        off = switch("disabled")
        assert (off["state"], off["disabled_reason"]) == ("disabled", "by_steward")
        with hospital.database.reading() as session:
            assert [row.state for row in session.query(WebhookDelivery)] == ["failed"]
        assert call(hospital, steward, "POST", f"/{webhook}/test").status_code == 409
        on = switch("active")
        assert (on["state"], on["disabled_reason"]) == ("active", None)
        assert call(hospital, steward, "POST", f"/{webhook}/test").status_code == 201
