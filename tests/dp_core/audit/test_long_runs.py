"""The command behind `make test-alarms`: it repeats itself, goes on, and can ring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dp_core.noise import SeededSource
from tests.dp_core.audit import long_runs
from tests.dp_core.audit.long_runs import RUNS, blocks_of, main, played


class NoiseTimes09(SeededSource):
    def _gaussian(self, length: int) -> torch.Tensor:
        return super()._gaussian(length) * 0.9


def test_a_seed_gives_the_same_figures_again(tmp_path: Path) -> None:
    blocks = blocks_of(tmp_path)
    first, again = played(blocks, 1), played(blocks, 1)
    assert first == again
    assert (first["alarm"], first["epsilon"][:1]) == (False, "2")


def test_too_little_noise_is_an_alarm(tmp_path: Path) -> None:
    """What the thousand jobs would have shown, had the mechanism been wrong."""
    row = played(blocks_of(tmp_path), 3, NoiseTimes09)
    assert row["alarm"]
    assert row["self_test_min_p"] < 1e-9


def test_a_range_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def fake(blocks: object, seed: int) -> dict[str, object]:
        seen.append(seed)
        return {
            "seed": seed, "alarm": seed == 4, "verdict": "FAIL" if seed == 4 else "PASS",
            "reasons": [], "self_test_min_p": 1.0, "steinke_p": 1.0, "fdp_rejects": False,
            "fdp_bound": 0.0, "auc": 0.5, "auc_ceiling": 0.6,
        }  # fmt: skip

    monkeypatch.setattr(long_runs, "played", fake)
    folder = ["--folder", str(tmp_path / "runs")]
    assert main(["--seeds", "0:9", "--minutes", "-1", *folder]) == 3
    assert main(["--seeds", "0:3", *folder]) == 0
    assert main(["--seeds", "0:5", *folder]) == 1
    assert seen == [0, 1, 2, 3, 4]
    (path,) = (tmp_path / "runs").iterdir()
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == seen
    assert "5 correct jobs: 1 alarms" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(0)  # a quarter of an hour of one core; longer on a busy machine
def test_no_alarm_in_a_thousand_correct_jobs() -> None:
    """At the gate's own levels. With a true rate of .3 % this would be seen 95 times in 100."""
    assert main(["--seeds", f"0:{RUNS}"]) == 0
