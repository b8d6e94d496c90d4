"""The runner of the long targets: resumes, shares out, and names the seed that failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.service.ledger.long_histories import main, pieces_of, play_rules

Run = Callable[..., int]


class Played:
    """Stands in for the play; remembers what it was given and fails on chosen seeds."""

    def __init__(self, *bad: int) -> None:
        self.bad, self.seeds = set(bad), list[range]()

    def __call__(self, seeds: range, folder: Path) -> int:
        assert folder.is_dir()
        self.seeds.append(seeds)
        if self.bad & set(seeds):
            raise AssertionError("a unit was lost")
        return len(seeds)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def call(played: Played, seeds: str, *more: str) -> int:
        arguments = ["--seeds", seeds, "--folder", str(tmp_path), *more]
        return main(arguments, play=played)

    return call


def test_a_range_is_played_in_pieces_and_only_once(run: Run) -> None:
    played = Played()
    assert run(played, "500:560") == 0
    assert run(played, "490:570") == 0
    assert played.seeds == [
        *(range(500, 525), range(525, 550), range(550, 560)),
        *(range(490, 500), range(560, 570)),
    ]


def test_kinds_and_databases_have_records_of_their_own(run: Run) -> None:
    played = Played()
    for more in ([], ["--database", "postgresql"], ["--kind", "rules"]):
        assert run(played, "1:2", *more) == 0
    assert len(played.seeds) == 3


def test_a_failed_seed_is_found_in_its_piece_and_played_again(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Played(7), "0:50") == 1
    told = capsys.readouterr().out
    assert "AssertionError: a unit was lost" in told
    assert "make test-histories SEEDS=7:8 HISTORIES_ARGS='--kind simulation" in told
    mended = Played()
    assert run(mended, "0:50") == 0
    assert mended.seeds == [range(25)]  # the other piece had passed


def test_seeds_that_fail_only_together_are_told_as_a_range(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    class Together(Played):
        def __call__(self, seeds: range, folder: Path) -> int:
            assert len(seeds) == 1, "the whole log does not verify"
            return 1

    assert run(Together(), "0:3") == 1
    assert "SEEDS=0:3 " in capsys.readouterr().out


def test_out_of_time_is_no_success(run: Run) -> None:
    played = Played()
    assert run(played, "0:50", "--minutes", "-1") == 3
    assert played.seeds == []


@pytest.mark.parametrize("seeds", ["7", "9:9", "9:3", "-1:4", "a:b"])
def test_a_range_that_is_none_is_refused(run: Run, seeds: str) -> None:
    with pytest.raises(SystemExit):
        run(Played(), seeds)


def test_pieces_leave_out_what_passed() -> None:
    assert pieces_of(range(10), {0, 4, 5}, 3) == [range(1, 4), range(6, 9), range(9, 10)]


def test_a_seed_of_the_rules_draws_the_same_histories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.service.ledger.long_histories.EXAMPLES", 3)
    monkeypatch.setattr("tests.service.ledger.long_histories.RULES_EACH", 6)
    first, again = (play_rules(range(5, 6), tmp_path) for _ in range(2))
    assert first == again > 0


def test_the_record_names_what_was_made(run: Run, tmp_path: Path) -> None:
    assert run(Played(), "3:5") == 0
    (path,) = tmp_path.glob("simulation-sqlite-*.jsonl")
    assert json.loads(path.read_text()) == {"first": 3, "end": 5, "made": 2}
