"""The page of people and the one of an invitation: who sees them, and that each form acts once."""

from __future__ import annotations

import re

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi.testclient import TestClient
from sqlalchemy import select

from service.membership import invitations
from service.tenants.models import Invitation, Principal
from tests.service.dashboard.scene import Scene
from tests.service.dashboard.test_pages import _token, sign_in
from tests.service.ledger import world as w
from tests.service.membership.test_membership import hex_of, sign

TOKEN = re.compile(r"enrol_[0-9a-z]+_[0-9a-f]{64}")
KEY = re.compile(r"rldp_[0-9a-z]+_[0-9a-f]{64}")


def signed_in(scene: Scene, role: str) -> TestClient:
    client = scene.client()
    sign_in(client, scene.keys[role])
    return client


def send(client: TestClient, page: str, path: str, **fields: str) -> tuple[int, str]:
    """The form of `path` as it stands on `page`."""
    token = _token(client.get(page).text)
    answer = client.post(path, data={**fields, "form_token": token}, follow_redirects=True)
    return answer.status_code, answer.text


def invited(scene: Scene, role: str) -> tuple[str, str]:
    """Id and token, as the page shows them."""
    status, html = send(signed_in(scene, "admin"), "/people", "/people", role=role)
    found = TOKEN.search(html)
    assert status == 200 and found is not None, html
    return f"usr_{found.group().split('_')[1]}", found.group()


@pytest.mark.parametrize("role", ["admin", "steward", "auditor", "submitter"])
def test_admins_and_stewards_see_who_belongs_here(scene: Scene, role: str) -> None:
    answer = signed_in(scene, role).get("/people")
    assert (answer.status_code == 200) == (role in ("admin", "steward"))
    if answer.status_code == 200:
        assert scene.world.auditor in answer.text
        assert ("Invite somebody" in answer.text) == (role == "admin")


def test_people_of_another_hospital_are_not_listed(scene: Scene) -> None:
    other = w.found(scene.world.db)
    assert other.auditor not in signed_in(scene, "admin").get("/people").text


def test_the_token_is_shown_once_and_opens_the_door(scene: Scene) -> None:
    person, token = invited(scene, "auditor")
    admin = signed_in(scene, "admin")
    assert person in admin.get("/people").text and token not in admin.get("/people").text
    newcomer = scene.client()
    status, html = send(newcomer, "/accept", "/accept", token=f" {token} ")
    key = KEY.search(html)
    assert status == 200 and key is not None
    sign_in(newcomer, key.group())
    assert newcomer.get("/ledger").status_code == 200
    status, html = send(scene.client(), "/accept", "/accept", token=token)
    assert status == 422 and "used up" in html and token not in html


def test_a_steward_is_sent_to_the_command_and_loses_nothing(scene: Scene) -> None:
    person, token = invited(scene, "steward")
    status, html = send(scene.client(), "/accept", "/accept", token=token)
    assert status == 422 and "rldp people accept --signing-key" in html
    key = Ed25519PrivateKey.generate()
    with scene.world.db.transaction() as session:
        invitations.accept(
            session, token, public_key=hex_of(key), possession=sign(key, person, key)
        )
    html = signed_in(scene, "steward").get("/people").text
    assert "A new steward waits" in html and f"rldp people approve {person}" in html
    assert hex_of(key) not in html, "the new steward tells it, not this page"


def test_forms_of_another_page_change_nothing(scene: Scene) -> None:
    admin, before = signed_in(scene, "admin"), _invitations(scene)
    for path, fields in (
        ("/people", {"role": "auditor"}),
        (f"/people/{scene.world.auditor}/block", {}),
    ):
        assert admin.post(path, data={**fields, "form_token": "x"}).status_code == 400
    assert scene.client().post("/accept", data={"token": "x", "form_token": "x"}).status_code == 400
    with scene.world.db.reading() as session:
        assert session.get_one(Principal, scene.world.auditor).blocked_at is None
    assert _invitations(scene) == before


def _invitations(scene: Scene) -> int:
    with scene.world.db.reading() as session:
        return len(session.scalars(select(Invitation)).all())


def test_a_steward_may_not_invite_or_block(scene: Scene) -> None:
    steward = signed_in(scene, "steward")
    for path in ("/people", f"/people/{scene.world.auditor}/block"):
        status, _ = send(steward, "/people", path, role="auditor")
        assert status == 404, path


def test_an_admin_blocks_and_lets_in_again_but_not_themselves(scene: Scene) -> None:
    admin, auditor = signed_in(scene, "admin"), signed_in(scene, "auditor")
    path = f"/people/{scene.world.auditor}"
    assert send(admin, "/people", f"{path}/block")[0] == 200
    assert auditor.get("/ledger", follow_redirects=False).status_code == 303
    assert send(admin, "/people", f"{path}/unblock")[0] == 200
    assert auditor.get("/ledger", follow_redirects=False).status_code == 200
    status, html = send(admin, "/people", f"/people/{scene.world.admin}/block")
    assert status == 409 and "cannot block yourself" in html
    assert send(admin, "/people", "/people/usr_none/block")[0] == 404
    person, _ = invited(scene, "steward")
    status, html = send(admin, "/people", f"/people/{person}/unblock")
    assert status == 409 and "never in" in html
