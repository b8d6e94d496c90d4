"""`rldp submit` and `rldp watch` against a real socket: price, consent, faults, end of a job."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner, Result

from service import hub as hubs
from service.cli import app, job_watch
from service.jobs import leases, runtime
from service.jobs.lifecycle import Reason
from tests.service.jobs import world as w
from tests.service.jobs.test_endpoints import JOBS, Site, site
from tests.service.jobs.test_service import BODY

__all__ = ["site"]  # a fixture
CANARY = "canary-4711-Müller"


@pytest.fixture
def url(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(hubs, "LOOK_SECONDS", 0.02)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(site.client.app, port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def rldp(site: Site, url: str, *words: str, who: str = "submitter") -> Result:
    environment = {"RLDP_API_KEY": site.keys[who], "RLDP_URL": url, "COLUMNS": "120"}
    return CliRunner().invoke(app, list(words), env=environment)


ORDER = ("--epsilon", "3", "--steps", "96", "--batch-size", "128", "--interval", "8")


def jobs_of(site: Site) -> list[dict[str, object]]:
    return list(site.call("GET", JOBS).json()["data"])


class TestSubmit:
    def test_its_price_is_what_the_api_says_and_reserves_nothing(
        self, site: Site, url: str
    ) -> None:
        words = ("submit", site.file_id, "--model", BODY["model"], *ORDER, "--price", "--json")
        done = rldp(site, url, *words)
        assert done.exit_code == 0, done.output
        price = json.loads(done.stdout)
        asked = {
            "model": BODY["model"],
            "training_file": site.file_id,
            "method": {
                "type": "supervised",
                "supervised": {"hyperparameters": {"batch_size": 128}},
            },
            "privacy": {"target_epsilon": "3", "steps_max": 96},
            "controller": {"interval_steps": 8},
        }
        assert price == site.call("POST", f"{JOBS}/estimate", json=asked).json()
        assert price["epsilon_job"] in done.stderr and jobs_of(site) == []

    def test_nobody_to_agree_is_no_agreement(self, site: Site, url: str) -> None:
        done = rldp(site, url, "submit", site.file_id, "--model", BODY["model"], *ORDER)
        assert done.exit_code == 1 and "--yes" in done.stderr and site.file_id in done.stderr
        assert jobs_of(site) == []

    def test_what_was_agreed_to_is_one_job(self, site: Site, url: str) -> None:
        done = rldp(site, url, "submit", site.file_id, "--model", BODY["model"], *ORDER, "--yes")
        assert done.exit_code == 0, done.output
        assert [job["id"] for job in jobs_of(site)] == [done.stdout.strip()]

    def test_a_lost_answer_is_asked_for_again_under_the_same_key(
        self, site: Site, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        send, keys = httpx.request, []

        def loses_the_first(method: str, address: str, **options: object) -> httpx.Response:
            answer = send(method, address, **options)  # type: ignore[arg-type]
            if key := dict(options["headers"]).get("Idempotency-Key"):  # type: ignore[call-overload]
                keys.append(key)
                if len(keys) == 1:
                    raise httpx.ReadError("cut off")
            return answer

        monkeypatch.setattr(httpx, "request", loses_the_first)
        done = rldp(site, url, "submit", site.file_id, "--model", BODY["model"], *ORDER, "--yes")
        assert done.exit_code == 0, done.output
        assert len(keys) == 2 and len(set(keys)) == 1 and len(jobs_of(site)) == 1

    def test_rows_with_faults_are_listed_without_their_values(
        self, site: Site, url: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "notes.jsonl"
        path.write_text(f'{{"patient_id": "p1", "text": "fine"}}\n{{"patient_id": "{CANARY}"}}\n')
        done = rldp(site, url, "submit", str(path), "--model", BODY["model"], *ORDER)
        assert done.exit_code == 1 and jobs_of(site) == []
        assert "/text" in done.stderr and "nothing was reserved" in done.stderr
        assert CANARY not in done.output

    def test_what_does_not_fit_says_what_would(self, site: Site, url: str) -> None:
        words = ("submit", site.file_id, "--model", BODY["model"], "--epsilon", "40")
        done = rldp(site, url, *words, "--steps", "96", "--batch-size", "128", "--yes")
        assert done.exit_code == 1 and "try a smaller ε" in done.stderr
        assert jobs_of(site) == []

    def test_neither_file_nor_id(self, site: Site, url: str) -> None:
        done = rldp(site, url, "submit", "nowhere.jsonl", "--model", BODY["model"], *ORDER)
        assert done.exit_code == 1 and "neither a file here" in done.stderr


class TestWatch:
    def test_until_the_job_ends_over_a_connection_that_broke(
        self, site: Site, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hubs, "AGE_SECONDS", 0.5)  # the service ends each stream early
        claim = w.running_job(site.world)

        def go_on() -> None:
            for step in (10, 20, 30):
                time.sleep(0.6)
                runtime.record_window(
                    site.world.db,
                    claim.job_id,
                    claim.epoch,
                    step=step,
                    window=step // 10 - 1,
                    metrics=[runtime.Metric(name="loss_noised", step=step, value_text="2.5")],
                    event_message="Window done.",
                    event_data={"step": step},
                )
            leases.fail_attempt(
                site.world.db, claim.job_id, claim.epoch, Reason.MODEL_REFUSED, True
            )

        thread = threading.Thread(target=go_on)
        thread.start()
        done = rldp(site, url, "watch", claim.job_id, "--json")
        thread.join()
        said = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.exit_code == 1, "it has no adapter"
        assert said[-1]["event"] == "state" and said[-1]["data"]["state"] == "failed"
        points = [p for s in said if s["event"] == "metric" for p in s["data"]["points"]]
        assert {step for step, _ in points} == {10, 20, 30}, "none is missed"

    def test_people_are_told_how_it_ended_and_what_is_next(self, site: Site, url: str) -> None:
        claim = w.running_job(site.world)
        leases.fail_attempt(site.world.db, claim.job_id, claim.epoch, Reason.MODEL_REFUSED, True)
        done = rldp(site, url, "watch", claim.job_id)
        assert done.exit_code == 1
        assert "ended as failed" in done.stderr and "rldp jobs show" in done.stderr

    def test_a_service_that_does_not_answer_leaves_the_job_alone(
        self, site: Site, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(job_watch, "RETRY_SECONDS", 0.0)
        monkeypatch.setattr(job_watch, "TRIES", 2)
        claim = w.running_job(site.world)

        def cut(*_: object, **__: object) -> None:
            raise httpx.ConnectError("gone")

        monkeypatch.setattr(httpx, "stream", cut)
        done = rldp(site, url, "watch", claim.job_id, "--json")
        assert done.exit_code == 1 and f"rldp watch {claim.job_id}" in done.stderr

    @pytest.mark.parametrize("status", [429, 502, 503, 504])
    def test_a_service_that_is_away_for_now_is_asked_again(
        self, site: Site, url: str, monkeypatch: pytest.MonkeyPatch, status: int
    ) -> None:
        monkeypatch.setattr(job_watch, "RETRY_SECONDS", 0.0)
        claim = w.running_job(site.world)
        leases.fail_attempt(site.world.db, claim.job_id, claim.epoch, Reason.MODEL_REFUSED, True)
        asked: list[str] = []
        real = httpx.stream

        @contextmanager
        def first_away(method: str, address: str, **options: Any) -> Iterator[httpx.Response]:
            asked.append(address)
            if len(asked) < 3:
                yield httpx.Response(status, request=httpx.Request(method, address))
                return
            with real(method, address, **options) as answer:
                yield answer

        monkeypatch.setattr(httpx, "stream", first_away)
        done = rldp(site, url, "watch", claim.job_id)
        assert len(asked) == 3 and "ended as failed" in done.stderr

    def test_another_hospitals_job_is_not_there(self, site: Site, url: str) -> None:
        claim = w.running_job(site.world)
        done = rldp(site, url, "watch", claim.job_id, who="stranger")
        assert done.exit_code == 1 and done.stderr.startswith("404")
