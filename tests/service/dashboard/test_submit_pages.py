"""A submitter's way through the pages: upload, row report, price, submit once, own jobs."""

from __future__ import annotations

import html
import re

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from service.auth.keys import issue_key
from service.datasets.models import File
from service.jobs.models import Job
from service.ledger import access
from tests.service.dashboard.scene import Scene
from tests.service.dashboard.test_pages import _key_of_new_person, _token, sign_in
from tests.service.hospital import GOOD_ROWS
from tests.service.ledger import world as w

# A menu of levels needs no PLD calibration, hence plans in a moment.
SETTINGS = {"epsilon": "3", "steps": "400", "batch": "1000", "interval": "10", "ask": "1"}
SETTINGS |= {"mode": "adaptive_sigma"}
CANARY = "canary-4711"
BAD_ROWS = (
    b'{"patient_id": "p1", "text": "fine"}\n'
    b'{"patient_id": "p2", "note": "' + CANARY.encode() + b'"}\n'
    b'{"text": "' + CANARY.encode() + b'"}\n'
)


@pytest.fixture
def submitter(own: Scene) -> TestClient:
    client = own.client()
    sign_in(client, own.keys["submitter"])
    return client


def _settings(scene: Scene, **changes: str) -> dict[str, str]:
    return {"file": scene.file, "model": "medtext-gpt2-4m", **SETTINGS, **changes}


def _confirmation(page: str) -> dict[str, str]:
    """The hidden fields of the form that submits."""
    form = page.partition('<form method="post" action="/submit">')[2].partition("</form>")[0]
    fields = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form)
    assert fields
    return {name: html.unescape(value) for name, value in fields}


def _jobs(scene: Scene) -> int:
    with scene.world.db.reading() as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0


class TestAccess:
    @pytest.mark.parametrize("path", ["/submit", "/files", "/files/file-x", "/jobs"])
    def test_strangers_are_sent_to_the_form(self, scene: Scene, path: str) -> None:
        assert scene.client().get(path).headers["location"] == "/signin"

    def test_a_stranger_s_file_is_not_taken(self, own: Scene) -> None:
        answer = own.client().post("/files", files={"file": ("a.jsonl", GOOD_ROWS)})
        assert answer.headers["location"] == "/signin"

    def test_each_role_sees_its_pages_only(self, scene: Scene) -> None:
        allowed = {
            "/submit": {"submitter"},
            "/submit/estimate": {"submitter"},
            "/files": {"submitter", "steward"},
            "/jobs": {"submitter", "steward", "admin"},
        }
        for role in ("submitter", "steward", "auditor", "admin"):
            client = scene.client()
            sign_in(client, scene.keys[role])
            for path, roles in allowed.items():
                assert (client.get(path).status_code == 200) == (role in roles), (role, path)

    def test_a_file_of_a_colleague_or_another_hospital_looks_absent(self, scene: Scene) -> None:
        other = w.found(scene.world.db)
        with scene.world.db.transaction() as session:
            stranger = issue_key(session, other.proposer).text
        colleague = _key_of_new_person(scene, scene.world.tenant, "submitter")
        for key in (stranger, colleague):
            client = scene.client()
            sign_in(client, key)
            theirs, absent = client.get(f"/files/{scene.file}"), client.get("/files/file-none")
            assert (theirs.status_code, theirs.text) == (404, absent.text)
            if key == colleague:
                priced = client.get("/submit/estimate", params=_settings(scene)).text
                assert "No such object." in priced


class TestUpload:
    def _send(self, client: TestClient, content: bytes, **fields: str) -> str:
        token = _token(client.get("/files").text)
        form = {"form_token": token, "purpose": "fine-tune", **fields}
        answer = client.post("/files", data=form, files={"file": ("notes.jsonl", content)})
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]

    def test_a_good_file_is_ready_for_a_job(self, own: Scene, submitter: TestClient) -> None:
        place = self._send(submitter, GOOD_ROWS, dataset=own.dataset)
        shown = submitter.get(place).text
        assert "Every row passed" in shown
        assert f"/submit?file={place.removeprefix('/files/')}" in shown
        assert "notes.jsonl" in submitter.get("/files").text

    def test_bad_rows_are_named_by_line_place_and_code_and_never_repeated(
        self, own: Scene, submitter: TestClient
    ) -> None:
        shown = submitter.get(self._send(submitter, BAD_ROWS, dataset=own.dataset)).text
        rows = re.findall(
            r'<td class="num">(\d+)</td><td><code>([^<]*)</code></td><td><code>(\w+)', shown
        )
        assert ("2", "field_missing") in [(line, code) for line, _, code in rows]
        assert ("3", "/patient_id", "unit_missing") in rows
        assert CANARY not in shown
        assert "upload it again" in shown

    def test_reading_a_report_is_entered(self, own: Scene, submitter: TestClient) -> None:
        place = self._send(submitter, BAD_ROWS, dataset=own.dataset)
        submitter.get(place)
        with own.world.db.reading() as session:
            last = access.read_to_dict(
                session.scalars(access.visible_reads(own.world.tenant)).all()[-1]
            )
        assert (last["route"], last["shown"]) == ("/files/{file_id}", place.removeprefix("/files/"))

    def test_a_form_from_elsewhere_keeps_nothing(self, own: Scene, submitter: TestClient) -> None:
        form = {"form_token": "0" * 64, "purpose": "fine-tune", "dataset": own.dataset}
        with own.world.db.reading() as session:
            before = session.scalar(select(func.count()).select_from(File))
        answer = submitter.post("/files", data=form, files={"file": ("a.jsonl", GOOD_ROWS)})
        assert (answer.status_code, "too old" in answer.text) == (400, True)
        with own.world.db.reading() as session:
            assert session.scalar(select(func.count()).select_from(File)) == before
        assert list(own.settings.files_dir.glob("*.spool*")) == []

    def test_another_s_dataset_is_refused_on_the_page(
        self, own: Scene, submitter: TestClient
    ) -> None:
        token = _token(submitter.get("/files").text)
        form = {"form_token": token, "purpose": "fine-tune", "dataset": "ds_none"}
        answer = submitter.post("/files", data=form, files={"file": ("a.jsonl", GOOD_ROWS)})
        assert (answer.status_code, "names no dataset of yours" in answer.text) == (422, True)


class TestEstimate:
    def test_page_and_api_say_the_same(self, own: Scene, submitter: TestClient) -> None:
        shown = submitter.get("/submit", params=_settings(own)).text
        told = own.client().post(
            "/v1/fine_tuning/jobs/estimate",
            headers={"Authorization": f"Bearer {own.keys['submitter']}"},
            json={
                "model": "medtext-gpt2-4m", "training_file": own.file,
                "method": {"type": "supervised",
                           "supervised": {"hyperparameters": {"batch_size": 1000}}},
                "privacy": {"target_epsilon": "3", "steps_max": 400, "mode": "adaptive_sigma"},
                "controller": {"type": "rldp", "interval_steps": 10},
            },
        ).json()  # fmt: skip
        assert f"ε {told['epsilon_job']} <span>at δ {told['delta']}" in shown
        share = 100 * float(told["population_share"])
        said = re.search(r"this job ([\d.]+) %", shown)
        assert said is not None and abs(float(said[1]) - share) < 0.1
        part = submitter.get("/submit/estimate", params=_settings(own)).text
        assert f"this job {said[1]} %" in part
        assert "<html" not in part

    def test_what_does_not_fit_says_what_to_do(self, own: Scene, submitter: TestClient) -> None:
        shown = submitter.get(
            "/submit", params=_settings(own, epsilon="30", steps="2000", batch="20000")
        ).text
        assert "does not fit" in shown
        assert "ask two stewards" in shown.lower()
        assert "Submit this job" not in shown

    def test_fields_that_cannot_be_read_are_marked_and_not_repeated(
        self, own: Scene, submitter: TestClient
    ) -> None:
        bad = _settings(own, epsilon="lots", steps="-1", rank="0")
        part = submitter.get("/submit/estimate", params=bad).text
        assert "A whole number from 1 to 1,000,000, or nothing." in part
        assert "lots" not in part
        page = submitter.get("/submit", params=_settings(own, epsilon="lots")).text
        assert 'aria-describedby="fault-epsilon"' in page

    def test_nothing_is_priced_before_it_is_asked_for(
        self, own: Scene, submitter: TestClient
    ) -> None:
        shown = submitter.get("/submit").text
        assert "Press Estimate" in shown
        assert 'action="/submit">' in shown and "idempotency_key" not in shown


class TestSubmit:
    def test_a_double_click_is_one_job(self, own: Scene, submitter: TestClient) -> None:
        form = _confirmation(submitter.get("/submit", params=_settings(own)).text)
        before = _jobs(own)
        answers = [submitter.post("/submit", data=form) for _ in range(2)]
        assert [a.status_code for a in answers] == [303, 303]
        assert answers[0].headers["location"] == answers[1].headers["location"]
        assert _jobs(own) == before + 1
        place = answers[0].headers["location"]
        assert submitter.get(place).status_code == 200
        assert place in submitter.get("/jobs").text

    def test_a_form_from_elsewhere_makes_no_job(self, own: Scene, submitter: TestClient) -> None:
        form = _confirmation(submitter.get("/submit", params=_settings(own)).text)
        before = _jobs(own)
        for change in ({"form_token": "0" * 64}, {"idempotency_key": ""}):
            answer = submitter.post("/submit", data=form | change)
            assert (answer.status_code, "too old" in answer.text) == (400, True)
        assert _jobs(own) == before

    def test_a_budget_that_is_gone_is_told_with_a_way_out(
        self, own: Scene, submitter: TestClient
    ) -> None:
        form = _confirmation(submitter.get("/submit", params=_settings(own)).text)
        before = _jobs(own)
        answer = submitter.post(
            "/submit", data=form | {"epsilon": "30", "steps": "2000", "batch": "20000"}
        )
        assert answer.status_code == 403
        assert "ask two stewards" in answer.text
        assert _jobs(own) == before

    def test_unknown_models_and_unreadable_numbers_are_told(
        self, own: Scene, submitter: TestClient
    ) -> None:
        form = _confirmation(submitter.get("/submit", params=_settings(own)).text)
        assert submitter.post("/submit", data=form | {"model": "x"}).status_code == 403
        assert submitter.post("/submit", data=form | {"steps": "many"}).status_code == 422


class TestJobs:
    def test_a_submitter_s_list_holds_no_job_of_others(self, scene: Scene) -> None:
        client = scene.client()
        sign_in(client, _key_of_new_person(scene, scene.world.tenant, "submitter"))
        assert "ftjob-" not in client.get("/jobs").text
        client = scene.client()
        sign_in(client, scene.keys["submitter"])
        listed = client.get("/jobs").text
        assert scene.released in listed and f"/certificates/{scene.released}" in listed

    def test_an_unknown_cursor_is_no_page(self, scene: Scene) -> None:
        client = scene.client()
        sign_in(client, scene.keys["submitter"])
        assert client.get("/jobs?after=ftjob-none").status_code == 404
