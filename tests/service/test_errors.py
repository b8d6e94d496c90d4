"""One error body for both worlds, which repeats nothing that was sent."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from fastapi import FastAPI, Query
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict, Field

from service.edge import Edge
from service.error_table import DOMAIN_ERRORS, as_service_error
from service.errors import STATUS_OF_CODE, ServiceError, StateConflict
from service.gauges import http_seconds
from service.jobs.errors import FieldInvalid as JobFieldInvalid
from service.ledger.errors import BudgetExceeded
from service.listing import ListQuery
from service.problems import install_handlers
from service.traces import NoTraces
from tests.service.hospital import Hospital

CANARY = "canary-7f3a"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    target_epsilon: str | None = None
    steps_max: int | None = None


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    training_file: str = Field(max_length=8)
    privacy: Inner | None = None
    metadata: dict[str, str] = {}
    levels: list[int] = []


@pytest.fixture
def client() -> TestClient:
    app = FastAPI(openapi_url=None)

    @app.post("/v1/things/{thing_id}")
    def make(thing_id: str, body: Outer) -> dict[str, str]:
        raise StateConflict("Not now.")

    @app.get("/v1/things")
    def things(query: Annotated[ListQuery, Query()]) -> dict[str, str]:
        raise RuntimeError(CANARY)

    @app.get("/v1/balance")
    def balance() -> dict[str, str]:
        raise BudgetExceeded(
            population_id="pop_1", block="train", requested_pico=7, available_pico=3
        )

    install_handlers(app)
    app.add_middleware(Edge, seconds=http_seconds(CollectorRegistry()), traces=NoTraces())
    return TestClient(app)


def post(client: TestClient, body: Any) -> tuple[int, dict[str, Any], str]:
    answer = client.post("/v1/things/abc", json=body)
    return answer.status_code, answer.json(), answer.text


class TestBody:
    def test_holds_the_fields_of_both_worlds(self, client: TestClient) -> None:
        answer = client.post("/v1/things/abc", json={"training_file": "x"})
        assert answer.status_code == 409
        assert answer.headers["content-type"] == "application/problem+json"
        body = answer.json()
        assert body == {
            "type": "/problems/state_conflict",
            "title": "State conflict",
            "status": 409,
            "detail": "Not now.",
            "instance": "/v1/things/{thing_id}",
            "request_id": answer.headers["x-request-id"],
            "error": {
                "message": "Not now.",
                "type": "invalid_request_error",
                "param": None,
                "code": "state_conflict",
            },
        }

    def test_a_conflict_forbids_the_client_to_repeat(self, client: TestClient) -> None:
        answer = client.post("/v1/things/abc", json={"training_file": "x"})
        assert answer.headers["x-should-retry"] == "false"

    def test_a_refused_budget_shows_the_balance(self, client: TestClient) -> None:
        answer = client.get("/v1/balance")
        assert answer.status_code == 403
        assert answer.json()["balance"] == {
            "population": "pop_1",
            "block": "train",
            "needed_pico": "7",
            "available_pico": "3",
        }

    def test_an_unforeseen_error_tells_its_request_id_and_nothing_else(
        self, client: TestClient
    ) -> None:
        answer = client.get("/v1/things")
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal"
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert CANARY not in answer.text

    def test_an_unforeseen_error_is_logged_by_type_and_place_without_its_text(
        self, client: TestClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        client.get("/v1/things")
        assert "RuntimeError at service/test_errors.py" in caplog.text
        assert CANARY not in caplog.text


class TestUnknownFields:
    @pytest.mark.parametrize(
        ("body", "pointer", "nearest"),
        [
            ({"training_file": "x", "traning_file": 1}, "/*", "training_file"),
            (
                {"training_file": "x", "privacy": {"target_epsilom": "3"}},
                "/privacy/*",
                "target_epsilon",
            ),
        ],
    )
    def test_offers_the_nearest_known_field_and_never_names_the_key(
        self, client: TestClient, body: Any, pointer: str, nearest: str
    ) -> None:
        status, problem, text = post(client, body)
        assert (status, problem["error"]["code"]) == (400, "unknown_field")
        assert problem["errors"][0]["pointer"] == pointer
        assert f"nearest known field is {nearest}." in problem["detail"]
        assert "traning_file" not in text and "epsilom" not in text

    def test_win_over_unacceptable_values(self, client: TestClient) -> None:
        status, problem, _ = post(client, {"training_file": 5, CANARY: 1})
        assert (status, problem["error"]["code"]) == (400, "unknown_field")

    def test_are_refused_in_queries_too(self, client: TestClient) -> None:
        answer = client.get("/v1/things", params={"limt": 5})
        assert answer.status_code == 400
        assert "nearest known field is limit." in answer.json()["detail"]
        assert "limt" not in answer.text


class TestUnacceptableValues:
    def test_are_all_named_at_once_by_pointer_and_our_own_text(self, client: TestClient) -> None:
        status, problem, text = post(
            client,
            {
                "privacy": {"steps_max": CANARY},
                "levels": [1, CANARY],
                "metadata": {CANARY: 5},
            },
        )
        assert (status, problem["error"]["code"]) == (422, "field_invalid")
        found = {(e["pointer"], e["code"]) for e in problem["errors"]}
        assert found == {
            ("/training_file", "field_missing"),
            ("/privacy/steps_max", "field_type"),
            ("/levels/1", "field_type"),
            ("/metadata/*", "field_type"),
        }
        assert CANARY not in text

    def test_the_param_is_the_first_pointer_with_dots(self, client: TestClient) -> None:
        _, problem, _ = post(client, {"training_file": "x", "privacy": {"steps_max": "a"}})
        assert problem["error"]["param"] == "privacy.steps_max"

    def test_a_body_that_is_no_json_is_400(self, client: TestClient, hospital: Hospital) -> None:
        answer = hospital.client.post(
            "/v1/datasets",
            content=f'{{"population": {CANARY}'.encode(),
            headers=hospital.people["steward"].headers | {"content-type": "application/json"},
        )
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "malformed_json"
        assert CANARY not in answer.text

    def test_a_body_that_is_no_json_from_nobody_is_401(self, hospital: Hospital) -> None:
        answer = hospital.client.post(
            "/v1/datasets", content=b"{", headers={"content-type": "application/json"}
        )
        assert answer.status_code == 401


class TestTable:
    def test_every_domain_error_has_a_documented_code_with_its_status(self) -> None:
        assert DOMAIN_ERRORS
        for kind, (status, code) in DOMAIN_ERRORS.items():
            assert STATUS_OF_CODE.get(code) == status, kind

    def test_a_field_named_by_the_domain_becomes_pointer_and_param(self) -> None:
        answer = as_service_error(JobFieldInvalid("privacy.target_epsilon", "Too small."))
        assert answer is not None
        assert answer.param == "privacy.target_epsilon"
        assert answer.extra["errors"] == [
            {
                "pointer": "/privacy/target_epsilon",
                "code": "field_invalid",
                "message": "Too small.",
            }
        ]

    def test_an_error_of_no_table_has_no_answer_of_its_own(self) -> None:
        assert as_service_error(RuntimeError(CANARY)) is None

    def test_a_code_cannot_be_used_with_another_status(self) -> None:
        with pytest.raises(AssertionError):
            ServiceError(409, "not_found", "x")


class TestNul:
    """PostgreSQL holds and seeks no text with NUL; SQLite does, so both must refuse it first."""

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("GET", "/v1/files/a%00b", None),
            ("GET", "/v1/files?after=a%00b", None),
            ("POST", "/v1/fine_tuning/jobs/a%00b/cancel", None),
            ("POST", "/v1/datasets", {"population": "a\0b"}),
            ("POST", "/v1/populations", {"code": "abc", "overlap_with": ["a\0b"]}),
            ("POST", "/v1/fine_tuning/jobs", {"model": "m", "training_file": "a\0b"}),
            ("POST", "/v1/fine_tuning/jobs", {"metadata": {"a\0b": "c"}}),
        ],
    )
    def test_is_refused_before_the_database(
        self, hospital: Hospital, method: str, path: str, body: Any
    ) -> None:
        headers = hospital.people["steward"].headers
        answer = hospital.client.request(method, path, json=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_json")

    @pytest.mark.parametrize("text", [b"a\0b", b"\xff\xfe"])
    def test_and_in_a_form(self, hospital: Hospital, text: bytes) -> None:
        body = (
            b'--x\r\nContent-Disposition: form-data; name="dataset"\r\n\r\n' + text + b"\r\n--x--"
        )
        headers = hospital.people["steward"].headers | {
            "Content-Type": "multipart/form-data; boundary=x"
        }
        answer = hospital.client.post("/v1/files", content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "dataset")
