"""A few of the seeded faults that `make test-histories` plays by the hundred, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.ledger import fsck
from tests.service.jobs import fault_runs

SEEDS = (0, 1)

pytestmark = [pytest.mark.ci, pytest.mark.timeout(600)]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_every_job_ends_once_and_nothing_is_drawn_unpaid(kind: str, tmp_path: Path) -> None:
    with fault_runs.open_site(kind, tmp_path) as site:
        jobs = [job for seed in SEEDS for job in fault_runs.play(site, seed)]
        with site.db.reading() as session:
            assert fsck.check_all(session) == []
        drawn = tmp_path / "executed" / jobs[0]
        written = drawn.read_text()
        for lie, told in ((written + "9 99 10\n", "not charged"), (written * 2, "drawn twice")):
            drawn.write_text(lie)
            with pytest.raises(AssertionError, match=told):  # so that it can fail at all
                fault_runs.check(site, jobs[0])
