"""What holds for every route: keys first, headers, ids, limits, silence of the logs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient
from sqlalchemy import text

from service.app import AUTHENTICATED, OPEN, create_app
from service.database import REQUESTS_AT_ONCE, Database
from service.dependencies import SessionDep
from service.edge import CONTENT_SECURITY_POLICY, SECURITY_HEADERS
from service.logs import FIELDS, JsonLines
from service.settings import Settings
from tests.service.apart import run_apart
from tests.service.hospital import Hospital, open_hospital

CANARY = "canary-51cd"


def every_route() -> Iterator[tuple[str, str]]:
    for router in AUTHENTICATED:
        for route in router.routes:
            for method in sorted(route.methods - {"HEAD"}):
                yield method, route.path


class TestAuthentication:
    @pytest.mark.parametrize(("method", "path"), sorted(every_route()))
    def test_no_route_answers_without_a_key(
        self, hospital: Hospital, method: str, path: str
    ) -> None:
        url = path.replace("{", "").replace("}", "").replace(":path", "")
        kwargs = {"json": {}} if method == "POST" and url != "/v1/files" else {}
        answer = hospital.client.request(method, url, **kwargs)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "authentication_required"

    def test_a_route_that_forgets_to_ask_is_closed_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        router = APIRouter()

        @router.get("/v1/forgetful")
        def forgetful() -> dict[str, bool]:
            return {"open": True}

        monkeypatch.setattr("service.app.AUTHENTICATED", (router,))
        with open_hospital(tmp_path) as hospital:
            assert hospital.client.get("/v1/forgetful").status_code == 401
            headers = hospital.people["admin"].headers
            assert hospital.client.get("/v1/forgetful", headers=headers).status_code == 200

    def test_the_lists_of_routers_cover_v1(self) -> None:
        paths = [path for _, path in every_route()]
        assert len(paths) > 20
        keyless = [r.path for router in OPEN for r in router.routes if r.path.startswith("/v1")]
        assert keyless == ["/v1/invitations/accept"]  # whoever accepts has no key yet: the token is

    @pytest.mark.parametrize("path", ["/docs", "/redoc", "/docs/oauth2-redirect"])
    def test_there_are_no_interactive_pages(self, hospital: Hospital, path: str) -> None:
        assert hospital.client.get(path).status_code == 404

    def test_the_description_of_the_api_needs_a_key(self, hospital: Hospital) -> None:
        assert hospital.client.get("/openapi.json").status_code == 401
        answer = hospital.client.get("/openapi.json", headers=hospital.people["auditor"].headers)
        assert answer.status_code == 200
        described = answer.json()["paths"]
        assert "/v1/files" in described
        assert "HTTPValidationError" not in answer.text  # the framework's own error shape


class TestHeaders:
    @pytest.mark.parametrize("path", ["/healthz", "/v1/files", "/nowhere", "/v1/models/none"])
    def test_stand_on_every_answer(self, hospital: Hospital, path: str) -> None:
        answer = hospital.client.get(path, headers=hospital.people["submitter"].headers)
        for name, value in SECURITY_HEADERS.items():
            assert answer.headers[name] == value
        assert answer.headers["cache-control"] == "no-store"
        assert "script-src 'self'" in CONTENT_SECURITY_POLICY

    def test_the_request_id_is_ours_and_differs(self, hospital: Hospital) -> None:
        sent = {"x-request-id": CANARY}
        first = hospital.client.get("/healthz", headers=sent).headers["x-request-id"]
        second = hospital.client.get("/healthz", headers=sent).headers["x-request-id"]
        assert first.startswith("req_") and second.startswith("req_") and first != second


class TestHttpErrors:
    def test_an_unknown_path_has_the_common_body_and_does_not_repeat_it(
        self, hospital: Hospital
    ) -> None:
        answer = hospital.client.get(f"/v1/{CANARY}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert CANARY not in answer.text

    def test_an_unknown_method_names_those_that_are_known(self, hospital: Hospital) -> None:
        answer = hospital.client.put("/v1/models", headers=hospital.people["admin"].headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
        assert "GET" in answer.headers["allow"]


class TestBodies:
    def post(self, hospital: Hospital, content: bytes, **headers: str) -> tuple[int, str]:
        sent = hospital.people["steward"].headers | {"content-type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        answer = hospital.client.post("/v1/datasets", content=content, headers=sent)
        return answer.status_code, answer.json()["error"]["code"]

    def test_over_the_limit_are_refused_by_their_declared_length(self, hospital: Hospital) -> None:
        assert self.post(hospital, b"x" * (1024 * 1024 + 1)) == (413, "body_too_large")

    def test_over_the_limit_are_refused_while_they_stream(self, hospital: Hospital) -> None:
        sent = hospital.people["steward"].headers | {"content-type": "application/json"}
        chunks = (b"x" * 65536 for _ in range(17))
        answer = hospital.client.post("/v1/datasets", content=chunks, headers=sent)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")

    def test_with_a_content_encoding_are_refused(self, hospital: Hospital) -> None:
        refused = self.post(hospital, b"{}", content_encoding="gzip")
        assert refused == (415, "content_encoding_refused")

    def test_of_another_media_type_are_refused(self, hospital: Hospital) -> None:
        refused = self.post(hospital, b"{}", content_type="text/plain")
        assert refused == (415, "media_type_refused")

    def test_uploads_must_be_forms(self, hospital: Hospital) -> None:
        answer = hospital.client.post(
            "/v1/files", json={}, headers=hospital.people["submitter"].headers
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "media_type_refused")


class TestTransactions:
    def test_a_commit_that_fails_is_never_answered_with_success(self, tmp_path: Path) -> None:
        """The commit comes before the answer; deferred constraints fail only there."""
        router = APIRouter()

        @router.post("/late")
        def late(session: SessionDep) -> dict[str, bool]:
            session.execute(text("PRAGMA defer_foreign_keys=ON"))
            session.execute(
                text(
                    "INSERT INTO principal(id, tenant_id, role, created_at) "
                    "VALUES ('usr_x', 'tn_missing', 'admin', 1)"
                )
            )
            return {"done": True}

        with open_hospital(tmp_path) as hospital:
            hospital.app.include_router(router)
            assert hospital.client.post("/late").status_code == 500


class TestLogs:
    def test_hold_the_route_template_and_nothing_that_was_sent(
        self, hospital: Hospital, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG):
            hospital.client.get(
                f"/v1/files/{CANARY}",
                params={"q": CANARY},
                headers=hospital.people["submitter"].headers | {"x-other": CANARY},
            )
            hospital.client.request(CANARY.replace("-", "").upper(), "/v1/files")
        lines = [JsonLines().format(r) for r in caplog.records if r.name.startswith("rldp")]
        assert len(lines) == 2
        assert json.loads(lines[0])["route"] == "/v1/files/{file_id}"
        assert json.loads(lines[0])["status"] == 404
        assert json.loads(lines[1])["method"] == "(other)"
        assert CANARY not in "".join(lines)

    def test_of_an_exception_keep_its_type_and_place_without_its_text(self) -> None:
        try:
            raise ValueError(CANARY)
        except ValueError:
            record = logging.getLogger("any").makeRecord(
                "any", logging.ERROR, "f", 1, "failed %s", (CANARY,), __import__("sys").exc_info()
            )
        record.patient = CANARY
        line = JsonLines().format(record)
        assert CANARY not in line
        parsed = json.loads(line)
        assert parsed["exception"] == "ValueError"
        assert "service/test_app.py" in parsed["frames"][-1]
        assert set(parsed) <= {"time", "level", "logger", "event", "exception", "frames", *FIELDS}


class TestHealth:
    def test_the_process_answers_anyone(self, hospital: Hospital) -> None:
        assert hospital.client.get("/healthz").json() == {"status": "ok"}

    def test_a_schema_that_is_not_of_this_release_is_not_ready(self, hospital: Hospital) -> None:
        answer = hospital.client.get("/readyz")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert answer.json()["checks"] == {"database": "ok", "schema": "behind"}

    def test_a_database_out_of_reach_is_not_ready(self, tmp_path: Path) -> None:
        settings = Settings(
            data_dir=tmp_path, database_url=f"sqlite:///{tmp_path / 'no' / 'service.db'}"
        )
        with TestClient(create_app(settings)) as client:
            answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"] == {"database": "unreachable", "schema": "unknown"}

    def test_a_migrated_database_is_ready(self, tmp_path: Path) -> None:
        from service.migrate import upgrade

        settings = Settings(data_dir=tmp_path)
        upgrade(settings.resolved_database_url)
        database = Database(settings.resolved_database_url)
        with TestClient(create_app(settings, database)) as client:
            answer = client.get("/readyz")
        database.dispose()
        assert answer.status_code == 200, answer.text

    def test_it_goes_on_serving_while_the_next_release_is_rolled_out(self, tmp_path: Path) -> None:
        from service.migrate import upgrade

        settings = Settings(data_dir=tmp_path)
        upgrade(settings.resolved_database_url)
        database = Database(settings.resolved_database_url)
        with database.transaction() as session:
            session.execute(text("UPDATE alembic_version SET version_num = 'of_a_later_release'"))
        with TestClient(create_app(settings, database)) as client:
            answer = client.get("/readyz")
        database.dispose()
        assert answer.status_code == 200, answer.text
        assert answer.json()["checks"]["schema"] == "ahead"


class TestManyAtOnce:
    """More requests at once than there are threads or connections: all are served."""

    @pytest.mark.parametrize(
        ("role", "path"), [("submitter", "/v1/fine_tuning/jobs"), ("auditor", "/v1/budgets")]
    )
    def test_no_request_holds_what_another_waits_for(
        self, hospital: Hospital, role: str, path: str
    ) -> None:
        headers = {"Authorization": f"Bearer {hospital.people[role].key}"}

        async def ask_all() -> list[int]:
            transport = httpx.ASGITransport(app=hospital.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                answers = await asyncio.gather(
                    *(client.get(path, headers=headers) for _ in range(90))
                )
            return [answer.status_code for answer in answers]

        assert run_apart(asyncio.wait_for(ask_all(), 60)) == [200] * 90

    def test_whoever_reads_slowly_holds_nothing(self, hospital: Hospital) -> None:
        """Session and turn are over when the answer begins to leave."""
        free: list[int] = []

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            async def noting(message: Any) -> None:
                if message["type"] == "http.response.start":
                    free.append(hospital.app.state.turns._value)
                await send(message)

            await hospital.app(scope, receive, noting)

        async def ask() -> int:
            transport = httpx.ASGITransport(app=watched)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                headers = {"Authorization": f"Bearer {hospital.people['auditor'].key}"}
                return (await client.get("/v1/budgets", headers=headers)).status_code

        assert run_apart(ask()) == 200
        assert free == [REQUESTS_AT_ONCE]
