"""`Idempotency-Key` on every POST that makes something: done once, answered as often as asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import func, select

from service.app import AUTHENTICATED
from service.auth.models import ApiKey
from service.datasets.models import Dataset, DatasetVersion, File
from service.idempotency.models import IdempotencyKey
from service.ledger.models import BudgetGrant
from service.populations.models import Population
from service.tenants.models import Principal, Tenant
from service.webhooks.models import WebhookDelivery, WebhookEndpoint
from tests.service.hospital import GOOD_ROWS, Hospital, Person
from tests.service.webhooks.test_endpoints import BODY as WEBHOOK

Body = Callable[[Hospital, int], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One route, two acceptable bodies, and the table in which its effect is counted."""

    path: str
    table: Any
    body: Body
    role: str = "steward"
    secret: str | None = None
    refused: dict[str, Any] = field(default_factory=dict)


POPULATION = {"patients_public": 900, "patients_public_basis": "registry"}
CASES = {
    "population": Case(
        path="/v1/populations",
        table=Population,
        body=lambda _, n: {"code": f"ward-{n}", **POPULATION},
        refused={"overlap_with": ["pop_none"]},
    ),
    "dataset": Case(
        path="/v1/datasets",
        table=Dataset,
        body=lambda hospital, n: {"population": _population(hospital, n)},
        refused={"population": "pop_none"},
    ),
    "grant": Case(
        path="/v1/grants",
        table=BudgetGrant,
        body=lambda hospital, n: {
            "population": _population(hospital, 0),
            "epsilon": str(n + 1),
            "reason_code": "study_start",
        },
        refused={"population": "pop_none"},
    ),
    "webhook": Case(
        path="/v1/webhooks",
        table=WebhookEndpoint,
        body=lambda _, n: WEBHOOK | {"url": f"https://hooks.example/{n}"},
        secret="secret",
        refused={"url": "https://127.0.0.1/"},
    ),
    "api key": Case(
        path="/v1/api_keys",
        table=ApiKey,
        body=lambda _, n: {"expires_in_days": n + 1},
        secret="key",
    ),
    "user": Case(
        path="/v1/users",
        table=Principal,
        body=lambda _, n: {"role": ("submitter", "auditor", "steward")[n]},
        role="admin",
        secret="token",
        refused={"role": "emperor"},
    ),
}
# POSTs of which a second one changes nothing by itself, or that write nothing.
NATURALLY_ONCE = {
    "/v1/fine_tuning/jobs/estimate",
    "/v1/fine_tuning/jobs/{job_id}/cancel",
    "/v1/fine_tuning/jobs/{job_id}/pause",
    "/v1/fine_tuning/jobs/{job_id}/resume",
    "/v1/grants/{grant_id}/approvals",
    "/v1/releases/{release_id}/approvals",
    "/v1/ledger/recoveries/{recovery_id}/approvals",
    "/v1/ledger/entries/{idx}/redactions",
    "/v1/ledger/forecast",
    "/v1/operations/alerts/{alert_id}/acknowledgement",
    "/v1/workers/{worker_id}/drain",
    "/v1/users/{user_id}/block",
    "/v1/users/{user_id}/unblock",
    "/v1/users/{user_id}/approval",
    "/v1/chat/completions",
}


def _population(hospital: Hospital, number: int) -> str:
    """Always the same ones: a repeated request must have the same body."""
    with hospital.database.reading() as session:
        code = f"idem-{number}"
        found = session.scalar(select(Population.id).where(Population.code == code))
    return found or hospital.population(hospital.people["steward"], code=code)


def post(hospital: Hospital, person: Person, path: str, key: str | None, body: Any) -> Any:
    headers = person.headers | ({"Idempotency-Key": key} if key else {})
    more = {} if body is None else {"json": body}
    return hospital.client.post(path, headers=headers, **more)


def count(hospital: Hospital, table: Any) -> int:
    with hospital.database.reading() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


@pytest.mark.parametrize("name", CASES)
class TestRoutes:
    def test_a_repeated_post_is_answered_and_not_repeated(
        self, hospital: Hospital, name: str
    ) -> None:
        case, person = CASES[name], hospital.people[CASES[name].role]
        body = case.body(hospital, 1)
        before = count(hospital, case.table)
        first = post(hospital, person, case.path, "k-1", body)
        again = post(hospital, person, case.path, '"k-1"', body)
        assert first.status_code == again.status_code == 201, (first.text, again.text)
        hidden = {} if case.secret is None else {case.secret: None}
        assert again.json() == first.json() | hidden
        assert again.headers["Idempotent-Replayed"] == "true"
        assert "Idempotent-Replayed" not in first.headers
        assert again.headers["Location"] == first.headers["Location"]
        assert count(hospital, case.table) == before + 1

    def test_another_body_under_the_key_is_refused(self, hospital: Hospital, name: str) -> None:
        case, person = CASES[name], hospital.people[CASES[name].role]
        post(hospital, person, case.path, "k-1", case.body(hospital, 1))
        body = case.body(hospital, 2)
        before = count(hospital, case.table)
        other = post(hospital, person, case.path, "k-1", body)
        assert (other.status_code, other.json()["error"]["code"]) == (
            422,
            "idempotency_key_reused",
        )
        assert count(hospital, case.table) == before
        assert post(hospital, person, case.path, "k-2", body).status_code == 201

    def test_a_refused_request_leaves_its_key_free(self, hospital: Hospital, name: str) -> None:
        case, person = CASES[name], hospital.people[CASES[name].role]
        if not case.refused:
            case.body(hospital, 1)
            assert name == "api key"  # whose only refusal is its quota
            for _ in range(19):
                post(hospital, person, case.path, None, {})
        body = case.body(hospital, 1)
        refused = post(hospital, person, case.path, "k-1", body | case.refused)
        assert 400 <= refused.status_code < 500 and count(hospital, IdempotencyKey) == 0

    def test_without_a_key_nothing_is_kept(self, hospital: Hospital, name: str) -> None:
        case, person = CASES[name], hospital.people[CASES[name].role]
        assert post(hospital, person, case.path, None, case.body(hospital, 1)).status_code == 201
        assert count(hospital, IdempotencyKey) == 0


def test_a_hospital_is_taken_in_once(hospital: Hospital) -> None:
    """Its body says nothing, so no other request can come under the same key."""
    before = count(hospital, Tenant)
    first, again = (
        post(hospital, hospital.people["admin"], "/v1/tenants", "k-1", {}) for _ in range(2)
    )
    assert first.status_code == again.status_code == 201
    assert again.json() == first.json() | {"token": None}
    assert count(hospital, Tenant) == before + 1


def test_no_secret_and_no_key_is_kept(hospital: Hospital) -> None:
    steward = hospital.people["steward"]
    told = [
        post(hospital, steward, CASES[name].path, "my-key-0815", CASES[name].body(hospital, 1))
        for name in ("webhook", "api key")
    ]
    secrets = [told[0].json()["secret"], told[1].json()["key"]]
    with hospital.database.reading() as session:
        rows = session.scalars(select(IdempotencyKey)).all()
    assert len(rows) == 2
    for row in rows:
        text = f"{row.answer} {row.key_digest} {row.request_digest} {row.route}"
        assert "my-key-0815" not in text
        assert not any(secret in text for secret in secrets)


def test_a_key_is_one_persons_and_one_routes(hospital: Hospital) -> None:
    steward, other = hospital.people["steward"], hospital.others["steward"]
    bodies = [CASES[name].body(hospital, 1) for name in ("population", "webhook")]
    paths = [CASES[name].path for name in ("population", "webhook")]
    for person in (steward, other):
        for path, body in zip(paths, bodies, strict=True):
            answer = post(hospital, person, path, "k-1", body)
            assert answer.status_code == 201, answer.text
            assert "Idempotent-Replayed" not in answer.headers


def test_one_key_for_two_objects_of_one_route_is_refused(hospital: Hospital) -> None:
    """The path is part of the request: a test of another webhook is another request."""
    steward = hospital.people["steward"]
    made = [
        post(hospital, steward, "/v1/webhooks", None, CASES["webhook"].body(hospital, n)).json()
        for n in (1, 2)
    ]
    first = post(hospital, steward, f"/v1/webhooks/{made[0]['id']}/test", "k", None)
    again = post(hospital, steward, f"/v1/webhooks/{made[0]['id']}/test", "k", None)
    other = post(hospital, steward, f"/v1/webhooks/{made[1]['id']}/test", "k", None)
    assert again.json() == first.json() and count(hospital, WebhookDelivery) == 1
    assert other.status_code == 422


class TestUpload:
    def upload(self, hospital: Hospital, key: str, content: bytes = GOOD_ROWS, **form: str) -> Any:
        person = hospital.people["submitter"]
        return hospital.client.post(
            "/v1/files",
            files={"file": ("rows.jsonl", content)},
            data={"purpose": "fine-tune"} | form,
            headers=person.headers | {"Idempotency-Key": key},
        )

    def test_equal_bytes_make_one_file_and_one_version(self, hospital: Hospital) -> None:
        dataset = hospital.dataset(hospital.people["steward"])
        first = self.upload(hospital, "k", dataset=dataset)
        again = self.upload(hospital, "k", dataset=dataset)
        assert first.status_code == 200 and again.json() == first.json()
        assert again.headers["Idempotent-Replayed"] == "true"
        assert (count(hospital, File), count(hospital, DatasetVersion)) == (1, 1)
        assert len(list(hospital.settings.files_dir.iterdir())) == 1

    def test_other_bytes_or_fields_under_the_key_are_refused(self, hospital: Hospital) -> None:
        dataset = hospital.dataset(hospital.people["steward"])
        self.upload(hospital, "k")
        for other in (
            self.upload(hospital, "k", GOOD_ROWS + GOOD_ROWS),
            self.upload(hospital, "k", dataset=dataset),
        ):
            assert other.json()["error"]["code"] == "idempotency_key_reused"
        assert count(hospital, File) == 1


def test_every_post_takes_a_key_or_needs_none() -> None:
    """A new route must be put on one of the two lists."""
    keyed, others = set(), set()
    for router in AUTHENTICATED:
        for route in router.routes:
            if "POST" in route.methods:
                parameters = _headers(route.dependant)
                (keyed if "Idempotency-Key" in parameters else others).add(route.path)
    assert others == NATURALLY_ONCE
    assert "/v1/fine_tuning/jobs" in keyed and "/v1/files" in keyed


def _headers(dependant: Any) -> set[str]:
    found = {parameter.alias for parameter in dependant.header_params}
    for inner in dependant.dependencies:
        found |= _headers(inner)
    return found
