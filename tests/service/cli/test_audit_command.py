"""`rldp audit`: what a person reads, and the exit codes a script reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dp_core.audit.saved import REPORT_FILE
from dp_core.model_files import model_digest
from dp_core.plan import AdapterPlan
from dp_core.planner import PlanRequest, make_run_plan
from service.cli import app
from service.demo import models
from tests.service.jobs import world as w
from tests.service.ledger import world as lw


def run(*arguments: object) -> tuple[int, str]:
    answer = CliRunner().invoke(app, ["audit", *map(str, arguments)])
    return answer.exit_code, answer.output


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """The report of a job that was audited again, the exit code and what was shown."""
    directory = tmp_path_factory.mktemp("audit")
    plan = make_run_plan(
        PlanRequest(
            target_epsilon="2",
            delta="1e-6",
            patients_public=100_000,
            batch_size=9000,
            steps_max=6,
            interval_steps=2,
            tokens_per_row=32,
            adapter=AdapterPlan(r=4, alpha=8),
            seed=11,
            controller_type="reference",
            base_model_digest=model_digest(models.path()),
            dataset_version="dsv_test",
        )
    )
    with lw.sqlite_database(directory) as db, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLDP_DATABASE_URL", db.url)
        world = lw.open_world(db)
        job = w.queue_job(world, run_plan=plan, model_dir=str(models.path()))
        code, text = run(job, "--data-dir", directory, "--out", directory)
        missing = run("ftjob-none", "--data-dir", directory)
    assert missing[0] == 2
    assert "No job ftjob-none" in missing[1]
    return next(directory.glob(f"audit-{job}-*/{REPORT_FILE}")), code, text


def test_a_job_is_attacked_again_without_reading_a_patient(first: tuple[Path, int, str]) -> None:
    """Its dataset version does not even exist."""
    _, code, text = first
    assert code == 0, text
    assert "5 steps, 1000 gradient canaries" in text
    assert "Verdict: INCONCLUSIVE" in text
    assert "control noise_off was not run" in text


def test_a_saved_report_is_recomputed(first: tuple[Path, int, str]) -> None:
    code, text = run("--report", first[0])
    assert code == 0, text
    assert "every figure and the verdict agree" in text


def test_a_prettier_figure_is_found(first: tuple[Path, int, str]) -> None:
    document = json.loads(first[0].read_text())
    document["report"]["selftest"]["lag1"] = 0.0
    wrong = first[0].with_name("wrong.json")
    wrong.write_text(json.dumps(document))
    code, text = run("--report", wrong)
    assert (code, "DIFFERS: the figures of the self-test" in text) == (1, True)


def test_what_cannot_be_read_is_said(first: tuple[Path, int, str], tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("{}")
    (tmp_path / REPORT_FILE).write_bytes(first[0].read_bytes())  # without its scores
    for path in (tmp_path / "empty.json", tmp_path / "absent.json", tmp_path / REPORT_FILE):
        assert run("--report", path)[0] == 2
    assert run()[0] == 2
    assert run("ftjob-x", "--report", first[0])[0] == 2
