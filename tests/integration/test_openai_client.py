"""The unmodified `openai` client against a real server, with a stand-in for the trainer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from service.app import create_app
from service.auth.keys import issue_key
from service.dispatcher import Dispatcher
from service.jobs.leases import Claim
from service.settings import Settings
from service.worker.tasks import Slot
from tests.service.jobs import world as w
from tests.service.ledger import world as lw
from tests.service.worker.children import command

ROOT = Path(__file__).resolve().parents[2]
SOON = 30.0
ROWS = [{"patient_id": f"p{i}", "text": f"Note {i}."} for i in range(20)]
REQUEST: dict[str, Any] = {
    "model": "medtext-gpt2-4m",
    "seed": 7,
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"batch_size": 1000}}},
    "extra_body": {
        "privacy": {"target_epsilon": "3.0", "steps_max": 40},
        "controller": {"type": "rldp", "interval_steps": 10},
    },
}


@dataclass
class Site:
    """A served hospital; `work` is its one worker's slot."""

    world: lw.World
    url: str
    keys: dict[str, str]
    settings: Settings

    def client(self, role: str = "submitter", **more: Any) -> openai.OpenAI:
        return openai.OpenAI(
            api_key=self.keys[role], base_url=f"{self.url}/v1", max_retries=0, **more
        )

    def slot(self, kind: str) -> Slot:
        def chosen(claim: Claim) -> list[str]:
            return command(kind, claim.job_id, claim.epoch)

        return Slot(db=self.world.db, settings=self.settings, worker_id="wk_a", command=chosen)


def wait_for(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not fact():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with lw.sqlite_database(tmp_path) as db:
        world = lw.open_world(db)
        settings = Settings(data_dir=tmp_path, database_url=db.url, cancel_grace_seconds=1)
        people = {"submitter": world.submitter, "steward": world.proposer}
        with db.transaction() as session:
            keys = {role: issue_key(session, person).text for role, person in people.items()}
        config = uvicorn.Config(
            create_app(settings, db), host="127.0.0.1", port=0, log_level="critical"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            wait_for(lambda: server.started)
            port = server.servers[0].sockets[0].getsockname()[1]
            yield Site(world=world, url=f"http://127.0.0.1:{port}", keys=keys, settings=settings)
        finally:
            server.should_exit = True
            thread.join(10)


def upload(site: Site) -> str:
    with site.client("steward") as steward:
        dataset = steward.post(
            "/datasets",
            cast_to=object,
            body={"population": site.world.population, "unit_field": "patient_id"},
        )
    content = "\n".join(json.dumps(row) for row in ROWS).encode()
    with site.client() as client:
        file = client.files.create(
            file=("notes.jsonl", content),
            purpose="fine-tune",
            extra_body={"dataset": dataset["id"]},  # type: ignore[index]
        )
    assert file.status == "processed"
    return file.id


def test_a_job_from_upload_to_its_end(site: Site) -> None:
    file_id = upload(site)
    with site.client() as client:
        job = client.fine_tuning.jobs.create(
            training_file=file_id, metadata={"team": "icu"}, suffix="cardio", **REQUEST
        )
        assert (job.object, job.status, job.seed) == ("fine_tuning.job", "queued", 7)
        assert job.trained_tokens is None and job.fine_tuned_model is None
        assert job.model_extra is not None
        assert job.model_extra["privacy"]["target_epsilon"] == "3.0"
        (reserved,) = job.model_extra["receipts"]
        assert reserved["receipt"].startswith("dp-ledger-receipt/v1\n")

        rings: list[str] = []
        Dispatcher(db=site.world.db, settings=site.settings, ring=rings.append).send()
        assert rings == [job.id]
        with pytest.raises(openai.BadRequestError) as refused:
            client.fine_tuning.jobs.create(model="medtext-gpt2-4m", training_file=file_id)
        assert refused.value.code == "privacy_required"

        listed = client.fine_tuning.jobs.list(limit=5)
        assert [one.id for one in listed.data] == [job.id]
        assert client.fine_tuning.jobs.retrieve(job.id).id == job.id

        cancelled = client.fine_tuning.jobs.cancel(job.id)
        assert cancelled.status == "cancelled" and cancelled.model_extra is not None
        assert [one["idx"] for one in cancelled.model_extra["receipts"]] == [
            reserved["idx"],
            reserved["idx"] + 1,  # its settle
        ]
        events = client.fine_tuning.jobs.list_events(job.id)
        assert [event.data["state"] for event in events] == [  # type: ignore[index, call-overload]
            "cancelled",
            "queued",
        ]


def test_a_running_job_is_watched_and_cancelled_within_seconds(site: Site) -> None:
    job = w.queue_job(site.world)
    slot = site.slot("stuck")
    worker = threading.Thread(target=slot.work, args=(job,))
    worker.start()
    try:
        with site.client() as client:
            wait_for(lambda: w.state(site.world.db, job) == "running")
            asked = time.monotonic()
            assert client.fine_tuning.jobs.cancel(job).status == "running"
            wait_for(lambda: client.fine_tuning.jobs.retrieve(job).status == "cancelled")
            assert time.monotonic() - asked < 15
    finally:
        slot.leave(wait_seconds=15)
        worker.join(15)
    assert w.entry_types(site.world.db, job)[-1] == "settle"


def test_a_finished_job_shows_events_metrics_and_its_model(site: Site) -> None:
    job = w.queue_job(site.world)
    assert site.slot("train").work(job) == 1
    with site.client() as client:
        done = client.fine_tuning.jobs.retrieve(job)
        assert done.status == "succeeded" and done.fine_tuned_model is not None
        kinds = [event.type for event in client.fine_tuning.jobs.list_events(job, limit=2)]
        assert set(kinds) == {"message", "metrics"}
        assert client.fine_tuning.jobs.checkpoints.list(job).data == []
        metrics: Any = client.get(f"/fine_tuning/jobs/{job}/metrics", cast_to=object)
        assert metrics["series"][0]["class"] == "private_noised"


def test_pages_are_walked_by_the_client_itself(site: Site) -> None:
    made = [w.queue_job(site.world, created_at=i) for i in range(1, 6)]
    with site.client() as client:
        seen = [job.id for job in client.fine_tuning.jobs.list(limit=2)]
    assert seen == made[::-1]


def test_a_lost_answer_ends_with_one_job_and_one_reservation(site: Site) -> None:
    """The first answer is dropped after its commit; the client repeats by itself."""
    dropped: list[int] = []

    class DropsOnce(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = super().handle_request(request)
            if request.method == "POST" and not dropped:
                answer.read()
                dropped.append(answer.status_code)
                raise httpx.ReadError("connection lost", request=request)
            return answer

    file_id = upload(site)
    with openai.OpenAI(
        api_key=site.keys["submitter"],
        base_url=f"{site.url}/v1",
        max_retries=2,
        http_client=httpx.Client(transport=DropsOnce()),
    ) as client:
        job = client.fine_tuning.jobs.create(training_file=file_id, **REQUEST)
        assert dropped == [200]
        assert [one.id for one in client.fine_tuning.jobs.list().data] == [job.id]
    assert w.entry_types(site.world.db, job.id) == ["reserve"]


@pytest.mark.parametrize(
    ("role", "error"),
    [("nobody", openai.AuthenticationError), ("steward", openai.PermissionDeniedError)],
)
def test_refusals_arrive_as_the_clients_own_errors(
    site: Site, role: str, error: type[openai.APIStatusError]
) -> None:
    site.keys["nobody"] = "rldp_x_y"
    with site.client(role) as client, pytest.raises(error):
        client.fine_tuning.jobs.create(training_file="file-x", **REQUEST)
