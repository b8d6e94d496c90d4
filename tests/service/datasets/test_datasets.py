"""Datasets and versions over HTTP; the unit of privacy is a steward's word."""

from __future__ import annotations

from typing import Any

import pytest

from tests.service.hospital import GOOD_ROWS, Hospital, Person, jsonl


def post(hospital: Hospital, person: Person | None, path: str, body: Any) -> Any:
    return hospital.client.post(path, json=body, headers=person.headers if person else {})


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


class TestCreate:
    def test_anonymous(self, hospital: Hospital) -> None:
        assert post(hospital, None, "/v1/datasets", {}).status_code == 401

    @pytest.mark.parametrize("role", ["submitter", "auditor", "admin"])
    def test_wrong_role(self, hospital: Hospital, role: str) -> None:
        body = {"population": hospital.population(hospital.people["steward"])}
        answer = post(hospital, hospital.people[role], "/v1/datasets", body)
        assert code(answer) == (403, "role_forbidden")

    def test_population_of_another_tenant(self, hospital: Hospital) -> None:
        body = {"population": hospital.population(hospital.others["steward"])}
        answer = post(hospital, hospital.people["steward"], "/v1/datasets", body)
        assert code(answer) == (404, "not_found")

    @pytest.mark.parametrize(
        ("changes", "population", "expected"),
        [
            ({"populaton": "x"}, {}, (400, "unknown_field")),
            ({"is_public": True}, {}, (400, "unsupported_option")),
            ({"unit_field": "text"}, {}, (422, "field_invalid")),
            ({"unit_field": ""}, {}, (422, "field_invalid")),
            # a population that counts patients needs to know them apart
            ({"unit_field": None}, {}, (422, "field_invalid")),
            (
                {"unit_field": None, "records_are_unique_patients": True},
                {},
                (422, "field_invalid"),
            ),
            # one that counts records needs the statement
            ({"unit_field": None}, {"unit": "record"}, (422, "field_invalid")),
            ({}, {"unit": "record"}, (422, "field_invalid")),
            # and a row number is no stable name for a split
            (
                {"unit_field": None, "records_are_unique_patients": True},
                {"unit": "record", "validation_fraction": "0.1"},
                (422, "field_invalid"),
            ),
        ],
    )
    def test_invalid(
        self,
        hospital: Hospital,
        changes: dict[str, Any],
        population: dict[str, Any],
        expected: tuple[int, str],
    ) -> None:
        steward = hospital.people["steward"]
        body = {"population": hospital.population(steward, **population)} | changes
        assert code(post(hospital, steward, "/v1/datasets", body)) == expected

    def test_valid(self, hospital: Hospital) -> None:
        steward = hospital.people["steward"]
        population = hospital.population(steward)
        answer = post(hospital, steward, "/v1/datasets", {"population": population})
        assert answer.status_code == 201
        shown = answer.json()
        assert answer.headers["location"] == f"/v1/datasets/{shown['id']}"
        assert (shown["population"], shown["unit_field"]) == (population, "patient_id")
        for role in ("submitter", "auditor", "admin", "steward"):
            headers = hospital.people[role].headers
            again = hospital.client.get(f"/v1/datasets/{shown['id']}", headers=headers)
            assert again.json() == shown
            listed = hospital.client.get("/v1/datasets", headers=headers).json()
            assert listed["data"] == [shown]
        foreign = hospital.others["steward"].headers
        assert hospital.client.get(answer.headers["location"], headers=foreign).status_code == 404
        assert hospital.client.get("/v1/datasets", headers=foreign).json()["data"] == []


class TestVersions:
    def test_of_records_are_their_own_units(self, hospital: Hospital) -> None:
        steward = hospital.people["steward"]
        dataset = hospital.dataset(
            steward,
            population=hospital.population(steward, unit="record"),
            unit_field=None,
            records_are_unique_patients=True,
        )
        content = jsonl({"text": "a"}, {"text": "b"})
        shown = hospital.upload(steward, content, dataset=dataset).json()
        path = f"/v1/datasets/{dataset}/versions/{shown['dataset_version']}"
        version = hospital.client.get(path, headers=steward.headers).json()
        assert (version["unit"], version["patients_public"]) == ("record", 1000)
        content = hospital.client.get(f"/v1/files/{shown['id']}/content", headers=steward.headers)
        assert b'"unit":"row-2"' in content.content

    def test_shown_hold_no_digest_and_no_count_of_the_data(self, hospital: Hospital) -> None:
        steward = hospital.people["steward"]
        dataset = hospital.dataset(steward)
        hospital.upload(steward, GOOD_ROWS, dataset=dataset)
        listed = hospital.client.get(f"/v1/datasets/{dataset}/versions", headers=steward.headers)
        (version,) = listed.json()["data"]
        assert set(version) == {
            "id",
            "object",
            "dataset",
            "file",
            "patients_public",
            "unit",
            "state",
            "created_at",
        }

    def test_are_made_from_a_file_uploaded_without_a_dataset(self, hospital: Hospital) -> None:
        steward, submitter = hospital.people["steward"], hospital.people["submitter"]
        dataset = hospital.dataset(steward)
        path = f"/v1/datasets/{dataset}/versions"
        file = hospital.upload(submitter, GOOD_ROWS).json()["id"]
        assert post(hospital, None, path, {"file": file}).status_code == 401
        assert code(post(hospital, hospital.people["auditor"], path, {"file": file}))[0] == 403
        assert post(hospital, hospital.others["submitter"], path, {"file": file}).status_code == 404
        not_theirs = post(hospital, hospital.colleague, path, {"file": file})
        assert code(not_theirs) == (422, "field_invalid")
        bad = hospital.upload(submitter, b"{}\n").json()["id"]
        assert code(post(hospital, submitter, path, {"file": bad})) == (422, "file_invalid")
        other = hospital.upload(
            submitter, jsonl({"visit": "1", "text": "a"}), unit_field="visit"
        ).json()["id"]
        assert code(post(hospital, submitter, path, {"file": other})) == (422, "field_invalid")
        made = post(hospital, submitter, path, {"file": file})
        assert made.status_code == 201
        assert hospital.client.get(made.headers["location"], headers=steward.headers).json() == (
            made.json()
        )
        again = post(hospital, submitter, path, {"file": file})
        assert code(again) == (409, "state_conflict")
        assert again.headers["x-should-retry"] == "false"

    def test_of_another_dataset_are_absent(self, hospital: Hospital) -> None:
        steward = hospital.people["steward"]
        first, second = hospital.dataset(steward), hospital.dataset(steward)
        version = hospital.upload(steward, GOOD_ROWS, dataset=first).json()["dataset_version"]
        for dataset, status in ((first, 200), (second, 404)):
            path = f"/v1/datasets/{dataset}/versions/{version}"
            assert hospital.client.get(path, headers=steward.headers).status_code == status
