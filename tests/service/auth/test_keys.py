"""Keys: what opens the door, what does not, and what is stored of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from service.auth.keys import DAY_US, authenticate, issue_key
from service.auth.models import ApiKey
from service.auth.service import LIVE_KEYS_MAX
from service.database import now_us
from tests.service.hospital import Hospital, Person


def rows(hospital: Hospital) -> list[ApiKey]:
    with hospital.database.reading() as session:
        return list(session.query(ApiKey))


def change(hospital: Hospital, person: Person, **values: Any) -> None:
    with hospital.database.transaction() as session:
        session.execute(update(ApiKey).where(ApiKey.principal_id == person.id).values(**values))


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


class TestAuthenticate:
    def test_a_live_key_names_its_owner(self, hospital: Hospital) -> None:
        person = hospital.people["steward"]
        owner = authenticate(hospital.database, person.key)
        assert owner is not None
        assert (owner.principal_id, owner.tenant_id, owner.role) == (
            person.id,
            person.tenant_id,
            "steward",
        )

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda key: "",
            lambda key: key[:-1],
            lambda key: key[:-1] + ("0" if key[-1] != "0" else "1"),
            lambda key: key + "_x",
            lambda key: key.replace("rldp", "sk"),
            lambda key: "rldp__" + key.rsplit("_", 1)[1],
            lambda key: key + "\u00e9",
            lambda key: key + "0" * 300,
        ],
    )
    def test_anything_else_names_nobody(
        self, hospital: Hospital, spoil: Callable[[str], str]
    ) -> None:
        assert authenticate(hospital.database, spoil(hospital.people["admin"].key)) is None

    def test_expired_and_revoked_keys_answer_like_unknown_ones(self, hospital: Hospital) -> None:
        person, other = hospital.people["steward"], hospital.people["submitter"]
        change(hospital, person, created_at=now_us() - 2, expires_at=now_us() - 1)
        change(hospital, other, revoked_at=now_us())
        unknown = {"Authorization": "Bearer rldp_abc_def"}
        bodies = [
            hospital.client.get("/v1/models", headers=headers).json() | {"request_id": ""}
            for headers in (person.headers, other.headers, unknown)
        ]
        assert bodies[0] == bodies[1] == bodies[2]
        assert bodies[0]["status"] == 401

    def test_the_last_use_is_noted_to_the_minute(self, hospital: Hospital) -> None:
        person = hospital.people["auditor"]
        authenticate(hospital.database, person.key)
        (row,) = [r for r in rows(hospital) if r.principal_id == person.id]
        assert row.last_used_at is not None and row.last_used_at % 60_000_000 == 0


class TestStorage:
    def test_no_part_of_the_secret_is_stored(self, hospital: Hospital) -> None:
        secret = hospital.people["admin"].key.rsplit("_", 1)[1]
        assert len(secret) == 64  # 256 bits
        for row in rows(hospital):
            text = " ".join(str(value) for value in vars(row).values())
            assert secret[:8] not in text

    def test_the_text_is_left_out_of_repr(self, hospital: Hospital) -> None:
        with hospital.database.transaction() as session:
            issued = issue_key(session, hospital.people["admin"].id)
        assert issued.text not in repr(issued)

    @pytest.mark.parametrize("days", [0, 366])
    def test_a_lifetime_has_bounds(self, hospital: Hospital, days: int) -> None:
        with pytest.raises(ValueError), hospital.database.transaction() as session:
            issue_key(session, hospital.people["admin"].id, lifetime_days=days)


class TestRoutes:
    def create(self, hospital: Hospital, person: Person, **body: Any) -> Any:
        return hospital.client.post("/v1/api_keys", json=body, headers=person.headers)

    def test_anonymous(self, hospital: Hospital) -> None:
        assert hospital.client.get("/v1/api_keys").status_code == 401
        assert hospital.client.post("/v1/api_keys", json={}).status_code == 401

    def test_keys_of_others_are_absent_except_for_their_admin(self, hospital: Hospital) -> None:
        key_id = self.create(hospital, hospital.people["submitter"]).json()["id"]
        path = f"/v1/api_keys/{key_id}"
        for person in (hospital.colleague, hospital.people["steward"], hospital.others["admin"]):
            for answer in (
                hospital.client.get(path, headers=person.headers),
                hospital.client.delete(path, headers=person.headers | {"If-Match": "*"}),
            ):
                assert code(answer) == (404, "not_found")
            listed = hospital.client.get("/v1/api_keys", headers=person.headers).json()["data"]
            assert key_id not in [item["id"] for item in listed]
        admin = hospital.people["admin"].headers
        assert hospital.client.get(path, headers=admin).status_code == 200
        listed = hospital.client.get("/v1/api_keys", headers=admin).json()["data"]
        assert len({item["principal"] for item in listed}) == 5

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ({"expires_in_days": 366}, (422, "field_invalid")),
            ({"expires_in_days": 0}, (422, "field_invalid")),
            ({"expires_in_days": "7"}, (422, "field_invalid")),
            ({"principal": "usr_x"}, (400, "unknown_field")),
        ],
    )
    def test_invalid(
        self, hospital: Hospital, body: dict[str, Any], expected: tuple[int, str]
    ) -> None:
        assert code(self.create(hospital, hospital.people["admin"], **body)) == expected

    def test_a_new_key_opens_the_door_and_its_text_is_shown_once(self, hospital: Hospital) -> None:
        person = hospital.people["submitter"]
        answer = self.create(hospital, person, expires_in_days=7)
        assert answer.status_code == 201
        made = answer.json()
        new = {"Authorization": f"Bearer {made['key']}"}
        assert hospital.client.get("/v1/models", headers=new).status_code == 200
        again = hospital.client.get(answer.headers["location"], headers=person.headers)
        assert "key" not in again.json()
        assert made["key"] not in again.text
        (row,) = [r for r in rows(hospital) if r.id == made["id"]]
        assert row.expires_at - row.created_at == 7 * DAY_US

    def test_a_key_is_revoked_at_once_by_who_has_read_it(self, hospital: Hospital) -> None:
        person = hospital.people["submitter"]
        made = self.create(hospital, person)
        path, etag = made.headers["location"], made.headers["etag"]

        def delete(**headers: str) -> Any:
            sent = person.headers | {n.replace("_", "-"): v for n, v in headers.items()}
            return hospital.client.delete(path, headers=sent)

        assert code(delete()) == (428, "precondition_required")
        assert code(delete(if_match='"other"')) == (412, "etag_mismatch")
        new = {"Authorization": f"Bearer {made.json()['key']}"}
        assert hospital.client.get("/v1/models", headers=new).status_code == 200
        assert delete(if_match=etag).json()["deleted"] is True
        assert hospital.client.get("/v1/models", headers=new).status_code == 401
        assert code(delete(if_match=etag)) == (412, "etag_mismatch")

    def test_there_is_a_limit_of_live_keys(self, hospital: Hospital) -> None:
        person = hospital.people["submitter"]
        for _ in range(LIVE_KEYS_MAX - 1):
            assert self.create(hospital, person).status_code == 201
        answer = self.create(hospital, person)
        assert code(answer) == (429, "quota_exceeded")
