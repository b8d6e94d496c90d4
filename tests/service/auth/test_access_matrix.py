"""Every route x role x tenant (service.md S13). A route without a row here fails the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.service.auth.test_scopes import ROUTES
from tests.service.jobs import world as jw
from tests.service.jobs.test_endpoints import Site, keys_of
from tests.service.ledger import world as lw

ROLES = ("submitter", "steward", "auditor", "admin")
EVERYONE = "submitter steward auditor admin"
OWNERS = "submitter steward"
READERS = "submitter steward auditor"
JOBS = "/v1/fine_tuning/jobs"
JOB = f"{JOBS}/{{job_id}}"
HOOK = "/v1/webhooks/{webhook_id}"

# Who is not answered 403 role_forbidden, or training_data_sealed, which says the same.
MATRIX: dict[tuple[str, str], str] = {
    ("GET", "/v1/models"): EVERYONE,
    ("GET", "/v1/models/{model_id:path}"): EVERYONE,
    ("POST", "/v1/files"): OWNERS,
    ("GET", "/v1/files"): OWNERS,
    ("GET", "/v1/files/{file_id}"): OWNERS,
    ("DELETE", "/v1/files/{file_id}"): OWNERS,
    ("GET", "/v1/files/{file_id}/content"): "steward",
    ("GET", "/v1/files/{file_id}/validation"): OWNERS,
    ("POST", "/v1/datasets"): "steward",
    ("GET", "/v1/datasets"): EVERYONE,
    ("GET", "/v1/datasets/{dataset_id}"): EVERYONE,
    ("POST", "/v1/datasets/{dataset_id}/versions"): OWNERS,
    ("GET", "/v1/datasets/{dataset_id}/versions"): EVERYONE,
    ("GET", "/v1/datasets/{dataset_id}/versions/{version_id}"): EVERYONE,
    ("POST", "/v1/populations"): "steward",
    ("GET", "/v1/populations"): READERS,
    ("GET", "/v1/populations/{population_id}"): READERS,
    ("GET", "/v1/budgets"): EVERYONE,
    ("GET", "/v1/budgets/{population_id}"): EVERYONE,
    ("GET", "/v1/budgets/{population_id}/history"): EVERYONE,
    ("POST", "/v1/grants"): "steward",
    ("GET", "/v1/grants"): "steward auditor",
    ("GET", "/v1/grants/{grant_id}"): "steward auditor",
    ("POST", "/v1/grants/{grant_id}/approvals"): "steward",
    ("POST", "/v1/releases"): "steward",
    ("GET", "/v1/releases"): "steward auditor",
    ("GET", "/v1/releases/{release_id}"): "steward auditor",
    ("POST", "/v1/releases/{release_id}/approvals"): "steward",
    ("GET", "/v1/ledger/entries"): READERS,
    ("GET", "/v1/ledger/entries/{idx}"): READERS,
    ("GET", "/v1/ledger/receipts/{idx}"): READERS,
    ("GET", "/v1/ledger/jobs/{job_id}/statement"): READERS,
    ("GET", "/v1/ledger/bundle"): READERS,
    ("GET", "/v1/ledger/checkpoint"): READERS,
    ("GET", "/v1/ledger/refusals"): READERS,
    ("GET", "/v1/ledger/anomalies"): READERS,
    ("POST", "/v1/ledger/forecast"): READERS,
    ("GET", "/v1/ledger/disclosures"): "steward",
    ("POST", "/v1/ledger/entries/{idx}/redactions"): "steward",
    ("POST", "/v1/ledger/recoveries"): "steward",
    ("GET", "/v1/ledger/recoveries/{recovery_id}"): "steward auditor",
    ("POST", "/v1/ledger/recoveries/{recovery_id}/approvals"): "steward",
    ("GET", "/v1/proofs/inclusion"): READERS,
    ("GET", "/v1/proofs/consistency"): READERS,
    ("GET", "/v1/proofs/tlog"): READERS,
    ("GET", "/v1/certificates/{job_id}"): READERS,
    ("GET", "/v1/certificates/{job_id}/proof"): READERS,
    ("GET", "/v1/audits/access"): "auditor",
    ("POST", JOBS): "submitter",
    ("GET", JOBS): "submitter steward admin",
    ("POST", f"{JOBS}/estimate"): OWNERS,
    ("GET", JOB): "submitter steward admin",
    ("POST", f"{JOB}/cancel"): "submitter steward admin",
    ("POST", f"{JOB}/pause"): "submitter steward admin",
    ("POST", f"{JOB}/resume"): "submitter steward admin",
    ("GET", f"{JOB}/events"): "submitter steward admin",
    ("GET", f"{JOB}/checkpoints"): "submitter steward admin",
    ("GET", f"{JOB}/metrics"): "submitter steward admin",
    ("GET", f"{JOB}/stream"): "submitter steward admin",
    ("GET", f"{JOB}/attempts"): "submitter steward admin",
    ("GET", f"{JOB}/audit"): "submitter steward admin",
    ("GET", f"{JOB}/artifacts"): "submitter steward admin",
    ("GET", f"{JOB}/artifacts/{{name}}"): OWNERS,
    ("POST", "/v1/api_keys"): EVERYONE,
    ("GET", "/v1/api_keys"): EVERYONE,
    ("GET", "/v1/api_keys/{key_id}"): EVERYONE,
    ("DELETE", "/v1/api_keys/{key_id}"): EVERYONE,
    ("POST", "/v1/users"): "admin",
    ("GET", "/v1/users"): "steward admin",
    ("GET", "/v1/users/{user_id}"): "steward admin",
    ("POST", "/v1/users/{user_id}/block"): "admin",
    ("POST", "/v1/users/{user_id}/unblock"): "admin",
    ("POST", "/v1/users/{user_id}/approval"): "steward",
    ("POST", "/v1/tenants"): "admin",
    ("GET", "/v1/tenants"): "admin",
    ("GET", "/v1/tenants/{tenant_id}"): "admin",
    ("POST", "/v1/webhooks"): "steward",
    ("GET", "/v1/webhooks"): "steward",
    ("GET", HOOK): "steward",
    ("PATCH", HOOK): "steward",
    ("DELETE", HOOK): "steward",
    ("POST", f"{HOOK}/rotate"): "steward",
    ("POST", f"{HOOK}/test"): "steward",
    ("GET", f"{HOOK}/deliveries"): "steward",
    ("POST", f"{HOOK}/deliveries/{{delivery_id}}/replay"): "steward",
    ("GET", "/v1/operations"): "admin",
    ("POST", "/v1/operations/alerts/{alert_id}/acknowledgement"): "admin",
    ("GET", "/v1/workers"): "admin",
    ("POST", "/v1/workers/{worker_id}/drain"): "admin",
    ("GET", "/v1/queue"): "steward admin",
    ("POST", "/v1/chat/completions"): OWNERS,
}
CODES_OF_REFUSAL = {"role_forbidden", "training_data_sealed"}
# Objects of the first hospital, which the second one asks for by their true ids.
OWNED = (
    "file_id",
    "dataset_id",
    "version_id",
    "population_id",
    "job_id",
    "webhook_id",
    "user_id",
    "tenant_id",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, dict[str, str]]]:
    directory: Path = tmp_path_factory.mktemp("matrix")
    with lw.sqlite_database(directory) as db:
        world, other = lw.open_world(db), lw.open_world(db)
        file_id, version = jw.add_dataset(world, directory)
        keys = keys_of(world) | {f"other {role}": key for role, key in keys_of(other).items()}
        chosen = Settings(
            data_dir=directory / "data",
            database_url=db.url,
            rate_limit_per_minute=0,
            rate_limit_tenant_per_minute=0,
        )
        with TestClient(create_app(chosen, db)) as client:
            made = Site(world=world, client=client, keys=keys, file_id=file_id, directory=directory)
            hook = made.call(
                "POST",
                "/v1/webhooks",
                "steward",
                json={"url": "https://example.org/in", "events": ["release.published"]},
            ).json()["id"]
            yield (
                made,
                {
                    "file_id": file_id,
                    "dataset_id": made.call("GET", "/v1/datasets", "steward").json()["data"][0][
                        "id"
                    ],
                    "version_id": version,
                    "population_id": world.population,
                    "job_id": jw.queue_job(world),
                    "webhook_id": hook,
                    "user_id": world.submitter,
                    "tenant_id": world.tenant,
                },
            )


def ask(site: Site, method: str, template: str, role: str | None, ids: dict[str, str]) -> Any:
    path = template.replace(":path", "")
    for name, value in ids.items():
        path = path.replace(f"{{{name}}}", value)
    path = path.replace("{idx}", "0").replace("{", "").replace("}", "")
    body = {"json": {}} if method in ("POST", "PATCH") and template != "/v1/files" else {}
    return site.call(method, path, role, **body)


def test_each_route_has_its_row() -> None:
    assert set(MATRIX) == set(ROUTES), "say who may call a new route, in MATRIX"


@pytest.mark.parametrize(("method", "template"), sorted(MATRIX))
def test_the_roles_of_the_row_and_no_other(
    site: tuple[Site, dict[str, str]], method: str, template: str
) -> None:
    """Ids that are nobody's: what a role may do changes nothing here."""
    assert ask(site[0], method, template, None, {}).status_code == 401
    allowed = set(MATRIX[method, template].split())
    for role in ROLES:
        answer = ask(site[0], method, template, role, {})
        is_refused = answer.status_code == 403 and (
            answer.json()["error"]["code"] in CODES_OF_REFUSAL
        )
        assert is_refused == (role not in allowed), (role, answer.status_code)


FOREIGN = sorted(
    (method, template)
    for method, template in MATRIX
    if any(f"{{{name}}}" in template for name in OWNED)
)


@pytest.mark.parametrize(("method", "template"), FOREIGN)
def test_things_of_another_hospital_are_not_there(
    site: tuple[Site, dict[str, str]], method: str, template: str
) -> None:
    """The answer to a true id of another hospital is the answer to an id of nobody."""
    made, ids = site
    for role in MATRIX[method, template].split():
        theirs = ask(made, method, template, f"other {role}", ids)
        absent = ask(made, method, template, f"other {role}", {})
        assert theirs.status_code == absent.status_code, (role, theirs.text)
        assert theirs.status_code in (404, 422), (role, theirs.text)
        assert theirs.json()["error"] == absent.json()["error"], role


LISTS = sorted(
    t for m, t in MATRIX if m == "GET" and "{" not in t and not t.startswith("/v1/proofs")
)


@pytest.mark.parametrize("template", LISTS)
def test_lists_of_another_hospital_name_none_of_ours(
    site: tuple[Site, dict[str, str]], template: str
) -> None:
    made, ids = site
    for role in MATRIX["GET", template].split():
        text = made.call("GET", template, f"other {role}").content
        assert not [name for name, value in ids.items() if value.encode() in text], role
