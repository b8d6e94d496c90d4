"""Pictures of an audit: drawn from report and scores alone, and only where they agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dp_core.audit.errors import AuditInvalid
from dp_core.audit.saved import RUN_REPORT_FILE, RUN_SCORES_FILE, SavedAudit, attack_scores
from service.cli import app, audit_plots
from tests.dp_core.audit.long_runs import SeededJob, blocks_of

PICTURES = ["bounds.png", "roc.png", "scores.png"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report and scores of a finished job of the real engine."""
    folder = tmp_path_factory.mktemp("plots")
    found = SeededJob(blocks_of(folder), 1).train()
    (folder / RUN_REPORT_FILE).write_bytes(found.saved.to_json())
    (folder / RUN_SCORES_FILE).write_bytes(found.scores)
    return folder


def run(*arguments: object) -> tuple[int, str]:
    answer = CliRunner().invoke(app, ["audit", *map(str, arguments)])
    return answer.exit_code, answer.output


def test_three_pictures_are_drawn_of_a_report_that_agrees(files: Path, tmp_path: Path) -> None:
    code, text = run("--report", files / RUN_REPORT_FILE, "--plots", tmp_path / "pictures")
    assert code == 0, text
    made = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in made] == PICTURES
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in made)
    assert text.count("Drawn: ") == 3


def test_nothing_is_drawn_of_changed_scores(files: Path, tmp_path: Path) -> None:
    changed = tmp_path / RUN_SCORES_FILE
    changed.write_bytes((files / RUN_SCORES_FILE).read_bytes() + b"\0")
    arguments = ("--report", files / RUN_REPORT_FILE, "--scores", changed)
    code, text = run(*arguments, "--plots", tmp_path / "pictures")
    assert (code, "DIFFERS" in text) == (1, True)
    assert not (tmp_path / "pictures").exists()


def test_pictures_need_a_report_and_the_library(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "give --report" in run("--controls", "--plots", tmp_path)[1]
    monkeypatch.setattr(audit_plots, "is_available", lambda: False)
    code, text = run("--report", files / RUN_REPORT_FILE, "--plots", tmp_path)
    assert code == 2 and "rldp[bench]" in text


def test_what_is_drawn_is_what_the_report_says(files: Path) -> None:
    """The area below the drawn curve is the report's AUC."""
    saved = SavedAudit.from_json((files / RUN_REPORT_FILE).read_bytes())
    content = (files / RUN_SCORES_FILE).read_bytes()
    values, is_member = attack_scores(saved, content)
    assert saved.report.roc is not None and saved.report.canary is not None
    assert int(is_member.sum()) == saved.report.canary.n_included
    false, true = audit_plots.roc_points(values, is_member)
    assert np.trapezoid(true, false) == pytest.approx(saved.report.roc.auc, abs=1e-9)
    with pytest.raises(AuditInvalid, match="scores"):
        attack_scores(saved, content + b"\0")


def test_ties_move_the_curve_once() -> None:
    false, true = audit_plots.roc_points(
        np.array([2.0, 1.0, 1.0, 0.0]), np.array([True, True, False, False])
    )
    np.testing.assert_array_equal(false, [0, 0, 0.5, 1])
    np.testing.assert_array_equal(true, [0, 0.5, 1, 1])
