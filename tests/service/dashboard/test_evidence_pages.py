"""Evidence pages: who may see them, what they show, and that each read is entered."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from service import logged_reads
from service.auth.keys import issue_key
from service.ledger import access, releases
from service.ledger.models import Entry, ReservationBlock
from service.ledger.publisher import make_publisher
from tests.service.dashboard.scene import Scene, open_scene
from tests.service.dashboard.test_pages import sign_in
from tests.service.ledger import world as w


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """For tests that write; each leaves what the others need as it was."""
    with open_scene(tmp_path_factory.mktemp("own")) as scene:
        yield scene


def _client(scene: Scene, key: str) -> TestClient:
    client = scene.client()
    sign_in(client, key)
    return client


def _asked(scene: Scene) -> tuple[str, str]:
    """A conditional job whose release waits: job and release."""
    job = w.run_job(scene.world, run_plan=w.plan())
    with scene.world.db.transaction() as session:
        made = releases.request_release(
            session, tenant_id=scene.world.tenant, actor=scene.world.proposer, job_id=job
        )
        return job, made.id


def _pages(scene: Scene) -> tuple[str, ...]:
    return (
        "/ledger",
        f"/ledger/jobs/{scene.released}/check",
        f"/certificates/{scene.released}",
        f"/certificates/{scene.released}/privacy-certificate.pdf",
        "/ledger/export/entries.csv",
    )


def _reads(scene: Scene) -> list[dict[str, Any]]:
    with scene.world.db.reading() as session:
        rows = session.scalars(access.visible_reads(scene.world.tenant)).all()
        return [access.read_to_dict(row) for row in rows]


class TestRoles:
    def test_strangers_are_sent_to_the_form(self, scene: Scene) -> None:
        for path in (*_pages(scene), "/approvals"):
            assert scene.client().get(path).headers["location"] == "/signin"

    def test_auditors_read_all_but_the_steward_s_page(self, scene: Scene) -> None:
        client = _client(scene, scene.keys["auditor"])
        assert [client.get(path).status_code for path in _pages(scene)] == [200] * 5
        assert client.get("/approvals").status_code == 404

    def test_admins_read_no_ledger(self, scene: Scene) -> None:
        client = _client(scene, scene.keys["admin"])
        for path in (*_pages(scene), "/approvals"):
            assert client.get(path).status_code == 404

    def test_another_tenant_s_job_looks_absent(self, scene: Scene) -> None:
        stranger = w.found(scene.world.db)
        with scene.world.db.transaction() as session:
            key = issue_key(session, stranger.auditor).text
        client = _client(scene, key)
        for path in _pages(scene)[1:4]:
            assert client.get(path).status_code == 404
        assert scene.released not in client.get("/ledger").text

    def test_so_is_each_read_of_the_older_pages(self, scene: Scene) -> None:
        client = _client(scene, scene.keys["steward"])
        wanted = ["/", f"/jobs/{scene.released}", f"/jobs/{scene.released}/files/certificate.json"]
        before = len(_reads(scene))
        assert all(client.get(path).status_code in (200, 403, 404, 503) for path in wanted)
        assert client.get("/jobs/ftjob-none").status_code == 404
        told = [(read["route"], read["shown"], read["outcome"]) for read in _reads(scene)[before:]]
        assert told[:2] == [
            ("/", None, "allowed"),
            ("/jobs/{job_id}", scene.released, "allowed"),
        ]
        assert told[2][0] == "/jobs/{job_id}/files/{name}"
        assert told[3] == ("/jobs/{job_id}", None, "absent")

    def test_a_page_left_open_is_one_entry_an_hour(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = _client(scene, scene.keys["steward2" if "steward2" in scene.keys else "steward"])
        for module in (access, logged_reads):
            monkeypatch.setattr(module, "this_minute", lambda: "2026-11-25T15:59Z")
        before = len(_reads(scene))
        for path in ("/live/overview", f"/live/jobs/{scene.released}") * 3:
            assert client.get(path).status_code == 200
        for module in (access, logged_reads):
            monkeypatch.setattr(module, "this_minute", lambda: "2026-11-25T16:00Z")
        assert client.get("/live/overview").status_code == 200
        told = [(read["route"], read["shown"]) for read in _reads(scene)[before:]]
        assert told == [
            ("/live/overview", None),
            ("/live/jobs/{job_id}", scene.released),
            ("/live/overview", None),
        ]

    def test_each_read_is_in_the_access_log(self, scene: Scene) -> None:
        path = f"/certificates/{scene.released}"
        _client(scene, scene.keys["auditor"]).get(path)
        with scene.world.db.reading() as session:
            rows = session.scalars(access.visible_reads(scene.world.tenant)).all()
            last = access.read_to_dict(rows[-1])
        assert (last["route"], last["actor"]) == ("/certificates/{job_id}", scene.world.auditor)
        assert (last["shown"], last["outcome"]) == (scene.released, "allowed")


class TestLedger:
    def test_filters_and_pages_reach_every_entry_once(self, scene: Scene) -> None:
        client = _client(scene, scene.keys["auditor"])
        path, seen = f"/ledger?type=window.charge&job={scene.released}", []
        html = client.get(path).text
        seen = re.findall(r'<td class="num">(\d+)</td><td>2', html)
        assert len(seen) == 12
        after, everything = "-1", []
        for _ in range(10):
            html = client.get(f"/ledger?after={after}").text
            everything += re.findall(r'<td class="num">(\d+)</td><td>2', html)
            following = re.search(r'rel="next" href="/ledger\?after=(\d+)', html)
            if following is None:
                break
            after = following[1]
        assert everything == [str(index) for index in range(len(everything))]
        assert len(everything) > 50

    def test_every_type_that_stands_in_the_log_can_be_asked_for(self, scene: Scene) -> None:
        client = _client(scene, scene.keys["auditor"])
        with scene.world.db.reading() as session:
            standing = set(session.scalars(select(Entry.type).where(Entry.log_id.like("tn_%"))))
        offered = set(re.findall(r"<option>([a-z.]+)</option>", client.get("/ledger").text))
        assert standing and standing <= offered
        assert {"grant.rejected", "redaction", "correction", "key.rotated"} <= offered

    def test_empty_filters_of_the_form_ask_for_all(self, scene: Scene) -> None:
        client = _client(scene, scene.keys["auditor"])
        assert "No entry fits" not in client.get("/ledger?population=&type=&job=").text


class TestCheck:
    def test_a_whole_job_agrees_and_is_proved(self, own: Scene) -> None:
        make_publisher(own.settings, own.world.db).turn()
        client = _client(own, own.keys["auditor"])
        html = client.get(f"/ledger/jobs/{own.released}/check").text
        assert "recomputed and agrees" in html
        assert "✗" not in html
        assert "not signed yet" not in html

    def test_a_changed_amount_is_shown(self, own: Scene) -> None:
        client = _client(own, own.keys["auditor"])
        self._add(own, -1)
        html = client.get(f"/ledger/jobs/{own.released}/check").text
        self._add(own, 1)
        assert "✗ Something" in html

    def _add(self, scene: Scene, pico: int) -> None:
        with scene.world.db.transaction() as session:
            session.execute(
                update(ReservationBlock)
                .where(ReservationBlock.job_id == scene.released)
                .values(spent_pico=ReservationBlock.spent_pico + pico)
            )


class TestApprovals:
    def test_the_reasons_and_the_exact_text_stand_there_before_anyone_signs(
        self, own: Scene
    ) -> None:
        job, release = _asked(own)
        html = _client(own, own.keys["steward"]).get("/approvals").text
        assert "no external witness" in html
        assert "dp-ledger-approval/v1" in html
        assert "rldp ledger sign --key" in html
        assert f"/approvals/releases/{release}" in html
        assert f"/certificates/{job}" in html

    def test_a_pasted_signature_counts_and_a_wrong_one_changes_nothing(self, own: Scene) -> None:
        _, release = _asked(own)
        client = _client(own, own.keys["steward"])
        page = client.get("/approvals").text
        token = re.search(r'name="form_token" value="([0-9a-f]{64})"', page)
        assert token is not None
        form = {"decision": "approve", "form_token": token[1]}
        path = f"/approvals/releases/{release}"
        with own.world.db.reading() as session:
            found = releases.visible_release(session, own.world.tenant, release)
            shown = releases.release_to_dict(session, found)
        right = own.world.sign(own.world.proposer, shown["entry"])
        wrong = own.world.sign(own.world.second, shown["entry"])
        assert client.post(path, data=form | {"signature": "short"}).status_code == 422
        assert client.post(path, data=form | {"signature": wrong}).status_code == 409
        forged = form | {"signature": right, "form_token": "0" * 64}
        assert client.post(path, data=forged).status_code == 400
        assert self._signers(own, release) == []
        assert client.post(path, data=form | {"signature": right}).status_code == 303
        assert self._signers(own, release) == [own.world.proposer]
        assert "You have decided" in client.get("/approvals").text

    def test_an_auditor_cannot_decide(self, own: Scene) -> None:
        _, release = _asked(own)
        client = _client(own, own.keys["auditor"])
        answer = client.post(f"/approvals/releases/{release}", data={"decision": "approve"})
        assert answer.status_code == 404
        assert self._signers(own, release) == []

    def _signers(self, scene: Scene, release: str) -> list[str]:
        with scene.world.db.reading() as session:
            found = releases.visible_release(session, scene.world.tenant, release)
            return [a["approver"] for a in releases.release_to_dict(session, found)["approvals"]]
