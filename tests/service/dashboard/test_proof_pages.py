"""Refusals, proofs and the access log on pages: who may read them and what they show."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, text, update

from service.auth.keys import issue_key
from service.ledger import access
from service.ledger import service as ledger
from service.ledger.models import SignedCheckpoint
from service.ledger.publisher import make_publisher
from tests.service.dashboard.scene import Scene
from tests.service.dashboard.test_pages import sign_in
from tests.service.ledger import world as w

PAGES = ("/ledger/refusals", "/ledger/proofs", "/ledger/access")


def _client(scene: Scene, role: str) -> TestClient:
    client = scene.client()
    sign_in(client, scene.keys[role])
    return client


class TestAccess:
    def test_strangers_are_sent_to_the_form(self, scene: Scene) -> None:
        for path in PAGES:
            assert scene.client().get(path).headers["location"] == "/signin"

    def test_roles_see_what_the_api_shows_them(self, scene: Scene) -> None:
        evidence = {"submitter", "steward", "auditor"}
        for role in ("submitter", "steward", "auditor", "admin"):
            client = _client(scene, role)
            for path, roles in zip(PAGES, (evidence, evidence, {"auditor"}), strict=True):
                assert (client.get(path).status_code == 200) == (role in roles), (role, path)

    def test_another_hospital_sees_nothing_of_it(self, scene: Scene) -> None:
        other = w.found(scene.world.db)
        with scene.world.db.transaction() as session:
            key = issue_key(session, other.auditor).text
        client = scene.client()
        sign_in(client, key)
        assert scene.world.tenant not in client.get("/ledger/access").text
        assert client.get("/ledger/proofs").status_code in (200, 404)
        assert scene.world.tenant not in client.get("/ledger/proofs").text

    @pytest.mark.parametrize("path", PAGES)
    def test_each_read_is_entered(self, scene: Scene, path: str) -> None:
        _client(scene, "auditor").get(path)
        with scene.world.db.reading() as session:
            rows = session.scalars(access.visible_reads(scene.world.tenant)).all()
        assert access.read_to_dict(rows[-1])["route"] == path

    def test_they_are_linked_from_the_ledger(self, scene: Scene) -> None:
        html = _client(scene, "auditor").get("/ledger").text
        assert all(f'href="{path}"' in html for path in PAGES)


class TestRefusals:
    def test_the_numbers_are_those_of_the_entry(self, own: Scene) -> None:
        with own.world.db.transaction() as session:
            ledger.record_refusal(
                session, tenant_id=own.world.tenant, actor=own.world.submitter,
                population_id=own.world.population, job_reference="refusal/x/1",
                needed_pico=700, free_pico=300,
            )  # fmt: skip
        html = _client(own, "auditor").get("/ledger/refusals").text
        row = r'<td>cardio</td><td class="num">700</td><td class="num">300</td><td class="num">400<'
        assert re.search(row, html)


class TestProofs:
    def _sizes(self, scene: Scene) -> list[int]:
        """At least two signed sizes, oldest first."""
        make_publisher(scene.settings, scene.world.db).turn()
        w.run_job(scene.world, run_plan=w.plan())
        make_publisher(scene.settings, scene.world.db).turn()
        html = _client(scene, "auditor").get("/ledger/proofs").text
        return sorted({int(size) for size in re.findall(r"<option(?: selected)?>(\d+)<", html)})

    def test_a_later_log_extends_an_earlier_one(self, own: Scene) -> None:
        sizes = self._sizes(own)
        client = _client(own, "auditor")
        html = client.get(f"/ledger/proofs?from={sizes[0]}&to={sizes[-1]}").text
        assert f"✓ The log of {sizes[-1]} entries extends the log of {sizes[0]}." in html
        assert "✗" not in html

    def test_an_entry_stands_in_the_log(self, own: Scene) -> None:
        self._sizes(own)
        html = _client(own, "auditor").get("/ledger/proofs?entry=3").text
        assert "✓ Entry 3 (" in html
        assert "c2sp.org/tlog-proof" in html

    @pytest.mark.parametrize("query", ["from=7&to=2", "from=x&to=", "entry=99999", "entry=-1"])
    def test_what_cannot_be_proved_is_said(self, own: Scene, query: str) -> None:
        assert "No such proof" in _client(own, "auditor").get(f"/ledger/proofs?{query}").text

    def test_a_rewritten_root_is_shown(self, own: Scene) -> None:
        sizes = self._sizes(own)
        root = self._set_root(own, sizes[0], "0" * 64)
        html = _client(own, "auditor").get(f"/ledger/proofs?from={sizes[0]}&to={sizes[-1]}").text
        self._set_root(own, sizes[0], root)
        assert "✗ Not so: " in html
        assert "✗ wrong" in html

    def _set_root(self, scene: Scene, size: int, root: str) -> str:
        """As somebody who owns the database can."""
        of_ours = (
            SignedCheckpoint.log_id.startswith(scene.world.tenant),
            (SignedCheckpoint.size == size),
        )
        with scene.world.db.transaction() as session:
            session.execute(text("DROP TRIGGER IF EXISTS checkpoint_no_update"))
            before = session.scalars(select(SignedCheckpoint.root).where(*of_ours)).one()
            session.execute(update(SignedCheckpoint).where(*of_ours).values(root=root))
        return before


class TestReads:
    def test_the_newest_read_stands_first_and_pages_go_back(self, scene: Scene) -> None:
        client = _client(scene, "auditor")
        for _ in range(52):
            client.get("/ledger/refusals")
        html = client.get("/ledger/access").text
        first = [int(n) for n in re.findall(r'<td class="num">(\d+)</td>', html)]
        assert first == sorted(first, reverse=True)
        assert len(first) == 50
        older = re.search(r'rel="next" href="([^"]+)"', html)
        assert older is not None
        second = re.findall(r'<td class="num">(\d+)</td>', client.get(older[1]).text)
        assert int(second[0]) == first[-1] - 1
