"""Signing in with the identity provider: the whole way, and everything that must stop it."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from service.auth.identities import identity_id, link, unlink
from service.dashboard.sessions import PROVIDER_SESSION_SECONDS
from service.database import now_us
from service.tenants.models import Principal
from tests.service.auth.fake_provider import CLIENT, USER, FakeProvider, open_provider, signing_key
from tests.service.hospital import Hospital, Person, open_hospital

HOME = "https://rldp.example"
BACK = f"{HOME}/signin/provider/back"
NAME = "the clinic's account"


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with open_provider() as opened:
        yield opened


@pytest.fixture(autouse=True)
def fresh(provider: FakeProvider) -> None:
    provider.user, provider.nonce, provider.changes = USER, None, {}
    provider.client_secret, provider.is_down = "", False
    provider.keys = [signing_key("first")]


def settings_of(provider: FakeProvider, **changes: Any) -> dict[str, Any]:
    return {
        "oidc_issuer": provider.issuer,
        "oidc_client_id": CLIENT,
        "oidc_redirect_url": BACK,
        "oidc_name": NAME,
        "rate_limit_failures_per_minute": 0,
        **changes,
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, provider: FakeProvider) -> Iterator[Hospital]:
    with open_hospital(tmp_path_factory.mktemp("site"), **settings_of(provider)) as hospital:
        connect(hospital, provider, hospital.people["steward"])
        yield hospital


def connect(hospital: Hospital, provider: FakeProvider, person: Person, user: str = USER) -> None:
    with hospital.database.transaction() as session:
        link(session, person.id, identity_id(provider.issuer, user))


def browser(hospital: Hospital) -> TestClient:
    """A browser of its own, with its own cookies, that follows nothing by itself."""
    return TestClient(hospital.app, base_url=HOME, follow_redirects=False)


def visit(address: str) -> str:
    """Where the provider sends the browser to."""
    parts = urlsplit(address)
    line = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    line.request("GET", f"{parts.path}?{parts.query}")
    answer = line.getresponse()
    answer.read()
    line.close()
    assert answer.status == 302
    return str(answer.headers["Location"])


def way_back(client: TestClient) -> str:
    """There and, with a code, the address that leads back here."""
    there = client.get("/signin/provider")
    assert there.status_code == 303
    return visit(there.headers["location"])


def sign_in(client: TestClient) -> Any:
    return client.get(way_back(client))


def is_signed_in(client: TestClient) -> bool:
    return client.get("/").status_code == 200


class TestTheWay:
    def test_there_back_signed_in_and_out_again(
        self, site: Hospital, provider: FakeProvider
    ) -> None:
        client = browser(site)
        assert f"Sign in with {NAME}".replace("'", "&#39;") in client.get("/signin").text
        answer = sign_in(client)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        page = client.get("/")
        assert page.status_code == 200 and "teward" in page.text
        token = page.text.split('name="form_token" value="')[1].split('"')[0]
        assert client.post("/signout", data={"form_token": token}).status_code == 303
        assert not is_signed_in(client)

    def test_the_cookies_are_bound_to_this_host_and_end(self, site: Hospital) -> None:
        client = browser(site)
        there = client.get("/signin/provider")
        set_there = there.headers["set-cookie"]
        back = client.get(visit(there.headers["location"]))
        session = next(c for c in back.headers.get_list("set-cookie") if "rldp_session" in c)
        for cookie in (set_there, session):
            assert cookie.startswith("__Host-rldp_")
            assert {"HttpOnly", "Secure", "SameSite=lax"} <= set(cookie.split("; "))
        assert f"Max-Age={PROVIDER_SESSION_SECONDS}" in session
        assert any('__Host-rldp_provider=""' in c for c in back.headers.get_list("set-cookie"))

    def test_only_an_opaque_id_is_asked_for(self, site: Hospital) -> None:
        asked = parse_qs(urlsplit(browser(site).get("/signin/provider").headers["location"]).query)
        assert asked["scope"] == ["openid"]
        assert asked["redirect_uri"] == [BACK]
        assert asked["code_challenge_method"] == ["S256"]
        assert len(asked["state"][0]) >= 43 and asked["state"] != asked["nonce"]

    def test_a_confidential_client_shows_its_secret(
        self, tmp_path: Path, provider: FakeProvider
    ) -> None:
        file = tmp_path / "client_secret"
        file.write_text("s3cret/+\n")
        given = settings_of(provider, oidc_client_secret_file=file)
        with open_hospital(tmp_path, **given) as hospital:
            connect(hospital, provider, hospital.people["auditor"])
            provider.client_secret = "s3cret%2F%2B"
            client = browser(hospital)
            assert sign_in(client).status_code == 303 and is_signed_in(client)
            provider.client_secret = "another"
            assert sign_in(browser(hospital)).status_code == 503

    def test_without_a_provider_there_is_no_link_and_no_way(self, hospital: Hospital) -> None:
        client = browser(hospital)
        assert "Sign in with" not in client.get("/signin").text
        for path in ("/signin/provider", "/signin/provider/back?state=x&code=y"):
            assert client.get(path).headers["location"] == "/signin"


class TestWhatStopsIt:
    def test_a_code_of_another_browser(self, site: Hospital) -> None:
        """Else an attacker could sign a person in as somebody else."""
        attacker, victim = browser(site), browser(site)
        victim.get("/signin/provider")
        answer = victim.get(way_back(attacker))
        assert answer.status_code == 400 and not is_signed_in(victim)

    def test_a_browser_that_never_asked(self, site: Hospital) -> None:
        stranger = browser(site)
        assert stranger.get(way_back(browser(site))).status_code == 400
        assert stranger.get("/signin/provider/back").status_code == 400

    def test_the_same_answer_twice(self, site: Hospital) -> None:
        client = browser(site)
        back = way_back(client)
        assert client.get(back).status_code == 303
        assert client.get(back).status_code == 400

    def test_an_answer_that_names_another_provider(self, site: Hospital) -> None:
        client = browser(site)
        back = way_back(client).split("&iss=")[0] + "&iss=https%3A%2F%2Fid.example"
        assert client.get(back).status_code == 400

    def test_a_refusal_of_the_provider_is_not_repeated(self, site: Hospital) -> None:
        client = browser(site)
        state = parse_qs(urlsplit(way_back(client)).query)["state"][0]
        answer = client.get(f"/signin/provider/back?state={state}&error=zebra")
        assert answer.status_code == 401 and "zebra" not in answer.text

    @pytest.mark.parametrize(
        "changes",
        [
            {"nonce": "another"},
            {"nonce": None},
            {"aud": "rldp-api"},
            {"aud": [CLIENT, "another"]},
            {"azp": "another"},
            {"iss": "https://id.example"},
            {"exp": 1},
            {"sub": None},
        ],
    )
    def test_an_id_token_that_is_not_for_this_sign_in(
        self, site: Hospital, provider: FakeProvider, changes: dict[str, Any]
    ) -> None:
        provider.changes = changes
        client = browser(site)
        assert sign_in(client).status_code == 401 and not is_signed_in(client)

    def test_a_token_of_somebody_elses_key(self, site: Hospital, provider: FakeProvider) -> None:
        client = browser(site)
        assert sign_in(browser(site)).status_code == 303
        provider.keys = [signing_key("stranger")]
        assert sign_in(client).status_code == 401 and not is_signed_in(client)

    def test_a_person_without_a_link_is_told_what_to_give_the_operator(
        self, site: Hospital, provider: FakeProvider
    ) -> None:
        provider.user = "newcomer"
        client = browser(site)
        answer = sign_in(client)
        assert answer.status_code == 403 and not is_signed_in(client)
        assert identity_id(provider.issuer, "newcomer") in answer.text
        assert "newcomer" not in answer.text

    def test_a_steward_without_a_second_factor(
        self, site: Hospital, provider: FakeProvider
    ) -> None:
        provider.changes = {"amr": ["pwd"]}
        client = browser(site)
        answer = sign_in(client)
        assert answer.status_code == 403 and "second factor" in answer.text
        assert not is_signed_in(client)

    def test_a_provider_that_is_away(self, tmp_path: Path, provider: FakeProvider) -> None:
        provider.is_down = True
        with open_hospital(tmp_path, **settings_of(provider)) as hospital:
            answer = browser(hospital).get("/signin/provider")
            assert answer.status_code == 503 and "API key" in answer.text

    def test_many_refusals_from_one_address(self, tmp_path: Path, provider: FakeProvider) -> None:
        given = settings_of(provider, rate_limit_failures_per_minute=1)
        with open_hospital(tmp_path, **given) as hospital:
            codes = [sign_in(browser(hospital)).status_code for _ in range(2)]
            assert codes == [403, 429]


class TestTheSessionEnds:
    def test_when_the_person_is_blocked(self, site: Hospital, provider: FakeProvider) -> None:
        person = site.people["auditor"]
        connect(site, provider, person, "leaver")
        provider.user = "leaver"
        client, with_key = browser(site), browser(site)
        sign_in(client)
        token = with_key.get("/signin").text.split('name="form_token" value="')[1].split('"')[0]
        with_key.post("/signin", data={"key": person.key, "form_token": token})
        assert is_signed_in(client) and is_signed_in(with_key)
        with site.database.transaction() as session:
            session.execute(
                update(Principal).where(Principal.id == person.id).values(blocked_at=now_us())
            )
        assert not is_signed_in(client) and not is_signed_in(with_key)
        answer = sign_in(client)
        assert answer.status_code == 403 and "blocked" in answer.text

    def test_when_the_link_is_taken_away(self, site: Hospital, provider: FakeProvider) -> None:
        connect(site, provider, site.people["submitter"], "mover")
        provider.user = "mover"
        client = browser(site)
        sign_in(client)
        assert is_signed_in(client)
        with site.database.transaction() as session:
            unlink(session, identity_id(provider.issuer, "mover"))
        assert not is_signed_in(client)
