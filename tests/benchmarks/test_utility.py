"""The utility benchmark's suite `ci` on real records: it runs, learns, and stays in its time."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from controller.benchmark.command import Request, bench_utility
from controller.benchmark.suites import CEILING, FLOOR
from service.demo import models

CPU_MINUTES_MAX = 6  # two cores for three minutes; a wall clock would measure the neighbours


@pytest.mark.ci
def test_both_arms_learn_under_privacy_and_less_than_without(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    request = Request(
        suite="ci", data=shared / "data", packaged_model=models.path(), out=tmp_path, jobs=2
    )
    assert bench_utility(request) == 0
    with capsys.disabled():
        print(
            f"\nsuite ci: {time.monotonic() - started:.0f} s\n{(tmp_path / 'table.md').read_text()}"
        )
    (cell,) = json.loads((tmp_path / "table.json").read_text())["cells"]
    found = {row["arm"]: row["perplexity"] for row in cell["rows"]}
    assert found[CEILING] < found["reference"] < 0.5 * found[FLOOR]
    assert found["flat"] < 0.8 * found[FLOOR]
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    seconds = sum(json.loads(line)["facts"]["seconds"] for line in lines)
    assert seconds < 60 * CPU_MINUTES_MAX
