"""Routes of jobs: anonymous, wrong role, other hospital's row, invalid, valid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.auth.keys import issue_key
from service.cli.policy import write_policy
from service.jobs import runtime
from service.ledger import checkpoints, guard
from service.ledger.models import LogHead
from service.settings import Settings
from tests.deploy.test_verify_ledger import verifier
from tests.service.jobs import world as w
from tests.service.jobs.test_service import BODY
from tests.service.ledger import world as lw

JOBS = "/v1/fine_tuning/jobs"
CANARY = "canary-4711-Müller"


@dataclass
class Site:
    """A running application with a key for each person."""

    world: lw.World
    client: TestClient
    keys: dict[str, str]
    file_id: str
    directory: Path

    def call(self, method: str, path: str, role: str | None = "submitter", **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.keys[role]}"} if role else {}
        return self.client.request(method, path, headers=headers, **more)

    def create(self, **changes: Any) -> Any:
        return self.call("POST", JOBS, json={**BODY, "training_file": self.file_id, **changes})


def keys_of(world: lw.World) -> dict[str, str]:
    people = {
        "submitter": world.submitter,
        "steward": world.proposer,
        "auditor": world.auditor,
        "admin": world.admin,
    }
    with world.db.transaction() as session:
        return {role: issue_key(session, person).text for role, person in people.items()}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with lw.sqlite_database(tmp_path) as db:
        world = lw.open_world(db)
        file_id, _ = w.add_dataset(world, tmp_path)
        keys = keys_of(world)
        keys["stranger"] = keys_of(lw.open_world(db))["steward"]
        settings = Settings(data_dir=tmp_path / "data", database_url=db.url)
        with TestClient(create_app(settings, db)) as client:
            yield Site(world=world, client=client, keys=keys, file_id=file_id, directory=tmp_path)


ROUTES = [
    ("POST", "", {"submitter"}),
    ("POST", "/estimate", {"submitter", "steward"}),
    ("GET", "", {"submitter", "steward", "admin"}),
    ("GET", "/{job}", {"submitter", "steward", "admin"}),
    ("POST", "/{job}/cancel", {"submitter", "steward", "admin"}),
    ("POST", "/{job}/pause", {"submitter", "steward", "admin"}),
    ("POST", "/{job}/resume", {"submitter", "steward", "admin"}),
    ("GET", "/{job}/events", {"submitter", "steward", "admin"}),
    ("GET", "/{job}/checkpoints", {"submitter", "steward", "admin"}),
    ("GET", "/{job}/metrics", {"submitter", "steward", "admin"}),
    ("GET", "/{job}/attempts", {"submitter", "steward", "admin"}),
    ("GET", "/{job}/audit", {"submitter", "steward", "admin"}),
    ("GET", "/{job}/artifacts", {"submitter", "steward", "admin"}),
    ("GET", "/{job}/artifacts/adapter_config.json", {"submitter", "steward"}),
]


class TestAccess:
    @pytest.mark.parametrize(("method", "path", "_roles"), ROUTES)
    def test_nobody_without_a_key(
        self, site: Site, method: str, path: str, _roles: set[str]
    ) -> None:
        job = w.queue_job(site.world)
        answer = site.call(method, JOBS + path.format(job=job), role=None)
        assert answer.status_code == 401

    @pytest.mark.parametrize(("method", "path", "roles"), ROUTES)
    def test_only_the_roles_of_the_design(
        self, site: Site, method: str, path: str, roles: set[str]
    ) -> None:
        for role in ("submitter", "steward", "admin", "auditor"):
            job = w.queue_job(site.world)
            body = {} if method == "GET" or path.startswith("/{job}") else {"json": {}}
            answer = site.call(method, JOBS + path.format(job=job), role=role, **body)
            forbidden = answer.status_code == 403
            code = answer.json()["error"]["code"] if forbidden else ""
            assert (code == "role_forbidden") == (role not in roles), (role, answer.text)

    @pytest.mark.parametrize(("method", "path"), [(m, p) for m, p, _ in ROUTES if "{job}" in p])
    def test_another_hospitals_job_is_not_there(self, site: Site, method: str, path: str) -> None:
        job = w.queue_job(site.world)
        theirs = site.call(method, JOBS + path.format(job=job), role="stranger")
        absent = site.call(method, JOBS + path.format(job="ftjob-none"), role="stranger")
        assert theirs.status_code == absent.status_code == 404
        for answer in (theirs, absent):
            assert answer.json()["error"]["code"] == "not_found"
        assert w.state(site.world.db, job) == "queued"

    def test_lists_hold_own_jobs_only(self, site: Site) -> None:
        w.queue_job(site.world)
        assert site.call("GET", JOBS, role="stranger").json()["data"] == []
        assert len(site.call("GET", JOBS, role="steward").json()["data"]) == 1


class TestBody:
    @pytest.mark.parametrize(
        "body",
        [
            {"privacy": {"target_epsilonn": "3", CANARY: 1}},
            {CANARY: 1},
            {"method": {"type": "supervised", "supervised": {CANARY: {}}}},
            {"controller": {"intervall_steps": 3}},
        ],
    )
    def test_an_unknown_field_is_refused_and_never_named(
        self, site: Site, body: dict[str, Any]
    ) -> None:
        answer = site.create(**body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "unknown_field"
        assert CANARY not in answer.text

    @pytest.mark.parametrize(
        "body",
        [
            {"privacy": {"target_epsilon": CANARY}},
            {"privacy": {"target_epsilon": True}},
            {"privacy": {"target_epsilon": "100.1"}},
            {"privacy": {"target_epsilon": "-3"}},
            {"privacy": {"target_epsilon": "3", "mode": CANARY}},
            {"suffix": CANARY},
            {"metadata": {"k": 7}},
            {"controller": {"interval_steps": 501}},
            {"seed": -1},
            {"model": 1.5},
        ],
    )
    def test_an_unacceptable_value_is_refused_and_never_repeated(
        self, site: Site, body: dict[str, Any]
    ) -> None:
        answer = site.create(**body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"].startswith(f"/{next(iter(body))}")
        assert CANARY not in answer.text and "4711" not in answer.text

    @pytest.mark.parametrize("text", ["{", '{"seed": NaN}', "[1", "\xff"])
    def test_what_is_no_json_is_malformed(self, site: Site, text: str) -> None:
        answer = site.call(
            "POST",
            JOBS,
            content=text.encode("latin-1"),
        )
        # without a media type the body is refused before it is read
        assert answer.status_code in (400, 415)
        headers = {
            "Authorization": f"Bearer {site.keys['submitter']}",
            "Content-Type": "application/json",
        }
        answer = site.client.post(JOBS, content=text.encode("latin-1"), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_json")

    def test_a_number_is_read_as_decimal_text(self, site: Site) -> None:
        """0.1 + 0.2 in floats is not 0.3; the digits that were sent must survive."""
        digits = "0.99999999999999999"  # a float would make 1.0 of it
        parameters = {"batch_size": 1000, "learning_rate_multiplier": "DIGITS"}
        request = {**BODY, "training_file": site.file_id, "method": {}}
        body = json.dumps({**request, "hyperparameters": parameters})
        body = body.replace('"DIGITS"', digits)
        headers = {
            "Authorization": f"Bearer {site.keys['submitter']}",
            "Content-Type": "application/json",
        }
        answer = site.client.post(JOBS, content=body, headers=headers)
        assert answer.json()["hyperparameters"]["learning_rate_multiplier"] == digits

    def test_a_budget_that_does_not_suffice_shows_the_balance(self, tmp_path: Path) -> None:
        with lw.sqlite_database(tmp_path) as db:
            world = lw.open_world(db, epsilon="0.8")
            file_id, _ = w.add_dataset(world, tmp_path)
            settings = Settings(data_dir=tmp_path / "data", database_url=db.url)
            headers = {"Authorization": f"Bearer {keys_of(world)['submitter']}"}
            with TestClient(create_app(settings, db)) as client:
                body = {**BODY, "training_file": file_id}
                answer = client.post(JOBS, json=body, headers=headers)
                again = client.post(JOBS, json=body, headers=headers).json()
                assert again["receipts"] == answer.json()["receipts"]
                self.is_evidence(client, settings, answer.json(), world)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "privacy_budget_exceeded"
        balance = answer.json()["balance"]
        assert balance["population"] == world.population
        assert int(balance["needed_pico"]) > int(balance["available_pico"])

    def is_evidence(
        self, client: TestClient, settings: Settings, answer: Any, world: lw.World
    ) -> None:
        """The saved answer holds the log to the refusal: the verifier reads it as it is."""
        (receipt,) = answer["receipts"]
        headers = {"Authorization": f"Bearer {keys_of(world)['auditor']}"}
        (refusal,) = client.get("/v1/ledger/refusals", headers=headers).json()["data"]
        assert (receipt["idx"], refusal["actor"]) == (refusal["idx"], world.submitter)
        folder = settings.data_dir / "kept"
        folder.mkdir()
        files = {name: folder / name for name in ("bundle.zip", "policy.json", "answer.json")}
        bundle = client.get("/v1/ledger/bundle", headers=headers).content
        files["bundle.zip"].write_bytes(bundle)
        write_policy(settings, out=files["policy.json"], max_age_seconds=3600)
        arguments = [str(files["bundle.zip"]), f"--policy={files['policy.json']}"]
        arguments.append(f"--receipt={files['answer.json']}")
        files["answer.json"].write_text(json.dumps(answer))
        assert verifier.main(arguments) == 0
        text = receipt["receipt"].replace(receipt["publish_by"], "2020-01-01T00:00Z")
        files["answer.json"].write_text(json.dumps({**receipt, "receipt": text}))
        assert verifier.main(arguments) == 1  # not what the service signed

    def test_plain_openai_calls_never_train_without_privacy(self, site: Site) -> None:
        answer = site.create(privacy={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "privacy_required")


class TestAnswers:
    def test_a_repeated_post_finds_its_job(self, site: Site) -> None:
        first, again = site.create(), site.create()
        assert first.json()["id"] == again.json()["id"]
        assert "Idempotent-Replayed" not in first.headers
        assert again.headers["Idempotent-Replayed"] == "true"

    def test_a_job_reads_back_as_it_was_answered(self, site: Site) -> None:
        made = site.create(metadata={"team": "icu"}).json()
        assert [one["object"] for one in made.pop("receipts")] == ["ledger.receipt"]
        assert site.call("GET", f"{JOBS}/{made['id']}").json() == made
        listed = site.call("GET", f"{JOBS}?metadata[team]=icu").json()
        assert listed["data"] == [made] and listed["has_more"] is False
        assert site.call("GET", f"{JOBS}?metadata[team]=er").json()["data"] == []

    def test_a_cursor_of_nothing_is_invalid(self, site: Site) -> None:
        job = w.queue_job(site.world)
        for path in (JOBS, f"{JOBS}/{job}/events", f"{JOBS}/{job}/checkpoints"):
            answer = site.call("GET", f"{path}?after=ftjob-none")
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "cursor_invalid")

    def test_events_page_newest_first(self, site: Site) -> None:
        claim = w.running_job(site.world)
        path = f"{JOBS}/{claim.job_id}/events"
        first = site.call("GET", f"{path}?limit=2").json()
        rest = site.call("GET", f"{path}?after={first['last_id']}").json()
        states = [event["data"]["state"] for event in first["data"] + rest["data"]]
        assert states == ["running", "starting", "queued"]
        assert (first["has_more"], rest["has_more"]) == (True, False)

    def test_cancel_of_a_finished_job_conflicts_and_is_not_retried(self, site: Site) -> None:
        claim = w.running_job(site.world)
        runtime.finish(
            site.world.db, claim.job_id, 1, final_state="succeeded", artifacts=[], certificate=None
        )
        answer = site.call("POST", f"{JOBS}/{claim.job_id}/cancel")
        assert (answer.status_code, answer.headers["x-should-retry"]) == (409, "false")

    def test_an_estimate_is_what_creation_reserves(self, site: Site) -> None:
        body = {**BODY, "training_file": site.file_id}
        told = site.call("POST", f"{JOBS}/estimate", json=body).json()
        assert told["reserve_pico"] == site.create().json()["privacy"]["reserved_pico"]


class TestArtifacts:
    def _finished(self, site: Site) -> str:
        claim = w.running_job(site.world)
        path = site.directory / "adapter_config.json"
        path.write_text('{"r": 16}')
        file = runtime.ArtifactFile(
            name=path.name,
            path=str(path),
            bytes=9,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        runtime.finish(
            site.world.db,
            claim.job_id,
            1,
            final_state="succeeded",
            artifacts=[file],
            certificate=lw.claim_of(lw.plan(), 10),
        )
        return claim.job_id

    def test_names_and_digests_are_shown_before_a_release(self, site: Site) -> None:
        job = self._finished(site)
        answer = site.call("GET", f"{JOBS}/{job}/artifacts").json()
        assert [file["name"] for file in answer["data"]] == [
            "adapter_config.json",
            "certificate.json",
        ]
        assert answer["release"] == {"state": "none"}

    @pytest.mark.parametrize("name", ["adapter_config.json", "certificate.json"])
    def test_files_wait_for_two_stewards(self, site: Site, name: str) -> None:
        job = self._finished(site)
        path = f"{JOBS}/{job}/artifacts/{name}"
        before = site.call("GET", path)
        assert (before.status_code, before.json()["error"]["code"]) == (403, "release_pending")
        lw.publish(site.world, job)
        unsigned = site.call("GET", path)
        assert (unsigned.status_code, unsigned.json()["error"]["code"]) == (503, "not_ready")
        assert int(unsigned.headers["Retry-After"]) > 0
        lw.sign_log(site.world, site.directory / "data")
        after = site.call("GET", path)
        assert after.status_code == 200
        digest = hashlib.sha256(after.content).hexdigest()
        listed = site.call("GET", f"{JOBS}/{job}/artifacts").json()["data"]
        assert digest in {file["sha256"] for file in listed if file["name"] == name}

    def test_files_wait_for_the_witnesses_where_a_quorum_is_set(self, site: Site) -> None:
        job = self._finished(site)
        lw.publish(site.world, job)
        lw.sign_log(site.world, site.directory / "data")
        path = f"{JOBS}/{job}/artifacts/adapter_config.json"
        with site.world.db.transaction() as session:
            guard.configure(session, quorum=1)
        assert site.call("GET", path).status_code == 503
        with site.world.db.transaction() as session:
            system = checkpoints.system_log(session)
            guard.note_quorum(session, size=session.get_one(LogHead, system).size)
        assert site.call("GET", path).status_code == 200

    def test_a_changed_file_is_not_handed_out(self, site: Site) -> None:
        job = self._finished(site)
        lw.publish(site.world, job)
        lw.sign_log(site.world, site.directory / "data")
        (site.directory / "adapter_config.json").write_text("{}")
        answer = site.call("GET", f"{JOBS}/{job}/artifacts/adapter_config.json")
        assert answer.status_code == 500 and "{}" not in answer.text

    def test_other_names_are_not_there(self, site: Site) -> None:
        job = self._finished(site)
        answer = site.call("GET", f"{JOBS}/{job}/artifacts/optimizer.pt")
        assert answer.status_code == 404

    def test_a_succeeded_job_names_its_adapter_and_its_certified_epsilon(self, site: Site) -> None:
        answer = site.call("GET", f"{JOBS}/{self._finished(site)}").json()
        assert answer["fine_tuned_model"].startswith("ft:medtext:")
        assert answer["privacy"]["epsilon_certified"] == lw.plan().epsilon_certified
        assert float(answer["privacy"]["epsilon_so_far"]["value"]) > 0
        assert answer["privacy"]["blocks"][0]["spent_pico"] != "0"
