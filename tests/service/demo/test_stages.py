"""The demonstration as a client of the real API: ground, estimate, job, refusals, errors."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from rich.console import Console

import service.models
from dp_core.accounting import limit_pico, total_pico
from service.app import create_app
from service.bootstrap import bootstrap
from service.database import Database
from service.demo import stages
from service.demo.budget import grant_for
from service.demo.client import Access, ApiProblem, DemoClient, DemoError, read_keys, signing_text
from service.demo.refusals import balances, create_job, show_refusals, show_second_job_refused
from service.demo.screens import HeldOutLoss, Screen
from service.demo.stages import DemoOptions, Prepared
from service.ledger import approvals
from service.settings import Settings

STEPS = 16  # keeps the calibration short


@pytest.fixture
def client(tmp_path: Path) -> Iterator[DemoClient]:
    """The API without a worker: jobs stay queued."""
    settings = Settings(data_dir=tmp_path / "data")
    settings.data_dir.mkdir()
    database = Database(settings.resolved_database_url)
    service.models.metadata.create_all(database.engine)
    first = bootstrap(database, settings)
    assert first is not None
    names = ("admin", "submitter", "steward-1", "steward-2", "auditor")
    keys = {name.replace("-", "_"): first.key_of(name) for name in names}
    access = Access(url="http://127.0.0.1", keys=keys, signing_dir=settings.keys_dir)
    with TestClient(create_app(settings, database), base_url=access.url) as http:
        yield DemoClient(access, http=http)  # type: ignore[arg-type]  # speaks the same language
    database.dispose()


@pytest.fixture
def screen() -> Screen:
    return Screen(Console(file=io.StringIO(), width=200))


def said(screen: Screen) -> str:
    assert isinstance(screen.console.file, io.StringIO)
    return screen.console.file.getvalue()


@pytest.fixture
def options(tmp_path: Path) -> DemoOptions:
    rows = [{"patient_id": f"p{n}", "text": f"Note {n}."} for n in range(300)]
    data = tmp_path / "notes.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DemoOptions(
        data=data, epsilon="2", steps=STEPS, work_dir=tmp_path, url=None, keys=None,
        signing_keys=None, patients=300, keep=False, show_refusals=True,
    )  # fmt: skip


class TestThroughTheApi:
    def test_from_records_to_a_queued_job_and_its_refusals(
        self, client: DemoClient, screen: Screen, options: DemoOptions, tmp_path: Path
    ) -> None:
        prepared = stages.prepare_records(options, screen, tmp_path)
        ground = stages.open_ground(client, options, screen, prepared, tmp_path)
        request = stages.job_request(options, ground.file)
        estimate = client.call("submitter", "POST", "/fine_tuning/jobs/estimate", json=request)
        assert estimate["feasible"]
        screen.estimate(estimate, ground.limit)
        before = balances(client, ground.population)
        show_refusals(
            client, screen, population=ground.population, dataset=ground.dataset,
            request=request, work_dir=tmp_path,
        )  # fmt: skip
        assert balances(client, ground.population) == before
        job = create_job(client, request)
        held = balances(client, ground.population)["train"][0]
        assert job["state"] == "queued"
        assert held == estimate["reserve_pico"] == job["privacy"]["reserved_pico"]
        show_second_job_refused(client, screen, population=ground.population, request=request)
        text = said(screen)
        for code in ("unknown_field", "privacy_budget_exceeded", "json_invalid"):
            assert code in text

    def test_the_declared_size_never_passes_the_files(
        self, options: DemoOptions, screen: Screen, tmp_path: Path
    ) -> None:
        with pytest.raises(DemoError, match="fewer patients than declared"):
            stages.prepare_records(replace(options, patients=301), screen, tmp_path)

    def test_without_a_declared_size_the_run_says_where_its_number_is_from(
        self, options: DemoOptions, screen: Screen, tmp_path: Path
    ) -> None:
        rows = "".join(
            json.dumps({"patient_id": f"p{n}", "text": "Note."}) + "\n" for n in range(287)
        )
        assert options.data is not None
        options.data.write_text(rows, encoding="utf-8")
        prepared = stages.prepare_records(replace(options, patients=None), screen, tmp_path)
        assert prepared.patients_public == 200
        assert "rounded down" in " ".join(said(screen).split())

    def test_an_error_carries_the_documented_code(self, client: DemoClient) -> None:
        with pytest.raises(ApiProblem) as caught:
            client.call("submitter", "GET", "/fine_tuning/jobs/ftjob-none")
        assert (caught.value.status, caught.value.code) == (404, "not_found")


class TestGrant:
    def test_the_limit_pays_for_the_job_and_not_for_much_more(self, options: DemoOptions) -> None:
        prepared = Prepared(
            path=Path("x"), source=stages.SYNTHETIC, patients_public=6000, basis="synthetic"
        )
        plan = stages.plan_of(options, prepared)
        grant = grant_for(plan)
        limit = limit_pico(grant.epsilon, grant.delta, grant.alpha_star)
        price = total_pico(plan.training_events(), grant.alpha_star)
        assert price <= limit < 2 * price


class TestSigning:
    def test_the_client_signs_what_the_ledger_checks(self) -> None:
        ours = signing_text(
            origin="ledger.example/tn_a/2026", leaf_hex="ab" * 32, decision="approve"
        )
        theirs = approvals.signing_text(
            origin="ledger.example/tn_a/2026", leaf="ab" * 32, decision="approve"
        )
        assert ours == theirs


class TestKeys:
    def test_a_missing_keys_file_names_the_remedy(self, tmp_path: Path) -> None:
        with pytest.raises(DemoError, match="--keys"):
            read_keys(tmp_path / "absent.json")

    def test_a_file_that_lacks_a_role_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "keys.json").write_text('{"admin": "k"}')
        with pytest.raises(DemoError, match="steward_2"):
            read_keys(tmp_path / "keys.json")


class TestScreen:
    def test_perplexity_shows_the_noise(self) -> None:
        loss = HeldOutLoss(step=0, value=4.0, std=0.1)
        assert loss.perplexity() == "54.6 (49.4 to 60.3)"

    def test_a_pipe_gets_a_line_for_each_new_loss(self, screen: Screen) -> None:
        job = {
            "state": "running",
            "progress": {"step": 8, "steps_max": 16},
            "privacy": {
                "spent_pico": "1", "reserved_pico": "2", "target_epsilon": "8",
                "epsilon_so_far": {"value": "2.5", "guarantee": False},
            },
        }  # fmt: skip
        with screen.progress(16) as bar:
            for value in (4.0, 4.0, 3.5):
                bar.show(job, [HeldOutLoss(step=8, value=value, std=0.1)])
        lines = [line for line in said(screen).splitlines() if "step 8" in line]
        assert len(lines) == 2
        assert "charged 50 %, ε 2.5 of 8" in lines[0]
