"""Pages: anonymous, wrong role, another tenant's row, invalid, valid; and what they show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete, update

from service.auth.keys import issue_key
from service.auth.models import ApiKey
from service.auth.subject import Subject
from service.dashboard.rendering import HERE, static_files
from service.database import now_us
from service.jobs import steering
from service.jobs.models import JobMetric
from tests.service.dashboard.scene import Scene, interrupted_job
from tests.service.ledger import world as w


def _token(html: str) -> str:
    found = re.search(r'name="form_token" value="([0-9a-f]{64})"', html)
    assert found is not None
    return found[1]


def sign_in(client: TestClient, key: str) -> None:
    token = _token(client.get("/signin").text)
    answer = client.post("/signin", data={"key": key, "form_token": token})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


@pytest.fixture
def client(scene: Scene) -> TestClient:
    return scene.client()


@pytest.fixture
def steward(scene: Scene, client: TestClient) -> TestClient:
    sign_in(client, scene.keys["steward"])
    return client


class TestSignIn:
    @pytest.mark.parametrize("path", ["/", "/jobs/ftjob-x", "/jobs/ftjob-x/files/a"])
    def test_anonymous_people_are_sent_to_the_form(self, client: TestClient, path: str) -> None:
        answer = client.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/signin")

    def test_anonymous_live_parts_answer_401(self, client: TestClient) -> None:
        assert client.get("/live/overview").status_code == 401
        assert client.get("/live/jobs/ftjob-x").status_code == 401

    def test_a_wrong_key_is_refused_and_not_repeated(self, client: TestClient) -> None:
        token = _token(client.get("/signin").text)
        answer = client.post("/signin", data={"key": "rldp_nobody_zebra", "form_token": token})
        assert answer.status_code == 401
        assert "zebra" not in answer.text
        assert "rldp_session" not in answer.headers.get("set-cookie", "")

    def test_many_wrong_keys_are_asked_to_wait(self, scene: Scene, client: TestClient) -> None:
        told = [client.get("/signin")]
        while told[-1].status_code != 429 and len(told) < 300:  # one more is let in each second
            form = {"key": "rldp_nobody_zebra", "form_token": _token(told[-1].text)}
            told.append(client.post("/signin", data=form))
        assert [answer.status_code for answer in told[1:]] == [401] * (len(told) - 2) + [429]
        assert len(told) > 50
        assert "Too many requests" in told[-1].text and "zebra" not in told[-1].text
        sign_in(client, scene.keys["steward"])  # a good key is not affected

    def test_a_form_without_its_token_is_refused(self, scene: Scene, client: TestClient) -> None:
        client.get("/signin")
        answer = client.post("/signin", data={"key": scene.keys["steward"], "form_token": "0" * 64})
        assert answer.status_code == 400

    def test_a_form_from_elsewhere_is_refused(self, scene: Scene, client: TestClient) -> None:
        token = _token(scene.client().get("/signin").text)
        answer = client.post("/signin", data={"key": scene.keys["steward"], "form_token": token})
        assert answer.status_code == 400

    def test_the_cookie_is_closed_to_scripts_and_other_sites(
        self, scene: Scene, client: TestClient
    ) -> None:
        token = _token(client.get("/signin").text)
        answer = client.post("/signin", data={"key": scene.keys["steward"], "form_token": token})
        cookie = next(
            c for c in answer.headers.get_list("set-cookie") if c.startswith("rldp_session=")
        )
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert scene.keys["steward"] not in cookie

    def test_over_https_the_cookie_is_secure_and_bound(self, scene: Scene) -> None:
        client = TestClient(scene.app, base_url="https://hospital.example")
        cookies = client.get("/signin").headers.get_list("set-cookie")
        assert cookies[0].startswith("__Host-rldp_form=")
        assert "Secure" in cookies[0]

    def test_a_revoked_key_ends_its_session(self, scene: Scene, client: TestClient) -> None:
        with scene.world.db.transaction() as session:
            key = issue_key(session, scene.world.submitter)
        sign_in(client, key.text)
        assert client.get("/").status_code == 200
        with scene.world.db.transaction() as session:
            revoked = update(ApiKey).where(ApiKey.id == key.key_id).values(revoked_at=now_us())
            session.execute(revoked)
        assert client.get("/").status_code == 303

    def test_signing_out_needs_the_pages_token(self, steward: TestClient) -> None:
        steward.post("/signout", data={"form_token": "0" * 64})
        assert steward.get("/").status_code == 200
        steward.post("/signout", data={"form_token": _token(steward.get("/").text)})
        assert steward.get("/").status_code == 303


class TestOverview:
    def test_it_shows_jobs_budgets_and_entries(self, scene: Scene, steward: TestClient) -> None:
        html = steward.get("/").text
        for job in (scene.running, scene.waiting, scene.released):
            assert f"/jobs/{job}" in html
        assert "70 <span>of 120" in html
        assert "50.0 %" in html
        assert "limit</span> ε 12 <span>at δ 1e-6" in html
        assert "no grant yet" in html
        assert "<code>reserve</code>" in html

    def test_a_submitter_does_not_see_jobs_of_others(
        self, scene: Scene, client: TestClient
    ) -> None:
        sign_in(client, _key_of_new_person(scene, scene.world.tenant, "submitter"))
        assert scene.running not in _without_ledger(client.get("/").text)

    def test_an_auditor_sees_budgets_and_no_jobs(self, scene: Scene, client: TestClient) -> None:
        sign_in(client, scene.keys["auditor"])
        html = client.get("/").text
        assert "Budgets" in html
        assert "window.charge" in html
        assert "/jobs/" not in html

    def test_an_admin_sees_no_ledger(self, scene: Scene, client: TestClient) -> None:
        sign_in(client, scene.keys["admin"])
        assert "Newest ledger entries" not in client.get("/").text

    def test_another_hospital_sees_nothing_of_it(self, scene: Scene, client: TestClient) -> None:
        other = w.found(scene.world.db)
        with scene.world.db.transaction() as session:
            key = issue_key(session, other.submitter).text
        sign_in(client, key)
        html = client.get("/").text
        assert "cardio" not in html
        assert "ftjob-" not in html

    def test_an_unchanged_part_is_not_sent_again(self, steward: TestClient) -> None:
        first = steward.get("/live/overview")
        again = steward.get("/live/overview", headers={"If-None-Match": first.headers["etag"]})
        assert (first.status_code, again.status_code, again.content) == (200, 304, b"")


class TestJobPage:
    def test_it_shows_state_claim_charts_and_events(
        self, scene: Scene, steward: TestClient
    ) -> None:
        html = steward.get(f"/jobs/{scene.running}").text
        for words in (
            "Held-out loss, noised", "Training loss, clipped and noised",
            "Clip norm by LoRA tensor", "Noise share by LoRA tensor", "0.attn.c_attn.A",
            "Learning-rate factor by LoRA tensor", "Noise multiplier σ", "promised ε 3",
            "ε 3 <span>at δ 1e-6", "Window 6 done", "± 2 standard errors",
        ):  # fmt: skip
            assert words in html
        assert "Privacy facts" not in html

    def test_an_ended_job_shows_its_label_and_files_and_stops_asking(
        self, scene: Scene, steward: TestClient
    ) -> None:
        html = steward.get(f"/jobs/{scene.released}").text
        assert "Privacy facts" in html
        assert "no external witness" in html
        assert f"/jobs/{scene.released}/files/adapter_model.safetensors" in html
        assert "data-live-end" in html

    def test_a_lost_attempt_is_marked_and_told_as_the_api_tells_it(self, own: Scene) -> None:
        job, client = interrupted_job(own.world), own.client()
        sign_in(client, own.keys["submitter"])
        html = client.get(f"/jobs/{job}").text
        header = {"Authorization": f"Bearer {own.keys['submitter']}"}
        told = client.get(f"/v1/fine_tuning/jobs/{job}/attempts", headers=header).json()["data"]
        assert "Attempt 2 begins at step 30; steps 30 to 40 were lost and stay charged" in html
        assert [attempt["epoch"] for attempt in told] == [1, 2]
        assert [window["outcome"] for window in told[0]["windows"]] == ["done"] * 3 + ["abandoned"]
        assert [window["first_step"] for window in told[1]["windows"]] == [30, 40]

    def test_what_was_not_recorded_is_said(self, own: Scene) -> None:
        with own.world.db.transaction() as session:
            session.execute(delete(JobMetric).where(JobMetric.name == "rate_factor"))
        client = own.client()
        sign_in(client, own.keys["submitter"])
        html = client.get(f"/jobs/{own.running}").text
        assert "Learning-rate factor by LoRA tensor: this job recorded none." in html

    def test_a_waiting_job_says_why(self, scene: Scene, steward: TestClient) -> None:
        assert "Waiting for a free worker." in steward.get(f"/jobs/{scene.waiting}").text

    def test_a_paused_job_is_listed_without_a_place_in_the_queue(
        self, scene: Scene, steward: TestClient
    ) -> None:
        subject = Subject(
            principal_id=scene.world.proposer, tenant_id=scene.world.tenant, role="steward"
        )
        with scene.world.db.transaction() as session:
            steering.pause_job(session, subject, scene.waiting)
        try:
            row = steward.get("/").text.partition('id="queue"')[2].partition("<tbody>")[2]
            row = row.partition("</tbody>")[0]
            assert '<td class="num">–</td>' in row and "is-paused" in row
            assert "Paused, or about to be." in row
        finally:
            with scene.world.db.transaction() as session:
                steering.resume_job(session, subject, scene.waiting)

    @pytest.mark.parametrize("path", ["/jobs/{}", "/live/jobs/{}", "/jobs/{}/files/a"])
    def test_another_hospitals_job_looks_absent(
        self, scene: Scene, client: TestClient, path: str
    ) -> None:
        other = w.found(scene.world.db)
        with scene.world.db.transaction() as session:
            key = issue_key(session, other.proposer).text
        sign_in(client, key)
        theirs = client.get(path.format(scene.running))
        absent = client.get(path.format("ftjob-none"))
        assert theirs.status_code == absent.status_code == 404
        assert theirs.text == absent.text

    def test_an_auditor_may_not_open_it(self, scene: Scene, client: TestClient) -> None:
        sign_in(client, scene.keys["auditor"])
        assert client.get(f"/jobs/{scene.running}").status_code == 404

    def test_a_released_file_can_be_taken(self, scene: Scene, steward: TestClient) -> None:
        answer = steward.get(f"/jobs/{scene.released}/files/adapter_config.json")
        assert (answer.status_code, answer.content) == (200, b"{}")

    def test_an_unreleased_or_unknown_file_cannot(self, scene: Scene, steward: TestClient) -> None:
        for job, name in ((scene.running, "adapter_config.json"), (scene.released, "x")):
            assert steward.get(f"/jobs/{job}/files/{name}").status_code == 404


class TestStrictness:
    def test_pages_carry_the_policy_and_nothing_inline(
        self, scene: Scene, steward: TestClient
    ) -> None:
        for path in ("/", f"/jobs/{scene.running}", f"/jobs/{scene.released}", "/jobs/x"):
            answer = steward.get(path)
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["cache-control"] == "no-store"
            assert not re.search(
                r"\sstyle=|<style|\son\w+=|javascript:|<script(?! src=)", answer.text
            )

    def test_pages_ask_nobody_outside(self, scene: Scene, steward: TestClient) -> None:
        for path in ("/", f"/jobs/{scene.released}"):
            assert not re.search(r'(?:src|href|action)="(?:https?:)?//', steward.get(path).text)

    def test_static_files_are_cached_under_their_digest_only(self, client: TestClient) -> None:
        for name, file in static_files().items():
            pinned = client.get(f"/static/{name}?v={file.digest}")
            assert "immutable" in pinned.headers["cache-control"]
            assert "immutable" not in client.get(f"/static/{name}").headers["cache-control"]
            assert pinned.headers["content-type"].startswith(file.media_type)

    @pytest.mark.parametrize("name", ["..%2Frendering.py", "nothing.css", "%2e%2e"])
    def test_no_other_file_can_be_asked_for(self, client: TestClient, name: str) -> None:
        assert client.get(f"/static/{name}").status_code == 404

    def test_every_static_file_is_ours_and_small(self) -> None:
        names = {path.name for path in (HERE / "static").iterdir()}
        assert names == set(static_files())
        assert sum(len(file.content) for file in static_files().values()) < 64 * 1024


def _without_ledger(html: str) -> str:
    return html.partition("Newest ledger entries")[0]


def _key_of_new_person(scene: Scene, tenant: str, role: str) -> str:
    from service.ids import new_person_id
    from service.tenants.models import Principal

    with scene.world.db.transaction() as session:
        person = new_person_id("usr_")
        session.add(Principal(id=person, tenant_id=tenant, role=role, created_at=now_us()))
        session.flush()
        return issue_key(session, person).text


def test_templates_name_no_address() -> None:
    for path in (HERE / "templates").iterdir():
        assert "http" not in Path(path).read_text(encoding="utf-8"), path.name
