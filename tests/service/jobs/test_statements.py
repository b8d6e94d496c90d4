"""What a request costs in statements on PostgreSQL, and that a new job is told as it is read.

Statements are counted, since their number, unlike time, is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event

from service.app import create_app
from service.settings import Settings
from tests.service.jobs import world as jw
from tests.service.jobs.test_endpoints import JOBS, keys_of
from tests.service.jobs.test_service import BODY
from tests.service.ledger import world as lw

ONE_JOB, CREATION, KEYED = 6, 18, 25


@dataclass
class Site:
    client: TestClient
    body: dict[str, Any]
    statements: list[str] = field(default_factory=list)

    def create(self, name: str, **headers: str) -> dict[str, Any]:
        body = {**self.body, "metadata": {"name": name}}
        answer = self.client.post(JOBS, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def read(self, path: str) -> Any:
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def count(self, call: Callable[[], Any]) -> int:
        self.statements.clear()
        call()
        return len(self.statements)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with lw.postgres_database() as db:
        world = lw.open_world(db)
        file, _ = jw.add_dataset(world, tmp_path)
        app = create_app(Settings(data_dir=tmp_path / "data", database_url=db.url), db)
        client = TestClient(app, headers={"Authorization": f"Bearer {keys_of(world)['submitter']}"})
        made = Site(client=client, body={**BODY, "training_file": file})

        @event.listens_for(db.engine, "before_cursor_execute")
        def _note(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            made.statements.append(statement)

        yield made


def test_statements_of_a_request(site: Site) -> None:
    jobs = [site.create(str(number))["id"] for number in range(5)]
    assert site.count(lambda: site.read(f"{JOBS}/{jobs[0]}")) <= ONE_JOB
    one, five = (site.count(partial(site.read, f"{JOBS}?limit={limit}")) for limit in (1, 5))
    assert one == five <= ONE_JOB
    assert site.count(lambda: site.create("more")) <= CREATION
    headers = {"Idempotency-Key": "k1"}
    assert site.count(lambda: site.create("keyed", **headers)) <= KEYED


def test_a_new_job_is_told_as_it_is_read(site: Site) -> None:
    made = site.create("first")
    receipts = made.pop("receipts")
    assert site.read(f"{JOBS}/{made['id']}") == made
    again = site.create("first")  # an equal request finds it, and its receipt in the database
    assert again == {**made, "receipts": receipts}
    assert [receipt["proof"] for receipt in receipts] == [None]
