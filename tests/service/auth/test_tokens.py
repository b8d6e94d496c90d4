"""Tokens of the identity provider at the API: what opens it, what does not, what is told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import update

from service.auth.identities import identity_id, link, unlink
from service.auth.key_sets import SourceUnavailable
from service.auth.provider import Provider
from service.database import now_us
from service.settings import Settings
from service.tenants.models import Principal
from tests.service.auth.fake_provider import (
    AUDIENCE,
    USER,
    FakeProvider,
    claims,
    key_document,
    open_provider,
    signing_key,
)
from tests.service.hospital import Hospital, Person, open_hospital

MODELS = "/v1/models"


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with open_provider() as opened:
        yield opened


def settings_of(provider: FakeProvider, **changes: Any) -> dict[str, Any]:
    return {"oidc_issuer": provider.issuer, "oidc_audience": AUDIENCE, **changes}


@pytest.fixture
def site(tmp_path: Path, provider: FakeProvider) -> Iterator[Hospital]:
    with open_hospital(tmp_path, **settings_of(provider)) as hospital:
        connect(hospital, provider, hospital.people["submitter"])
        yield hospital


@pytest.fixture(scope="module")
def open_site(
    tmp_path_factory: pytest.TempPathFactory, provider: FakeProvider
) -> Iterator[Hospital]:
    """For tests that leave it as it was."""
    given = settings_of(provider, rate_limit_failures_per_minute=0)
    with open_hospital(tmp_path_factory.mktemp("site"), **given) as hospital:
        connect(hospital, provider, hospital.people["submitter"])
        yield hospital


def connect(hospital: Hospital, provider: FakeProvider, person: Person, user: str = USER) -> None:
    with hospital.database.transaction() as session:
        link(session, person.id, identity_id(provider.issuer, user))


def ask(hospital: Hospital, token: str, path: str = MODELS) -> Any:
    return hospital.client.get(path, headers={"Authorization": f"Bearer {token}"})


def parts(token: str) -> list[str]:
    return token.split(".")


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def now() -> int:
    return now_us() // 1_000_000


class TestGoodTokens:
    @pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
    def test_a_token_stands_for_its_person_beside_api_keys(
        self, tmp_path: Path, algorithm: str
    ) -> None:
        key = signing_key(algorithm, algorithm)
        file = tmp_path / "keys.json"  # as an offline hospital has it
        file.write_bytes(key_document(key))
        given = {
            "oidc_issuer": "https://id.example",
            "oidc_audience": AUDIENCE,
            "oidc_jwks": str(file),
        }
        with open_hospital(tmp_path, **given) as hospital:
            person = hospital.people["submitter"]
            with hospital.database.transaction() as session:
                link(session, person.id, identity_id("https://id.example", USER))
            token = key.sign(claims("https://id.example"))
            assert ask(hospital, token).status_code == 200
            assert hospital.client.get(MODELS, headers=person.headers).status_code == 200
            made = hospital.client.post(
                "/v1/api_keys", json={}, headers={"Authorization": f"Bearer {token}"}
            )
            assert made.json()["principal"] == person.id

    def test_its_role_is_the_one_given_here(
        self, open_site: Hospital, provider: FakeProvider
    ) -> None:
        token = provider.token(roles=["admin", "steward"], role="admin")
        answer = ask(open_site, token, "/v1/audits/access")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "role_forbidden")

    def test_several_audiences_may_hold_ours(
        self, open_site: Hospital, provider: FakeProvider
    ) -> None:
        assert ask(open_site, provider.token(aud=["other", AUDIENCE])).status_code == 200

    def test_a_new_key_of_the_provider_is_fetched(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with (
            open_provider() as provider,
            open_hospital(tmp_path, **settings_of(provider)) as hospital,
        ):
            clock = [1000.0]
            hospital.app.state.identity_provider = Provider(
                hospital.settings, clock=lambda: clock[0]
            )
            connect(hospital, provider, hospital.people["submitter"])
            old = provider.token()
            assert ask(hospital, old).status_code == 200
            provider.keys = [signing_key("second")]
            clock[0] += 61
            assert ask(hospital, provider.token()).status_code == 200
            assert ask(hospital, old).status_code == 401, "the old key is gone"
            assert provider.asked["/keys"] == 2


def hs256_with_public_key(provider: FakeProvider) -> str:
    """The old trick: the public key as the shared secret of an HMAC."""
    key = provider.keys[-1]
    pem = key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = ".".join(
        (encoded({"alg": "HS256", "kid": key.key_id}), encoded(claims(provider.issuer)))
    )
    mac = hmac.new(pem, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


def with_header(provider: FakeProvider, **header: Any) -> str:
    return provider.keys[-1].sign(claims(provider.issuer), **header)


def tampered(provider: FakeProvider) -> str:
    head, _, mac = parts(provider.token())
    return ".".join((head, encoded(claims(provider.issuer, sub="somebody-else")), mac))


def without_signature(provider: FakeProvider) -> str:
    key = provider.keys[-1]
    return ".".join(
        (encoded({"alg": "none", "kid": key.key_id}), encoded(claims(provider.issuer)), "")
    )


def of_another_key(provider: FakeProvider) -> str:
    """Signed by somebody who has a key, and gives it the provider's id."""
    stranger = signing_key("stranger")
    return jwt.encode(
        claims(provider.issuer),
        stranger.private,
        "ES256",
        headers={"kid": provider.keys[-1].key_id},
    )


# What is wrong, how such a token is made, and the code that the log gets.
BAD: dict[str, tuple[Callable[[FakeProvider], str], str]] = {
    "over": (lambda p: p.token(iat=now() - 400, exp=now() - 60), "expired"),
    "issued too long ago": (lambda p: p.token(iat=now() - 960, exp=now() + 9000), "expired"),
    "not yet valid": (lambda p: p.token(nbf=now() + 120), "too_early"),
    "issued in the future": (lambda p: p.token(iat=now() + 120), "too_early"),
    "another audience": (lambda p: p.token(aud="another"), "audience"),
    "another issuer": (lambda p: p.token(iss="https://id.example"), "issuer"),
    "an issuer that begins alike": (lambda p: p.token(iss=f"{p.issuer}/"), "issuer"),
    "no end": (lambda p: p.token(exp=None), "claim_missing"),
    "no begin": (lambda p: p.token(iat=None), "claim_missing"),
    "no audience": (lambda p: p.token(aud=None), "claim_missing"),
    "no issuer": (lambda p: p.token(iss=None), "claim_missing"),
    "no user": (lambda p: p.token(sub=None), "claim_missing"),
    "an empty user": (lambda p: p.token(sub=""), "claim_missing"),
    "an end that is no time": (lambda p: p.token(exp=float("inf")), "malformed"),
    "nobody's user": (lambda p: p.token(sub="stranger"), "unlinked"),
    "bound to its sender": (lambda p: p.token(cnf={"jkt": "x"}), "malformed"),
    "no algorithm": (without_signature, "algorithm"),
    "a shared secret": (hs256_with_public_key, "algorithm"),
    "an algorithm of another key": (
        lambda p: signing_key("rsa", "RS256").sign(claims(p.issuer), kid=p.keys[-1].key_id),
        "algorithm",
    ),
    "changed": (tampered, "signature"),
    "another key under this id": (of_another_key, "signature"),
    "a key nobody knows": (lambda p: signing_key("new").sign(claims(p.issuer)), "key_unknown"),
    "a critical extension": (lambda p: with_header(p, crit=["exp"]), "malformed"),
    "another kind of token": (lambda p: with_header(p, typ="logout+jwt"), "malformed"),
    "no JSON": (lambda p: "eyJ.eyJ.AAAA", "malformed"),
    "not ASCII": (lambda p: "a.b.c", "malformed"),
    "too long": (lambda p: p.token(padding="x" * 20_000), "malformed"),
}


class TestBadTokens:
    @pytest.mark.parametrize("what", sorted(BAD))
    def test_they_are_answered_like_no_credential_and_never_logged(
        self,
        open_site: Hospital,
        provider: FakeProvider,
        what: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        make, code = BAD[what]
        token = make(provider)
        with caplog.at_level(logging.DEBUG):
            answer = ask(open_site, token)
        anonymous = open_site.client.get(MODELS)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.json() | {"request_id": ""} == anonymous.json() | {"request_id": ""}
        told = [vars(record).get("code") for record in caplog.records]
        assert code in told, told
        seen = " ".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
        assert not any(part in seen for part in parts(token) if len(part) > 3)

    def test_an_installation_without_a_provider_knows_no_tokens(
        self, hospital: Hospital, provider: FakeProvider
    ) -> None:
        assert ask(hospital, provider.token()).status_code == 401

    def test_an_id_token_of_the_dashboard_opens_no_api(
        self, tmp_path: Path, provider: FakeProvider
    ) -> None:
        only_pages = {
            "oidc_issuer": provider.issuer,
            "oidc_client_id": "rldp-dashboard",
            "oidc_redirect_url": "http://127.0.0.1/signin/provider/back",
        }
        with open_hospital(tmp_path, **only_pages) as hospital:
            connect(hospital, provider, hospital.people["submitter"])
            assert ask(hospital, provider.token(aud="rldp-dashboard")).status_code == 401
            assert ask(hospital, provider.token(aud="")).status_code == 401

    def test_while_nobody_can_tell_the_answer_is_503(self, tmp_path: Path) -> None:
        with (
            open_provider(is_down=True) as provider,
            open_hospital(tmp_path, **settings_of(provider)) as hospital,
        ):
            answer = ask(hospital, provider.token())
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
            assert "Retry-After" in answer.headers
            person = hospital.people["submitter"]
            assert hospital.client.get(MODELS, headers=person.headers).status_code == 200
            unreadable = hospital.client.post(
                "/v1/api_keys",
                content=b"{",
                headers={
                    "Authorization": f"Bearer {provider.token()}",
                    "Content-Type": "application/json",
                },
            )
            assert unreadable.status_code == 401, "not 500: judged as a stranger's"

    def test_wrong_tokens_are_counted_by_address(
        self, tmp_path: Path, provider: FakeProvider
    ) -> None:
        given = settings_of(provider, rate_limit_failures_per_minute=2)
        with open_hospital(tmp_path, **given) as hospital:
            codes = [ask(hospital, provider.token()).status_code for _ in range(3)]
            assert codes == [401, 401, 429]


class TestPeople:
    def test_a_blocked_person_loses_token_and_key_at_once(
        self, site: Hospital, provider: FakeProvider
    ) -> None:
        person = site.people["submitter"]
        token = provider.token()
        assert ask(site, token).status_code == 200
        with site.database.transaction() as session:
            session.execute(
                update(Principal).where(Principal.id == person.id).values(blocked_at=now_us())
            )
        assert ask(site, token).status_code == 401
        assert site.client.get(MODELS, headers=person.headers).status_code == 401

    def test_a_link_that_is_taken_away_ends_tokens_and_leaves_keys(
        self, site: Hospital, provider: FakeProvider
    ) -> None:
        token = provider.token()
        with site.database.transaction() as session:
            assert unlink(session, identity_id(provider.issuer, USER))
        assert ask(site, token).status_code == 401
        person = site.people["submitter"]
        assert site.client.get(MODELS, headers=person.headers).status_code == 200

    def test_a_person_sees_their_own_hospital_only(
        self, site: Hospital, provider: FakeProvider
    ) -> None:
        connect(site, provider, site.others["steward"], "other")
        connect(site, provider, site.people["steward"], "mine")
        own = site.dataset(site.people["steward"])
        mine, other = (
            provider.token(sub=user, tenant=site.people["steward"].tenant_id)
            for user in ("mine", "other")
        )
        assert ask(site, mine, f"/v1/datasets/{own}").status_code == 200
        assert ask(site, other, f"/v1/datasets/{own}").status_code == 404


@pytest.mark.parametrize(
    ("setting", "value", "good", "bad"),
    [
        ("oidc_tenant_claim", "hospital", {}, [{"hospital": None}, {"hospital": "tn_other"}]),
        (
            "oidc_roles_claim",
            "access.roles",
            {"access": {"roles": ["x", "steward"]}},
            [
                {"access": None},
                {"access": {"roles": ["submitter", "admin"]}},
                {"access": "steward"},
            ],
        ),
        (
            "oidc_roles_claim",
            "https://x.example/roles",
            {"https://x.example/roles": "x steward"},
            [{"https://x.example/roles": "stewards"}],
        ),
        ("oidc_second_factor", "hwk,mfa", {"amr": ["hwk"]}, [{"amr": None}, {"amr": ["pwd"]}]),
        ("oidc_user_claim", "oid", {"oid": USER, "sub": "x"}, [{"sub": USER}, {"oid": 7}]),
    ],
)
def test_a_claim_may_take_away_and_never_gives(
    tmp_path: Path,
    provider: FakeProvider,
    setting: str,
    value: str,
    good: dict[str, Any],
    bad: list[dict[str, Any]],
) -> None:
    with open_hospital(tmp_path, **settings_of(provider, **{setting: value})) as hospital:
        person = hospital.people["steward"]
        connect(hospital, provider, person)
        if setting == "oidc_tenant_claim":
            good = {"hospital": person.tenant_id}
        assert ask(hospital, provider.token(**good)).status_code == 200
        assert [ask(hospital, provider.token(**b)).status_code for b in bad] == [401] * len(bad)


def test_a_submitter_needs_no_second_factor(open_site: Hospital, provider: FakeProvider) -> None:
    assert ask(open_site, provider.token(amr=None)).status_code == 200


class TestSettings:
    @pytest.mark.parametrize(
        "given",
        [
            {"oidc_issuer": "https://id.example"},
            {"oidc_audience": "api"},
            {"oidc_issuer": "https://id.example", "oidc_audience": "a", "oidc_algorithms": "HS256"},
            {"oidc_issuer": "https://id.example", "oidc_audience": "a", "oidc_algorithms": "none"},
            {"oidc_issuer": "https://id.example", "oidc_audience": "a", "oidc_algorithms": ""},
            {"oidc_issuer": "https://id.example", "oidc_client_id": "a"},
            {
                "oidc_issuer": "https://id.example",
                "oidc_audience": "a",
                "oidc_client_id": "a",
                "oidc_redirect_url": "https://rldp.example/signin/provider/back",
            },
            {
                "oidc_issuer": "https://id.example",
                "oidc_audience": "a",
                "oidc_networks_allowed": "inside",
            },
        ],
    )
    def test_half_a_provider_stops_the_start(self, given: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            Settings(**given)


@pytest.mark.parametrize(
    ("issuer", "environment"),
    [
        ("http://127.0.0.1:{port}", "production"),
        ("http://localhost:{port}", "embedded"),
        ("https://127.0.0.2:{port}", "embedded"),
        ("https://10.0.0.1:{port}", "embedded"),
        ("file:///etc/passwd#", "embedded"),
    ],
)
def test_a_provider_inside_our_network_is_not_asked(
    tmp_path: Path, provider: FakeProvider, issuer: str, environment: str
) -> None:
    """https only, and no address inside, but for loopback in an embedded installation."""
    port = provider.issuer.rsplit(":", 1)[1]
    production = {
        "environment": "production",
        "database_url": "postgresql+psycopg://x",
        "witness_quorum": 1,
        "witnesses": tmp_path / "witnesses",
    }
    chosen = Settings(
        oidc_issuer=issuer.format(port=port),
        oidc_audience=AUDIENCE,
        **(production if environment == "production" else {}),
    )
    before = dict(provider.asked)
    with pytest.raises(SourceUnavailable):
        Provider(chosen).keys.key("first")
    assert provider.asked == before
