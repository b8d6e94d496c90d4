"""Scopes: a key may be given less than its owner's role, and never more."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from service.app import AUTHENTICATED
from service.auth import scopes
from service.auth.keys import authenticate, issue_key
from service.auth.models import ApiKeyScope
from service.cli import app as cli
from service.rate_limits import RateLimits
from service.settings import Settings
from tests.service.dashboard.test_pages import _token
from tests.service.hospital import Hospital

ROUTES = sorted(
    {
        (method, route.path)
        for router in AUTHENTICATED
        for route in router.routes
        for method in route.methods - {"HEAD"}
    }
)


def key_of(hospital: Hospital, role: str, *names: str) -> dict[str, str]:
    with hospital.database.transaction() as session:
        issued = issue_key(session, hospital.people[role].id, scopes=names or None)
    return {"Authorization": f"Bearer {issued.text}"}


def call(hospital: Hospital, method: str, path: str, headers: dict[str, str]) -> Any:
    url = path.replace("{", "").replace("}", "").replace(":path", "")
    more = {"json": {}} if method in ("POST", "PATCH") and url != "/v1/files" else {}
    return hospital.client.request(method, url, headers=headers, **more)


def is_scope_refusal(answer: Any) -> bool:
    return answer.status_code == 403 and "scopes of this key" in answer.text


def test_each_route_opens_with_its_scope_and_with_no_other(hospital: Hospital) -> None:
    hospital.app.state.rate_limits = RateLimits(Settings(rate_limit_tenant_per_minute=0))
    wanted = {route: scopes.needed(*route) for route in ROUTES}
    assert set(wanted.values()) <= scopes.SCOPES, "give each route an area"
    with_it = {name: key_of(hospital, "steward", name) for name in scopes.SCOPES}
    without = {
        name: key_of(
            hospital, "steward", *(scopes.SCOPES - {name, name.replace(":read", ":write")})
        )
        for name in scopes.SCOPES
    }
    for (method, path), name in wanted.items():
        opened = call(hospital, method, path, with_it[name])
        assert not is_scope_refusal(opened) and opened.status_code != 401, (method, path)
        assert is_scope_refusal(call(hospital, method, path, without[name])), (method, path)


def _enough(name: str) -> set[str]:
    return {name, name.replace(":read", ":write")}


def test_to_write_an_area_is_to_read_it() -> None:
    assert scopes.covers({"jobs:write"}, "jobs:read")
    assert not scopes.covers({"jobs:read"}, "jobs:write")
    assert not scopes.covers({"jobs:write"}, "files:read")


def test_a_scope_adds_nothing_to_a_role(hospital: Hospital) -> None:
    headers = key_of(hospital, "auditor", "webhooks:write")
    answer = call(hospital, "GET", "/v1/webhooks", headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "role_forbidden")


def test_routes_without_an_area_need_a_key_without_scopes(hospital: Hospital) -> None:
    headers = key_of(hospital, "steward", *scopes.SCOPES)
    assert is_scope_refusal(call(hospital, "GET", "/openapi.json", headers))
    assert call(hospital, "GET", "/openapi.json", key_of(hospital, "steward")).status_code == 200


class TestMaking:
    def make(self, hospital: Hospital, headers: dict[str, str], **body: Any) -> Any:
        return hospital.client.post("/v1/api_keys", json=body, headers=headers)

    def test_a_key_tells_its_scopes(self, hospital: Hospital) -> None:
        steward = hospital.people["steward"].headers
        made = self.make(hospital, steward, scopes=["jobs:write", "files:read"]).json()
        assert made["scopes"] == ["files:read", "jobs:write"]
        owner = authenticate(hospital.database, made["key"])
        assert owner is not None and owner.scopes == {"files:read", "jobs:write"}
        assert self.make(hospital, steward).json()["scopes"] is None

    def test_no_key_makes_one_with_more_than_it_has(self, hospital: Hospital) -> None:
        narrow = key_of(hospital, "steward", "access:write", "jobs:write")
        assert self.make(hospital, narrow, scopes=["jobs:read"]).status_code == 201
        inherited = self.make(hospital, narrow).json()
        assert inherited["scopes"] == ["access:write", "jobs:write"]
        for more in (["files:read"], ["jobs:read", "webhooks:write"]):
            assert is_scope_refusal(self.make(hospital, narrow, scopes=more))

    @pytest.mark.parametrize("names", [[], ["jobs:*"], ["all"], "jobs:read"])
    def test_only_those_of_the_list(self, hospital: Hospital, names: Any) -> None:
        steward = hospital.people["steward"].headers
        assert self.make(hospital, steward, scopes=names).status_code == 422
        with hospital.database.transaction() as session, pytest.raises(ValueError):
            issue_key(session, hospital.people["steward"].id, scopes=names)

    def test_on_the_host_of_the_database(
        self, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RLDP_DATABASE_URL", hospital.database.url)
        person = hospital.people["steward"].id
        runner = CliRunner()
        done = runner.invoke(cli, ["keys", "create", person, "--scope", "ledger:read"])
        assert done.exit_code == 0, done.output
        owner = authenticate(hospital.database, done.stdout.strip().splitlines()[-1])
        assert owner is not None and owner.scopes == {"ledger:read"}
        refused = runner.invoke(cli, ["keys", "create", person, "--scope", "everything"])
        assert refused.exit_code != 0


def test_a_key_with_scopes_opens_no_dashboard(hospital: Hospital) -> None:
    """Pages show all that a role may see."""
    headers = key_of(hospital, "steward", *scopes.SCOPES)
    client = TestClient(hospital.app, base_url="http://127.0.0.1", follow_redirects=False)
    form = {
        "key": headers["Authorization"].removeprefix("Bearer "),
        "form_token": _token(client.get("/signin").text),
    }
    answer = client.post("/signin", data=form)
    assert answer.status_code == 403
    assert "rldp_session" not in answer.headers.get("set-cookie", "")
    with hospital.database.reading() as session:
        assert session.query(ApiKeyScope).count() == len(scopes.SCOPES)
