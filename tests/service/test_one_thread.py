"""What an endpoint's transaction and answer come to, ended in the endpoint's own thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, Response
from fastapi.testclient import TestClient
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from service.app import create_app
from service.database import Database, now_us
from service.dependencies import ReadDep, SessionDep
from service.exact_json import ExactRoute
from service.one_thread import UnitOfWork
from service.settings import Settings
from service.tenants.models import Tenant
from tests.service.ledger import world as lw

router = APIRouter(route_class=ExactRoute)
ANSWER: dict[str, Any] = {"text": "größer", "none": None, "small": 1e-05, "nan": float("nan")}


def write(session: Session, name: str) -> None:
    session.execute(insert(Tenant).values(id=f"tn_{name}", created_at=now_us()))


def set_a_header(response: Response) -> None:
    response.headers["X-Told"] = "by a dependency"


@router.post("/done/{name}", status_code=201)
def done(name: str, session: SessionDep, response: Response) -> dict[str, Any]:
    write(session, name)
    response.headers["Location"] = f"/done/{name}"
    return ANSWER


@router.post("/failed/{name}")
def failed(name: str, session: SessionDep) -> dict[str, Any]:
    write(session, name)
    raise ZeroDivisionError


def late(session: SessionDep) -> None:
    write(session, "late")
    raise ZeroDivisionError


@router.post("/never_begun", dependencies=[Depends(late)])
def never_begun(session: SessionDep) -> dict[str, Any]:
    return {}


@router.post("/twice")
def twice(session: SessionDep) -> dict[str, Any]:
    write(session, "same")
    session.execute(insert(Tenant).values(id="tn_more", created_at=None))
    return {}


@router.get("/told")
def told(session: ReadDep, _told: Annotated[None, Depends(set_a_header)]) -> dict[str, Any]:
    return {"ids": list(session.scalars(select(Tenant.id).order_by(Tenant.id)))}


@router.get("/whole")
def whole(session: ReadDep) -> Response:
    return Response("as it is", media_type="text/plain", headers={"X-Own": "1"})


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with lw.sqlite_database(tmp_path) as made:
        yield made


@pytest.fixture
def client(db: Database, tmp_path: Path) -> TestClient:
    app = create_app(Settings(data_dir=tmp_path / "data", database_url=db.url), db)
    app.include_router(router)
    return TestClient(app)


def names(db: Database) -> list[str]:
    with db.reading() as session:
        return list(session.scalars(select(Tenant.id)))


class TestAnswer:
    def test_is_what_the_framework_would_write(self, client: TestClient) -> None:
        answer = client.post("/done/a")
        assert answer.status_code == 201
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["location"] == "/done/a"
        assert answer.headers["content-length"] == str(len(answer.content))
        assert json.loads(answer.content) == {**ANSWER, "nan": None}
        assert "größer".encode() in answer.content

    def test_keeps_headers_that_a_dependency_has_set(self, client: TestClient) -> None:
        assert client.get("/told").headers["x-told"] == "by a dependency"

    def test_a_response_goes_on_as_it_is(self, client: TestClient) -> None:
        answer = client.get("/whole")
        assert (answer.text, answer.headers["x-own"]) == ("as it is", "1")
        assert "x-told" not in answer.headers


class TestTransaction:
    def test_is_committed_by_its_endpoint(self, client: TestClient, db: Database) -> None:
        client.post("/done/a")
        assert names(db) == ["tn_a"]
        assert client.get("/told").json() == {"ids": ["tn_a"]}

    @pytest.mark.parametrize("path", ["/failed/a", "/never_begun", "/twice"])
    def test_of_an_error_leaves_nothing(self, path: str, client: TestClient, db: Database) -> None:
        answer = client.post(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
        assert names(db) == []
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]

    def test_ends_in_the_thread_it_was_used_in(
        self, client: TestClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        threads: dict[str, int] = {}
        finish = UnitOfWork.finish

        def noted(unit: UnitOfWork) -> None:
            threads["finish"] = threading.get_ident()
            finish(unit)

        monkeypatch.setattr(UnitOfWork, "finish", noted)
        monkeypatch.setattr(
            "tests.service.test_one_thread.write",
            lambda *_: threads.update(write=threading.get_ident()),
        )
        assert client.post("/done/a").status_code == 201
        assert threads["write"] == threads["finish"]
