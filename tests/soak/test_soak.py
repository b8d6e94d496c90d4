"""That the soak's judge sees a leak, and ten minutes of the soak itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.run import run
from tests.soak.watch import Sample, files_below, growths, of_part

LEAKY = """
import sys
kept = []
for line in sys.stdin:
    kept.append(bytearray(b"x" * (1 << 20)))
    kept.append(open("/dev/null"))
    print("kept", flush=True)
"""


def series(name: str, values: list[float]) -> list[Sample]:
    return [Sample(at=float(at), figures={name: value}) for at, value in enumerate(values)]


class TestJudge:
    def test_a_steady_leak_is_one(self) -> None:
        (found,) = growths(series("api-1 memory MiB", [100 + n for n in range(60)]))
        assert found.leaks and (found.before, found.after) == (129.5, 149.5)

    def test_a_cache_that_fills_once_is_none(self) -> None:
        values = [100.0 + 10 * min(n, 15) for n in range(60)]
        assert not growths(series("api-1 memory MiB", values))[0].leaks

    def test_a_peak_now_and_then_is_none(self) -> None:
        values = [100.0 + (400 if n % 7 == 0 else 0) for n in range(60)]
        assert not growths(series("api-1 memory MiB", values))[0].leaks

    @pytest.mark.parametrize("name", ["postgres connections", "api-1 handles", "temporary files"])
    def test_one_in_four_requests_that_keeps_a_handle_is_seen(self, name: str) -> None:
        assert growths(series(name, [20 + n // 4 for n in range(60)]))[0].leaks

    def test_a_part_that_was_started_anew_is_left_out(self) -> None:
        samples = series("api-1 memory MiB", [100.0] * 60)
        samples[30] = Sample(at=30.0, figures={})
        assert growths(samples) == []

    def test_too_few_samples_are_no_answer(self) -> None:
        with pytest.raises(ValueError, match="too few"):
            growths(series("api-1 memory MiB", [1.0] * 6))


def test_memory_and_handles_of_a_real_process_are_seen_to_grow() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LEAKY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    samples = []
    for at in range(60):
        process.stdin.write("more\n")
        process.stdin.flush()
        assert process.stdout.readline() == "kept\n"
        samples.append(Sample(at=float(at), figures=of_part("child", process.pid)))
    process.communicate()
    found = {growth.name: growth.leaks for growth in growths(samples)}
    assert found == {"child memory MiB": True, "child handles": True, "child threads": False}
    assert of_part("child", process.pid) == {}


def test_files_and_folders_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("one", "a/two", "a/b/three"):
        (tmp_path / name).touch()
    assert files_below(tmp_path) == 5


@pytest.mark.ci
@pytest.mark.timeout(1500)
def test_ten_minutes_of_mixed_load_leak_nothing_and_lose_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", os.environ.get("TMPDIR", "/tmp"))  # the run sets its own
    is_well = run(minutes=10, out=None)
    assert is_well, capsys.readouterr().out
