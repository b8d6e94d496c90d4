"""The API's description: stored, compared, and complete (service.md 2.6, 3, 4)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.errors import STATUS_OF_CODE
from service.openapi import TITLES, operations
from tests.contract.openapi_diff import ADVICE, SNAPSHOT, breaks, current_document

Document = dict[str, Any]


@pytest.fixture(scope="module")
def served() -> Document:
    return current_document()


@pytest.fixture
def stored() -> Document:
    return dict(json.loads(SNAPSHOT.read_text()))


def test_the_stored_document_is_the_one_served(served: Document, stored: Document) -> None:
    found = breaks(stored, served)
    assert not found, "\n".join(["These changes break clients:", *found, ADVICE])
    assert stored == served, f"The description has grown or was reworded. {ADVICE}"


JOBS = "/v1/fine_tuning/jobs"


def drop_path(new: Document) -> None:
    del new["paths"][f"{JOBS}/{{job_id}}"]


def drop_operation(new: Document) -> None:
    del new["paths"][JOBS]["post"]


def drop_status(new: Document) -> None:
    del new["paths"][JOBS]["get"]["responses"]["429"]


def drop_media_type(new: Document) -> None:
    del new["paths"]["/v1/budgets"]["get"]["responses"]["200"]["content"]["text/csv"]


def drop_header(new: Document) -> None:
    del new["components"]["responses"]["Problem429"]["headers"]["Retry-After"]


def drop_field_of_answer(new: Document) -> None:
    del new["components"]["schemas"]["Problem"]["properties"]["request_id"]


def retype_field_of_answer(new: Document) -> None:
    new["components"]["schemas"]["Problem"]["properties"]["status"] = {"type": "string"}


def loosen_field_of_answer(new: Document) -> None:
    new["components"]["schemas"]["Problem"]["required"].remove("detail")


def drop_field_of_request(new: Document) -> None:
    del new["components"]["schemas"]["JobRequest"]["properties"]["suffix"]


def narrow_type_of_request(new: Document) -> None:
    field = new["components"]["schemas"]["GrantCreate"]["properties"]["epsilon"]
    field["anyOf"] = [{"type": "string"}]


def narrow_bound(new: Document) -> None:
    new["components"]["schemas"]["KeyCreate"]["properties"]["expires_in_days"]["maximum"] = 30


def narrow_list(new: Document) -> None:
    new["components"]["schemas"]["GrantCreate"]["properties"]["reason_code"]["enum"].pop()


def require_field(new: Document) -> None:
    new["components"]["schemas"]["JobRequest"]["required"].append("seed")


def require_parameter(new: Document) -> None:
    parameter = {"name": "why", "in": "query", "required": True, "schema": {"type": "string"}}
    new["paths"][JOBS]["get"]["parameters"].append(parameter)


def drop_parameter(new: Document) -> None:
    new["paths"][JOBS]["get"]["parameters"].clear()


def ask_for_a_key(new: Document) -> None:
    new["paths"]["/healthz"]["get"]["security"] = [{"HTTPBearer": []}]


def rename_operation(new: Document) -> None:
    new["paths"][JOBS]["get"]["operationId"] = "jobs"


BREAKING: list[tuple[Callable[[Document], None], str]] = [
    (drop_path, "GET /v1/fine_tuning/jobs/{job_id}: the operation is gone"),
    (drop_operation, "POST /v1/fine_tuning/jobs: the operation is gone"),
    (drop_status, "GET /v1/fine_tuning/jobs: answer 429 is gone"),
    (drop_media_type, "GET /v1/budgets: answer 200: text/csv is gone"),
    (drop_header, "GET /v1/fine_tuning/jobs: answer 429: header Retry-After is gone"),
    (drop_field_of_answer, "GET /v1/models: answer 401.request_id: is gone"),
    (retype_field_of_answer, "GET /v1/models: answer 401.status: was integer and is string"),
    (loosen_field_of_answer, "GET /v1/models: answer 401.detail: is no longer always there"),
    (drop_field_of_request, "POST /v1/fine_tuning/jobs: request.suffix: is gone"),
    (narrow_type_of_request, "POST /v1/grants: request.epsilon: takes no number any more"),
    (
        narrow_bound,
        "POST /v1/api_keys: request.expires_in_days: maximum is 30 and was 365",
    ),
    (narrow_list, 'POST /v1/grants: request.reason_code: no longer takes "lowering"'),
    (require_field, "POST /v1/fine_tuning/jobs: request.seed: is required now"),
    (
        require_parameter,
        "GET /v1/fine_tuning/jobs: query parameter why is new and required",
    ),
    (drop_parameter, "GET /v1/fine_tuning/jobs: query parameter limit is gone"),
    (ask_for_a_key, "GET /healthz: asks for a key now"),
    (
        rename_operation,
        "GET /v1/fine_tuning/jobs: operationId is another, which names methods of made clients",
    ),
]


@pytest.mark.parametrize(
    ("change", "words"), BREAKING, ids=lambda one: getattr(one, "__name__", "")
)
def test_what_breaks_a_client_is_named(
    stored: Document, change: Callable[[Document], None], words: str
) -> None:
    new = copy.deepcopy(stored)
    change(new)
    assert words in breaks(stored, new)


def add_operation(new: Document) -> None:
    new["paths"]["/v1/new"] = {"get": {"operationId": "new", "responses": {}}}


def add_parameter(new: Document) -> None:
    parameter = {"name": "more", "in": "query", "required": False, "schema": {"type": "string"}}
    new["paths"][JOBS]["get"]["parameters"].append(parameter)


def add_fields(new: Document) -> None:
    for name in ("JobRequest", "Problem"):
        new["components"]["schemas"][name]["properties"]["more"] = {"type": "string"}


def widen_request(new: Document) -> None:
    fields = new["components"]["schemas"]["KeyCreate"]["properties"]
    fields["expires_in_days"]["maximum"] = 1000
    new["components"]["schemas"]["GrantCreate"]["properties"]["reason_code"]["enum"].append("more")


def add_status_and_code(new: Document) -> None:
    new["paths"]["/healthz"]["get"]["responses"]["503"] = {"description": "new"}
    problem = new["components"]["schemas"]["Problem"]["properties"]["error"]["properties"]
    problem["code"]["enum"].append("more")


@pytest.mark.parametrize(
    "change", [add_operation, add_parameter, add_fields, widen_request, add_status_and_code]
)
def test_what_grows_breaks_nobody(stored: Document, change: Callable[[Document], None]) -> None:
    new = copy.deepcopy(stored)
    change(new)
    assert new != stored and breaks(stored, new) == []


KEYLESS = {"/v1/invitations/accept"}  # its token is the credential; see there for repeats


def secured(document: Document) -> Iterator[tuple[str, str, Any]]:
    for path, method, operation in operations(document):
        if path.startswith("/v1/") and path not in KEYLESS:
            yield path, method, operation


class TestEachOperation:
    def test_asks_for_a_key_and_says_what_it_answers_without(self, served: Document) -> None:
        for path, method, operation in secured(served):
            assert operation["security"] == [{"HTTPBearer": []}], (method, path)
            assert {"401", "403", "429", "500", "503"} <= operation["responses"].keys()
        assert served["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
        for path, method, operation in operations(served):
            if path in KEYLESS:
                assert "security" not in operation, (method, path)
                assert {"422", "429", "500", "503"} <= operation["responses"].keys()

    def test_answers_errors_with_the_one_body(self, served: Document) -> None:
        for path, method, operation in operations(served):
            errors = [s for s in operation["responses"] if not s.startswith("2")]
            assert errors, (method, path)
            for status in errors:
                answer = operation["responses"][status]
                assert answer == {"$ref": f"#/components/responses/Problem{status}"}
        for status, answer in served["components"]["responses"].items():
            assert list(answer["content"]) == ["application/problem+json"], status

    def test_announces_limits_in_every_answer(self, served: Document) -> None:
        wanted = {"x-request-id", "RateLimit", "RateLimit-Policy"}
        for answer in served["components"]["responses"].values():
            assert wanted <= answer["headers"].keys()
        for path, method, operation in operations(served):
            for status in (s for s in operation["responses"] if s.startswith("2")):
                headers = operation["responses"][status]["headers"]
                assert wanted <= headers.keys(), (method, path)

    def test_makes_things_once_under_a_key(self, served: Document) -> None:
        """Each POST takes the header, or is one whose repetition changes nothing."""
        repeatable = {
            "approvals",
            "redactions",
            "estimate",
            "forecast",
            "cancel",
            "pause",
            "resume",
            "drain",
            "acknowledgement",
            "block",
            "unblock",
            "approval",
            "completions",  # it makes nothing
        }
        for path, method, operation in secured(served):
            names = {one["name"] for one in operation.get("parameters", [])}
            takes = method == "post" and path.rpartition("/")[2] not in repeatable
            assert ("Idempotency-Key" in names) == takes, (method, path)
            replayed = [a.get("headers", {}) for a in operation["responses"].values()]
            assert any("Idempotent-Replayed" in one for one in replayed) == takes

    def test_names_every_error_code(self, served: Document) -> None:
        assert set(TITLES) == set(STATUS_OF_CODE.values()) - {405}
        for code, status in STATUS_OF_CODE.items():
            if status != 405:  # of a method that the description does not name
                answer = served["components"]["responses"][f"Problem{status}"]
                assert code in json.dumps(answer)
