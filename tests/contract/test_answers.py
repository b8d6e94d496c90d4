"""Real answers of the compatible routes against the schemas that the document gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator

from service.answers import ANSWERS
from service.app import create_app
from service.settings import Settings
from tests.service.jobs import world as jw
from tests.service.jobs.test_endpoints import JOBS, keys_of
from tests.service.jobs.test_service import BODY
from tests.service.ledger import world as lw

CLAIM = "/v1/fine_tuning/jobs/{job_id}"


class Site:
    """A hospital whose every answer is held against the document."""

    def __init__(self, client: TestClient, file: str, document: dict[str, Any]) -> None:
        self.client, self.file, self._document = client, file, document
        self.seen: set[str] = set()

    def call(self, method: str, path: str, template: str = "", **sent: Any) -> Any:
        answer = self.client.request(method, path, **sent)
        assert answer.status_code == 200, answer.text
        operation = self._document["paths"][template or path][method.lower()]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert "$ref" in schema, operation["operationId"]
        whole = {**schema, "components": self._document["components"]}
        Draft202012Validator(whole).validate(answer.json())
        self.seen.add(operation["operationId"])
        return answer.json()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with lw.sqlite_database(tmp_path) as db:
        world = lw.open_world(db)
        file, _ = jw.add_dataset(world, tmp_path)
        app = create_app(Settings(data_dir=tmp_path / "data", database_url=db.url), db)
        key = keys_of(world)["submitter"]
        client = TestClient(app, headers={"Authorization": f"Bearer {key}"})
        document = json.loads(json.dumps(app.openapi()))
        yield Site(client, file, document)


def test_every_schema_is_one() -> None:
    for schema in ANSWERS.schemas.values():
        Draft202012Validator.check_schema(schema)


def test_answers_are_what_the_document_says(site: Site) -> None:
    job = site.call("POST", JOBS, json={**BODY, "training_file": site.file})
    one = f"{JOBS}/{job['id']}"
    site.call("GET", one, CLAIM)
    site.call("GET", JOBS)
    site.call("GET", f"{one}/events", f"{CLAIM}/events")
    site.call("GET", f"{one}/checkpoints", f"{CLAIM}/checkpoints")
    site.call("POST", f"{one}/pause", f"{CLAIM}/pause")
    site.call("POST", f"{one}/resume", f"{CLAIM}/resume")
    site.call("POST", f"{one}/cancel", f"{CLAIM}/cancel")
    for model in site.call("GET", "/v1/models")["data"]:
        site.call("GET", f"/v1/models/{model['id']}", "/v1/models/{model_id}")
    site.call("GET", "/v1/files")
    site.call("GET", f"/v1/files/{site.file}", "/v1/files/{file_id}")
    rows = b'{"patient_id": "p1", "text": "a note"}\n' * 3
    named, purpose = {"file": ("notes.jsonl", rows)}, {"purpose": "fine-tune"}
    new = site.call("POST", "/v1/files", files=named, data=purpose)
    site.call("DELETE", f"/v1/files/{new['id']}", "/v1/files/{file_id}")
    assert site.seen == set(ANSWERS.of_operation)


def test_a_wrong_answer_is_noticed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.jobs.views.PRIORITIES", {0: "urgent"})
    with pytest.raises(Exception, match="urgent"):
        site.call("POST", JOBS, json={**BODY, "training_file": site.file})
