"""torchrun under the worker: one code for many ranks, and no rank outlives its attempt."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.jobs.leases import Claim
from service.settings import Settings
from service.worker import processes
from service.worker.exit_codes import ExitCode, failure_of, word_of_ranks
from service.worker.supervisor import runner_command
from tests.service.worker.test_supervisor import is_alive, wait_for

CHILD = str(Path(__file__).with_name("rank_child.py"))
PROGRAM = textwrap.dedent(
    """
    import os, sys
    from service.settings import Settings
    from service.worker.rank_agent import run_ranks
    settings = Settings(processes_per_job=2)
    os._exit(run_ranks(settings, [sys.executable, *sys.argv[1:]]))
    """
)


class TestWordOfRanks:
    @pytest.mark.parametrize(
        ("codes", "word"),
        [
            ([ExitCode.PAUSED], ExitCode.PAUSED),
            ([ExitCode.PAUSED, ExitCode.RANK_LOST], ExitCode.PAUSED),
            ([ExitCode.RANK_LOST, ExitCode.OUT_OF_MEMORY], ExitCode.OUT_OF_MEMORY),
            ([ExitCode.RANK_LOST, -9], ExitCode.RANK_KILLED),
            ([-9, ExitCode.CANCELLED], ExitCode.RANK_KILLED),  # told to stop because of it
            ([ExitCode.FENCED_OUT, -9], ExitCode.FENCED_OUT),  # deaf, hence killed after it
            ([1, ExitCode.RANK_LOST], 1),
            ([1, -9], ExitCode.RANK_KILLED),
            ([ExitCode.RANK_LOST, ExitCode.RANK_LOST], ExitCode.RANK_LOST),
            ([], ExitCode.RANK_LOST),
        ],
    )
    def test_the_cause_speaks_and_not_its_consequences(self, codes: list[int], word: int) -> None:
        assert word_of_ranks(codes) == word

    def test_a_lost_or_killed_rank_is_the_machine_and_costs_no_job_its_second_try(self) -> None:
        assert failure_of(ExitCode.RANK_KILLED) == failure_of(-9)
        assert failure_of(ExitCode.RANK_LOST) == ("rank_lost", False)


class TestCommand:
    def test_one_process_is_started_without_torchrun(self) -> None:
        claim = Claim(job_id="ftjob-1", epoch=3)
        assert "service.worker.runner" in runner_command(claim, 1)
        several = runner_command(claim, 2)
        assert several[1:] == ["-m", "service.worker.rank_agent", "--job", "ftjob-1",
                               "--epoch", "3"]  # fmt: skip


class TestSettings:
    @pytest.mark.parametrize(
        "values",
        [
            {"hosts_per_job": 2},  # where do they meet?
            {"hosts_per_job": 2, "host_rank": 2, "rendezvous": "first:29400"},
            {"host_rank": 1},
            {"hosts_per_job": 2, "rendezvous": "http://first:29400"},
        ],
    )
    def test_hosts_that_could_not_meet_are_refused_at_the_start(
        self, values: dict[str, Any]
    ) -> None:
        with pytest.raises(ValidationError):
            Settings(**values)

    def test_ranks_are_counted_over_all_hosts(self) -> None:
        settings = Settings(processes_per_job=4, hosts_per_job=2, rendezvous="first:29400")
        assert settings.ranks_per_job == 8


class Agent:
    """A running agent with two stand-in ranks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = processes.start_tied(
            [sys.executable, "-c", PROGRAM, CHILD, str(folder)],
            environment=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
            quiet=False,
        )
        pids = [folder / f"pid-{rank}" for rank in range(2)]
        wait_for_long(lambda: all(path.exists() and path.read_text() for path in pids))
        self.ranks = [int(path.read_text()) for path in pids]

    def end(self, rank: int, code: int) -> None:
        partial = self.folder / "partial"
        partial.write_text(str(code))
        partial.rename(self.folder / f"end-{rank}")

    def are_gone(self) -> bool:
        return not any(is_alive(pid) for pid in self.ranks)


def wait_for_long(fact: Callable[[], bool]) -> None:
    for _ in range(9):
        try:
            wait_for(fact)
            return
        except AssertionError:
            continue
    wait_for(fact)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    started = Agent(tmp_path)
    yield started
    assert processes.kill_group(started.process)


@pytest.mark.ci
class TestRanks:
    def test_rank_zero_speaks_for_the_attempt(self, agent: Agent) -> None:
        agent.end(1, 0)
        agent.end(0, ExitCode.PAUSED)
        assert agent.process.wait(120) == ExitCode.PAUSED

    def test_a_killed_rank_ends_the_others(self, agent: Agent) -> None:
        os.kill(agent.ranks[1], signal.SIGKILL)
        assert agent.process.wait(120) == ExitCode.RANK_KILLED
        assert agent.are_gone()
        assert (agent.folder / "told").exists(), "rank 0 was asked before it was made to"

    def test_a_stop_reaches_rank_zero_and_takes_all_with_it(self, agent: Agent) -> None:
        assert processes.stop_group(agent.process, grace_seconds=60)
        assert agent.are_gone()
        assert (agent.folder / "told").exists()

    def test_a_killed_agent_leaves_no_rank(self, agent: Agent) -> None:
        """No code of it can clean up: the kernel's death signal does, in other sessions too."""
        os.kill(agent.process.pid, signal.SIGKILL)
        agent.process.wait(60)
        wait_for_long(agent.are_gone)

    def test_a_group_is_not_empty_while_a_rank_lives(self, agent: Agent) -> None:
        for rank in agent.ranks:
            assert os.getpgid(rank) == rank, "torchrun gives a rank a session of its own"
        assert not processes.group_is_empty(agent.process.pid)
        assert processes.kill_group(agent.process)
        assert agent.are_gone()
