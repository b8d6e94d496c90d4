"""schemathesis against the application in process: no answer is a 5xx or undocumented (S15).

Every operation of the OpenAPI document is called in every role with generated requests, valid
and broken ones; ids of things that are there stand in for generated ones, so that calls reach
the code behind a 404. The seed is fixed: a finding replays by the name of its test.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import requests
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import checks as built_in
from schemathesis.specs.openapi import checks as openapi_checks

from service import hub as hubs
from service.app import create_app
from service.auth.keys import issue_key
from service.database import Database
from service.migrate import upgrade
from service.openapi import operations
from service.settings import Settings
from tests.contract.openapi_diff import current_document
from tests.service.jobs import world as jw
from tests.service.jobs.test_service import BODY
from tests.service.ledger import world as lw

SEED = 20_261_125
EXAMPLES, EXAMPLES_CI = 2, 12  # of each operation, role and kind
ROLES = ("submitter", "steward", "auditor", "admin")
KINDS = {
    "valid": schemathesis.GenerationMode.POSITIVE,
    "broken": schemathesis.GenerationMode.NEGATIVE,
}
CHECKS = [
    built_in.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
]
DOCUMENT = current_document()
OPERATIONS = sorted({(path, method) for path, method, _ in operations(DOCUMENT)})


@dataclass
class Site:
    """A hospital with something of every kind, and a key for each role."""

    client: TestClient
    keys: Mapping[str, str]
    ids: Mapping[str, str]  # of path parameters and body fields


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """On PostgreSQL, which refuses texts that SQLite takes, such as one with NUL."""
    directory = tmp_path_factory.mktemp("fuzzed")
    with _migrated() as db:
        world = lw.open_world(db)
        file_id, version = jw.add_dataset(world, directory)
        people = {
            "submitter": world.submitter,
            "steward": world.proposer,
            "auditor": world.auditor,
            "admin": world.admin,
        }
        with db.transaction() as session:
            keys = {role: issue_key(session, person).text for role, person in people.items()}
        chosen = Settings(
            data_dir=directory / "data",
            database_url=db.url,
            rate_limit_per_minute=0,
            rate_limit_tenant_per_minute=0,
        )
        with (
            pytest.MonkeyPatch.context() as short,
            TestClient(create_app(chosen, db), raise_server_exceptions=False) as client,
        ):
            short.setattr(hubs, "AGE_SECONDS", 0.2)  # a job that never ends has a stream that does
            short.setattr(hubs, "BEAT_SECONDS", 0.1)
            short.setattr(hubs, "LOOK_SECONDS", 0.02)
            yield Site(client=client, keys=keys, ids=_things(client, keys, world, file_id, version))


@contextmanager
def _migrated() -> Iterator[Database]:
    """As an installation's, so that /readyz is content."""
    with lw.postgres_url() as url:
        upgrade(url)
        db = Database(url)
        yield db
        db.dispose()


def _things(
    client: TestClient, keys: Mapping[str, str], world: lw.World, file_id: str, version: str
) -> dict[str, str]:
    def call(role: str, path: str, method: str = "POST", **more: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {keys[role]}"}
        answer = client.request(method, path, headers=headers, **more)
        assert answer.status_code < 300, answer.text
        return dict(answer.json())

    job = call("submitter", "/v1/fine_tuning/jobs", json={**BODY, "training_file": file_id})["id"]
    hook = call(
        "steward",
        "/v1/webhooks",
        json={"url": "https://example.org/in", "events": ["release.published"]},
    )["id"]
    grant = call(
        "steward",
        "/v1/grants",
        json={"population": world.population, "epsilon": "9", "reason_code": "study_extension"},
    )["id"]
    datasets = call("steward", "/v1/datasets", "GET")["data"]
    return {
        "population_id": world.population,
        "file_id": file_id,
        "dataset_id": datasets[0]["id"],
        "version_id": version,
        "job_id": job,
        "webhook_id": hook,
        "delivery_id": call("steward", f"/v1/webhooks/{hook}/test")["id"],
        "grant_id": grant,
        "model_id": str(BODY["model"]),
        "key_id": call("auditor", "/v1/api_keys", json={})["id"],
        "idx": "1",
        "name": "adapter_config.json",
        "population": world.population,
        "file": file_id,
        "training_file": file_id,
        "job": job,
        "dataset": datasets[0]["id"],
    }


CONFIG = {"generation": {"mode": "all", "with-security-parameters": False}}
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT, config=schemathesis.Config.from_dict(CONFIG))


def kinds_of(path: str, method: str) -> list[str]:
    """Where every text is taken, nothing can be broken: ids in paths, free headers."""
    operation = DOCUMENT["paths"][path][method]
    breakable = [
        one
        for one in operation.get("parameters", [])
        if one["in"] == "query" or one["schema"].get("type") == "integer"
    ]
    return list(KINDS) if breakable or "requestBody" in operation else ["valid"]


def _placed(case: Any, ids: Mapping[str, str], real: list[bool]) -> None:
    """Puts ids of things that are there into some of the places for ids."""
    chosen = iter(real)
    for container in (case.path_parameters, case.query, case.body):
        if isinstance(container, dict):
            for name in sorted(ids.keys() & container.keys()):
                if next(chosen, True):
                    container[name] = ids[name]


def _sent(client: TestClient, case: Any, headers: dict[str, str]) -> httpx2.Response:
    """The call as it would go over the wire, sent into the application."""
    asked = case.as_transport_kwargs(base_url="http://testserver", headers=headers)
    known = ("method", "url", "headers", "params", "data", "json", "files", "cookies")
    request = requests.Request(**{k: v for k, v in asked.items() if k in known}).prepare()
    assert request.url is not None
    body = request.body.encode() if isinstance(request.body, str) else request.body
    return client.request(
        str(request.method), request.url, headers=dict(request.headers), content=body
    )


def fuzz(site: Site, path: str, method: str, kind: str, role: str, examples: int) -> int:
    """Sends that many requests; answers how many reached the application."""
    sent = 0
    headers = {"Authorization": f"Bearer {site.keys[role]}"}

    @seed(random.Random(f"{SEED}/{method}/{path}/{kind}/{role}").getrandbits(32))
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        SCHEMA[path][method].as_strategy(generation_mode=KINDS[kind]),
        st.lists(st.booleans(), min_size=3, max_size=3),
    )
    def call(case: Any, real: list[bool]) -> None:
        nonlocal sent
        _placed(case, site.ids, real)
        answer = _sent(site.client, case, headers)
        sent += 1
        assert answer.status_code != 401, answer.text
        if answer.status_code >= 400:
            _is_ours(answer)
        case.validate_response(answer, checks=CHECKS)

    call()
    return sent


def _is_ours(answer: httpx2.Response) -> None:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = json.loads(answer.text)
    assert body["status"] == answer.status_code
    assert body["error"]["message"] == body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_is_documented(site: Site, path: str, method: str) -> None:
    """Few requests of each operation, in the roles in turn, so that this stays quick."""
    place = OPERATIONS.index((path, method))
    for number, kind in enumerate(kinds_of(path, method)):
        role = ROLES[(place + 2 * number) % len(ROLES)]
        assert fuzz(site, path, method, kind, role, EXAMPLES) > 0
    if place % len(ROLES) > 1:  # most routes are for stewards
        fuzz(site, path, method, "valid", "steward", EXAMPLES)


@pytest.mark.ci
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_every_answer_to_every_role_is_documented(
    site: Site, path: str, method: str, role: str
) -> None:
    for kind in kinds_of(path, method):
        assert fuzz(site, path, method, kind, role, EXAMPLES_CI) > 0
