"""A person's way into a hospital over HTTP, on both databases; a steward's into the ledger."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi.testclient import TestClient
from sqlalchemy import event, select, update

from service.app import create_app
from service.auth.keys import issue_key
from service.database import Database, now_us
from service.ledger.models import Entry
from service.ledger.stewards import steward_text
from service.membership.invitations import OPEN_INVITATIONS_MAX
from service.rate_limits import RateLimits
from service.settings import Settings
from service.tenants.models import Invitation, Principal, Tenant
from tests.deploy.test_verify_ledger import Body, Parts, exported, take_apart, verifier
from tests.service.jobs.test_endpoints import keys_of
from tests.service.ledger import world as w

Change = Callable[[Body], Any]
ACCEPT = "/v1/invitations/accept"


@dataclass
class Site:
    """An application over one granted hospital, with a key for one person of each role."""

    client: TestClient
    world: w.World
    keys: dict[str, str]

    def call(self, method: str, path: str, key: str | None = "admin", **more: Any) -> Any:
        text = self.keys.get(key or "", key)
        headers = {"Authorization": f"Bearer {text}"} if text else {}
        return self.client.request(method, path, headers=headers, **more)

    def invite(self, role: str) -> dict[str, Any]:
        made = self.call("POST", "/v1/users", json={"role": role})
        assert made.status_code == 201, made.text
        return dict(made.json())

    def accept(self, token: str, **more: Any) -> Any:
        return self.client.post(ACCEPT, json={"token": token, **more})

    def accept_as_steward(self, invited: dict[str, Any], key: Ed25519PrivateKey) -> Any:
        return self.accept(
            invited["token"], public_key=hex_of(key), possession=sign(key, invited["id"], key)
        )

    def approve(self, user: str, by: str, signature: str) -> Any:
        with self.world.db.transaction() as session:
            key = issue_key(session, by).text
        path = f"/v1/users/{user}/approval"
        return self.call("POST", path, key, json={"signature": signature})


def hex_of(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes_raw().hex()


def sign(signer: Ed25519PrivateKey, principal: str, key: Ed25519PrivateKey) -> str:
    text = steward_text(principal=principal, key=hex_of(key))
    return base64.b64encode(signer.sign(text)).decode()


def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    context = w.sqlite_database(tmp_path) if request.param == "sqlite" else w.postgres_database()
    with context as database:
        yield database


@pytest.fixture
def site(db: Database, tmp_path: Path) -> Iterator[Site]:
    world = w.open_world(db)
    settings = Settings(data_dir=tmp_path / "data", database_url=db.url)
    with TestClient(create_app(settings, db)) as client:
        yield Site(client=client, world=world, keys=keys_of(world))


@pytest.mark.parametrize("role", ["submitter", "auditor", "admin"])
def test_who_accepts_gets_in_with_the_role_they_were_invited_with(site: Site, role: str) -> None:
    invited = site.invite(role)
    assert (invited["role"], invited["state"]) == (role, "invited")
    accepted = site.accept(invited["token"]).json()
    assert (accepted["id"], accepted["role"], accepted["state"]) == (invited["id"], role, "active")
    keys = site.call("GET", "/v1/api_keys", accepted["key"])
    assert keys.status_code == 200
    shown = site.call("GET", f"/v1/users/{invited['id']}").json()
    assert (shown["state"], shown["invited_by"]) == ("active", site.world.admin)
    assert "token" not in shown


def test_a_token_is_good_until_its_key_was_used(site: Site) -> None:
    """The first answer may get lost; a second person with the token finds it used up."""
    token = site.invite("auditor")["token"]
    lost = site.accept(token).json()["key"]
    kept = site.accept(token).json()["key"]
    assert site.call("GET", "/v1/budgets", lost).status_code == 401
    assert site.call("GET", "/v1/budgets", kept).status_code == 200
    assert code_of(site.accept(token)) == (422, "field_invalid")


@pytest.mark.parametrize("spoil", ["", "enrol", "enrol__x", "rldp_a_b", "last", "other"])
def test_what_is_no_open_token_opens_nothing_and_is_not_repeated(site: Site, spoil: str) -> None:
    token, other = site.invite("auditor")["token"], site.invite("auditor")["token"]
    wrong = {
        "last": token[:-1] + ("0" if token[-1] != "0" else "1"),
        "other": "_".join([*token.split("_")[:2], other.split("_")[2]]),
    }.get(spoil, spoil)
    answer = site.accept(wrong)
    assert code_of(answer) == (422, "field_invalid")
    assert not wrong or wrong not in answer.text or wrong == "enrol"


def test_an_invitation_ends(site: Site, db: Database) -> None:
    invited = site.invite("auditor")
    with db.transaction() as session:
        session.execute(update(Invitation).values(expires_at=now_us() - 1))
    assert code_of(site.accept(invited["token"])) == (422, "field_invalid")
    assert site.call("GET", f"/v1/users/{invited['id']}").json()["state"] == "expired"


def test_many_wrong_tokens_are_slowed_down(site: Site) -> None:
    app: Any = site.client.app
    app.state.rate_limits = RateLimits(Settings(rate_limit_failures_per_minute=3))
    answers = [site.accept("enrol_x_y").status_code for _ in range(5)]
    assert answers == [422, 422, 422, 429, 429]


def test_invitations_are_bounded(site: Site, db: Database) -> None:
    with db.transaction() as session:
        now = now_us()
        for number in range(OPEN_INVITATIONS_MAX):
            person = f"usr_{number}"
            session.add(
                Principal(
                    id=person,
                    tenant_id=site.world.tenant,
                    role="auditor",
                    created_at=now,
                    blocked_at=now,
                )
            )
            session.flush()
            session.add(
                Invitation(
                    principal_id=person,
                    sha256="0" * 64,
                    invited_by=site.world.admin,
                    created_at=now,
                    expires_at=now + 60_000_000,
                )
            )
    answer = site.call("POST", "/v1/users", json={"role": "auditor"})
    assert code_of(answer) == (429, "quota_exceeded")


class TestSteward:
    def test_waits_for_a_registered_steward_then_signs_like_one(
        self, site: Site, db: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The ledger, and so the auditor's verifier, takes the signature of the new steward."""
        world, key = site.world, Ed25519PrivateKey.generate()
        invited = site.invite("steward")
        accepted = site.accept_as_steward(invited, key).json()
        assert accepted["state"] == "awaiting_approval"
        assert site.call("GET", "/v1/populations", accepted["key"]).status_code == 401
        shown = site.call("GET", f"/v1/users/{invited['id']}", "steward").json()
        assert shown["to_sign"] == steward_text(principal=invited["id"], key=hex_of(key)).decode()
        vouched = sign(world.stewards[world.second], invited["id"], key)
        assert site.approve(invited["id"], world.second, vouched).json()["state"] == "active"
        again = site.approve(invited["id"], world.second, vouched)
        assert (again.status_code, again.json()["state"]) == (200, "active")
        assert site.call("GET", "/v1/populations", accepted["key"]).status_code == 200
        world.stewards[invited["id"]] = key
        proposal = w.propose(world, world.population, "9", delta="1e-6", alpha_star=None)
        w.decide(world, proposal, world.proposer)
        assert w.decide(world, proposal, invited["id"])["state"] == "effective"
        path = exported(world, tmp_path)
        assert verifier.main([str(path)]) == 0, capsys.readouterr()
        pins = [word for k in world.stewards.values() for word in ("--steward-key", hex_of(k))]
        assert verifier.main([str(path), *pins]) == 0, capsys.readouterr()
        assert verifier.main([str(path), *pins[:-2]]) == 1
        assert "a steward key you did not pin" in capsys.readouterr().out
        self.forge(take_apart(path, world), invited["id"], tmp_path, capsys)

    def forge(
        self, clean: Parts, person: str, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The log written anew by its operator, each time with another lie about the steward."""
        index = clean.find("principal.registered", 3)
        mine = Ed25519PrivateKey.generate()

        def approved(**changes: str) -> Change:
            return lambda body: body["data"]["approvals"][0].update(changes)

        def as_mine(body: Body) -> None:
            body["data"].update(key=hex_of(mine), possession=sign(mine, person, mine))

        def by_themselves(body: Body) -> None:
            as_mine(body)
            body["actor"] = person
            own = {"approver": person, "signature": body["data"]["possession"]}
            body["data"]["approvals"] = [own]

        def as_founder(body: Body) -> None:
            body["v"] = 1
            del body["data"]["approvals"], body["data"]["possession"]

        lies: list[tuple[Change, str]] = [
            (as_mine, "the signature does not fit"),
            (by_themselves, "signed by no registered steward"),
            (as_founder, "without approval by another"),
            (approved(signature="A" * 86 + "=="), "the signature does not fit"),
            (approved(approver="usr_nobody"), "without approval by another"),
            (lambda body: body["data"]["approvals"].clear(), "without approval by another"),
            (lambda body: body["data"].update(possession="A" * 86 + "=="), "does not fit"),
            (lambda body: body["data"].pop("possession"), "lacks possession"),
            (lambda body: body["data"]["approvals"].append(body["data"]["approvals"][0]), "twice"),
            (lambda body: body["data"].update(role="admin"), "only stewards"),
        ]
        for change, problem in lies:
            code = verifier.main([str(clean.edited(index, change).write(folder / "forged.zip"))])
            told = capsys.readouterr().out
            assert code == 1 and problem in told and f"at entry {index}:" in told, (problem, told)

    def test_an_admin_alone_makes_none(self, site: Site, db: Database) -> None:
        """Nor can they by unblocking, or by holding the token themselves."""
        world, key = site.world, Ed25519PrivateKey.generate()
        invited = site.invite("steward")
        path = f"/v1/users/{invited['id']}"
        assert code_of(site.call("POST", f"{path}/unblock")) == (409, "state_conflict")
        mine = site.accept_as_steward(invited, key).json()["key"]
        assert code_of(site.call("POST", f"{path}/unblock")) == (409, "state_conflict")
        assert code_of(site.approve(invited["id"], world.admin, sign(key, invited["id"], key))) == (
            403,
            "role_forbidden",
        )
        for signer in (key, Ed25519PrivateKey.generate()):
            forged = sign(signer, invited["id"], key)
            refused = site.approve(invited["id"], world.proposer, forged)
            assert code_of(refused) == (422, "field_invalid")
        assert site.call("GET", "/v1/populations", mine).status_code == 401
        with db.reading() as session:
            registered = session.scalars(
                select(Entry.body).where(Entry.type == "principal.registered")
            ).all()
        assert invited["id"] not in {json.loads(body)["data"]["principal"] for body in registered}

    def test_who_kept_the_token_gets_nothing_for_the_proof_that_the_ledger_shows(
        self, site: Site
    ) -> None:
        """The admin knows the token, and everybody who reads the ledger the proof of possession."""
        world, key = site.world, Ed25519PrivateKey.generate()
        invited = site.invite("steward")
        kept = site.accept_as_steward(invited, key).json()["key"]
        vouched = sign(world.stewards[world.second], invited["id"], key)
        assert site.approve(invited["id"], world.second, vouched).status_code == 200
        entries = site.call("GET", "/v1/ledger/entries", "submitter").json()["data"]
        told = [entry["entry"]["data"] for entry in entries]
        (entered,) = [data for data in told if data.get("principal") == invited["id"]]
        proof = entered["possession"]
        stolen = site.accept(invited["token"], public_key=hex_of(key), possession=proof)
        assert code_of(stolen) == (422, "field_invalid")
        assert site.call("GET", "/v1/populations", kept).status_code == 200

    def test_one_who_is_not_in_the_ledger_vouches_for_nobody(self, site: Site) -> None:
        """Two who wait cannot let each other in."""
        keys = [Ed25519PrivateKey.generate() for _ in range(2)]
        waiting = [site.invite("steward") for _ in keys]
        for invited, key in zip(waiting, keys, strict=True):
            site.accept_as_steward(invited, key)
        signature = sign(keys[1], waiting[0]["id"], keys[0])
        answer = site.approve(waiting[0]["id"], waiting[1]["id"], signature)
        assert answer.status_code == 401

    def test_a_withdrawn_invitation_is_withdrawn_for_good(self, site: Site) -> None:
        world, key = site.world, Ed25519PrivateKey.generate()
        invited = site.invite("steward")
        site.accept_as_steward(invited, key)
        path = f"/v1/users/{invited['id']}"
        assert site.call("POST", f"{path}/block").json()["state"] == "withdrawn"
        assert code_of(site.call("POST", f"{path}/unblock")) == (409, "state_conflict")
        vouched = sign(world.stewards[world.proposer], invited["id"], key)
        answer = site.approve(invited["id"], world.proposer, vouched)
        assert code_of(answer) == (409, "state_conflict")
        assert code_of(site.accept_as_steward(invited, key)) == (422, "field_invalid")

    def test_must_hold_the_key_that_is_theirs_alone(self, site: Site) -> None:
        world, key = site.world, Ed25519PrivateKey.generate()
        invited = site.invite("steward")
        assert code_of(site.accept(invited["token"])) == (422, "field_invalid")
        stolen = sign(Ed25519PrivateKey.generate(), invited["id"], key)
        unproven = site.accept(invited["token"], public_key=hex_of(key), possession=stolen)
        assert code_of(unproven) == (422, "field_invalid")
        taken = world.stewards[world.proposer]
        assert code_of(site.accept_as_steward(invited, taken)) == (422, "field_invalid")
        assert site.accept_as_steward(invited, key).status_code == 200

    def test_the_first_two_found_the_ledger_and_the_third_needs_one_of_them(
        self, site: Site, db: Database
    ) -> None:
        """A hospital taken in over the API gets as far as its first population by itself."""
        made = site.call("POST", "/v1/tenants", json={}).json()
        admin = site.accept(made["token"]).json()
        assert admin["tenant"] == made["id"] != site.world.tenant
        site.keys["admin"] = admin["key"]
        keys = [Ed25519PrivateKey.generate() for _ in range(3)]
        people = [site.invite("steward") for _ in keys]
        states, opened = [], []
        for invited, key in zip(people, keys, strict=True):
            told = site.accept_as_steward(invited, key).json()
            states.append(told["state"])
            opened.append(told["key"])
        assert states == ["active", "active", "awaiting_approval"]
        body = {"code": "w", "patients_public": 900, "patients_public_basis": "registry"}
        assert site.call("POST", "/v1/populations", opened[0], json=body).status_code == 201
        vouched = sign(keys[0], people[2]["id"], keys[2])
        assert site.approve(people[2]["id"], people[0]["id"], vouched).json()["state"] == "active"
        assert site.call("GET", "/v1/populations", opened[2]).status_code == 200

    def test_blocking_a_founder_gives_the_admin_no_place_to_fill(
        self, site: Site, db: Database
    ) -> None:
        """Before the first population too: files may be there already."""
        made = site.call("POST", "/v1/tenants", json={}).json()
        site.keys["admin"] = site.accept(made["token"]).json()["key"]
        founders = [site.invite("steward") for _ in range(2)]
        for invited in founders:
            site.accept_as_steward(invited, Ed25519PrivateKey.generate())
        third, key = site.invite("steward"), Ed25519PrivateKey.generate()
        for invited in founders:
            site.call("POST", f"/v1/users/{invited['id']}/block")
        assert code_of(site.accept_as_steward(third, key)) == (409, "state_conflict")
        site.call("POST", f"/v1/users/{founders[0]['id']}/unblock")
        assert site.accept_as_steward(third, key).json()["state"] == "awaiting_approval"


class TestOthersThanStewards:
    def test_need_no_signing_key(self, site: Site) -> None:
        key = Ed25519PrivateKey.generate()
        invited = site.invite("submitter")
        assert code_of(site.accept_as_steward(invited, key)) == (422, "field_invalid")

    def test_a_blocked_person_is_out_at_once_and_in_again_with_the_same_key(
        self, site: Site
    ) -> None:
        path = f"/v1/users/{site.world.auditor}"
        assert site.call("GET", "/v1/budgets", "auditor").status_code == 200
        assert site.call("POST", f"{path}/block").json()["state"] == "blocked"
        assert site.call("GET", "/v1/budgets", "auditor").status_code == 401
        assert site.call("POST", f"{path}/unblock").json()["state"] == "active"
        assert site.call("GET", "/v1/budgets", "auditor").status_code == 200

    def test_need_no_approval(self, site: Site) -> None:
        """Somebody who is in is told so; somebody who has yet to accept is in no need of it."""
        signature = "A" * 86 + "=="
        assert site.approve(site.world.auditor, site.world.proposer, signature).status_code == 200
        invited = site.invite("auditor")["id"]
        answer = site.approve(invited, site.world.proposer, signature)
        assert code_of(answer) == (409, "state_conflict")

    def test_a_list_of_many_costs_no_more_questions_than_one_of_few(self, site: Site) -> None:
        def statements() -> int:
            seen: list[str] = []

            def note(_c: Any, _u: Any, statement: str, *_more: Any) -> None:
                seen.append(statement)

            event.listen(site.world.db.engine, "before_cursor_execute", note)
            try:
                people = site.call("GET", "/v1/users?limit=100").json()["data"]
            finally:
                event.remove(site.world.db.engine, "before_cursor_execute", note)
            assert people and any("invitation" in s for s in seen)
            return len(seen)

        statements()  # notes the key's use
        few = statements()
        for _ in range(12):
            site.invite("auditor")
        assert statements() == few

    def test_nobody_blocks_themselves(self, site: Site) -> None:
        answer = site.call("POST", f"/v1/users/{site.world.admin}/block")
        assert code_of(answer) == (409, "state_conflict")


class TestHospitals:
    def test_only_an_admin_of_the_first_one_takes_others_in(self, site: Site, db: Database) -> None:
        made = site.call("POST", "/v1/tenants", json={}).json()
        other = site.accept(made["token"]).json()["key"]
        refused = site.call("POST", "/v1/tenants", other, json={})
        assert code_of(refused) == (403, "role_forbidden")
        listed = site.call("GET", "/v1/tenants").json()["data"]
        assert [row["id"] for row in listed] == [made["id"], site.world.tenant]
        own = site.call("GET", "/v1/tenants", other).json()["data"]
        assert [row["id"] for row in own] == [made["id"]]
        elsewhere = site.call("GET", f"/v1/tenants/{site.world.tenant}", other)
        assert code_of(elsewhere) == (404, "not_found")
        with db.reading() as session:
            assert len(session.scalars(select(Tenant.id)).all()) == 2

    def test_people_of_another_one_are_not_there(self, site: Site) -> None:
        made = site.call("POST", "/v1/tenants", json={}).json()
        other = site.accept(made["token"]).json()["key"]
        for method, tail in (("GET", ""), ("POST", "/block"), ("POST", "/unblock")):
            answer = site.call(method, f"/v1/users/{site.world.auditor}{tail}", other)
            assert code_of(answer) == (404, "not_found"), tail
        people = site.call("GET", "/v1/users", other).json()["data"]
        assert [person["id"] for person in people] == [made["admin"]]
