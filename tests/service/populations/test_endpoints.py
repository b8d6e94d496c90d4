"""POST and GET /v1/populations (access by role and tenant: the ledger's endpoint tests)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import select

from service.ledger.models import Account, Entry
from service.populations.models import Population
from tests.service.hospital import Hospital

GOOD = {
    "code": "cardio",
    "patients_public": 200_000,
    "patients_public_basis": "registry",
    "overlap_with": [],
    "validation_fraction": "0.1",
}


def create(hospital: Hospital, **changes: Any) -> Any:
    steward = hospital.people["steward"]
    return hospital.client.post("/v1/populations", json=GOOD | changes, headers=steward.headers)


class TestCreate:
    def test_an_exact_number_may_be_declared_if_it_is_called_that(self, hospital: Hospital) -> None:
        answer = create(hospital, patients_public_basis="counted")
        assert (answer.status_code, answer.json()["patients_public_basis"]) == (201, "counted")

    @pytest.mark.parametrize(
        ("change", "status"),
        [
            ({"patients_public": 1}, 422),
            ({"patients_public": "200000"}, 422),
            ({"patients_public_basis": "a friend told me"}, 422),
            ({"validation_fraction": "0.6"}, 422),
            ({"validation_fraction": "1e-9"}, 422),
            ({"code": "No Spaces"}, 422),
            ({"overlap_with": ["pop_unknown"]}, 422),
            ({"split_key": "mine"}, 400),
        ],
    )
    def test_unacceptable_fields_are_refused(
        self, hospital: Hospital, change: dict[str, Any], status: int
    ) -> None:
        assert create(hospital, **change).status_code == status
        with hospital.database.reading() as session:
            assert session.scalars(select(Population)).all() == []

    def test_registers_blocks_accounts_and_entry_without_any_budget(
        self, hospital: Hospital
    ) -> None:
        answer = create(hospital, validation_fraction=0.1)
        shown = answer.json()
        assert answer.status_code == 201
        assert answer.headers["location"] == f"/v1/populations/{shown['id']}"
        assert (shown["unit"], shown["relation"]) == ("patient", "add_remove")
        assert (shown["alpha_star"], shown["delta"], shown["frozen"]) == (None, None, False)
        assert shown["blocks"] == ["train", "validation"]
        assert "split_key" not in shown
        with hospital.database.reading() as session:
            accounts = session.scalars(select(Account)).all()
            assert {a.balance_pico for a in accounts} == {0}
            assert len(accounts) == 6
            entry = session.scalars(select(Entry).order_by(Entry.idx.desc())).first()
            assert entry is not None
            data = json.loads(entry.body)["data"]
            key = session.get_one(Population, shown["id"]).split_key
        assert (entry.type, data["validation_fraction"]) == ("population.registered", "0.1")
        assert "cardio" not in entry.body  # no free text of a client in an entry
        assert len(key) == 32
        assert key.hex() not in entry.body

    def test_two_populations_have_different_split_keys(self, hospital: Hospital) -> None:
        create(hospital)
        create(hospital, code="renal")
        with hospital.database.reading() as session:
            assert len({p.split_key for p in session.scalars(select(Population))}) == 2

    def test_a_code_is_taken_once_per_tenant(self, hospital: Hospital) -> None:
        create(hospital)
        again = create(hospital)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "state_conflict")

    def test_overlap_may_name_own_populations(self, hospital: Hospital) -> None:
        first = create(hospital).json()["id"]
        assert create(hospital, code="renal", overlap_with=[first]).status_code == 201


class TestRead:
    def test_lists_newest_first_by_pages(self, hospital: Hospital) -> None:
        made = [create(hospital, code=f"p{n}").json()["id"] for n in range(3)]
        headers = hospital.people["auditor"].headers
        page = hospital.client.get("/v1/populations?limit=2", headers=headers).json()
        assert [item["id"] for item in page["data"]] == made[:0:-1]
        assert page["has_more"] is True
        rest = hospital.client.get(
            f"/v1/populations?limit=2&after={page['last_id']}", headers=headers
        ).json()
        assert [item["id"] for item in rest["data"]] == made[:1]
        bad = hospital.client.get("/v1/populations?after=pop_x", headers=headers)
        assert bad.json()["error"]["code"] == "cursor_invalid"
