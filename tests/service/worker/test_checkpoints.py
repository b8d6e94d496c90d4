"""Checkpoints on disk: sealed under the job's key, trusted only as committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dp_core.errors import CheckpointMismatch
from service.jobs import runtime
from service.jobs.keys import JobFiles
from service.sealing.errors import DiskFull
from service.worker.checkpoints import DirectoryCheckpoints
from service.worker.exit_codes import ExitCode, failure_of
from service.worker.runner import exit_code_of
from tests.service.full_disk import fill_disk
from tests.service.jobs import world as w
from tests.service.ledger import world as lw

FILES = {"state.json": b"qzcanaryxk", "policy/weights": b"qzcanaryxk" * 20_000}


@pytest.fixture
def store(world: lw.World, tmp_path: Path) -> DirectoryCheckpoints:
    _, version = w.add_dataset(world, tmp_path)
    claim = w.claimed_job(world, version=version, job_dir=str(tmp_path / "job"))
    return opened(world, tmp_path, claim.job_id, b"k" * 32)


def opened(world: lw.World, tmp_path: Path, job_id: str, secret: bytes) -> DirectoryCheckpoints:
    files = JobFiles(job_id=job_id, secret=secret)
    return DirectoryCheckpoints(
        world.db, job_id=job_id, epoch=1, job_dir=tmp_path / "job", files=files
    )


def test_come_back_and_lie_sealed(store: DirectoryCheckpoints, tmp_path: Path) -> None:
    store.save(step=4, chunk=1, files=FILES)
    assert store.load_latest() == FILES
    lying = [p for p in (tmp_path / "job").rglob("*") if p.is_file()]
    assert len(lying) == 2
    assert not [p for p in lying if b"qzcanaryxk" in p.read_bytes()]
    assert {p.stat().st_mode & 0o777 for p in lying} == {0o600}


def test_files_of_another_step_or_key_are_refused(
    world: lw.World, store: DirectoryCheckpoints, tmp_path: Path
) -> None:
    for step in (4, 8):
        store.save(step=step, chunk=step // 4, files=FILES)
    root = tmp_path / "job" / "attempt-1"
    other = opened(world, tmp_path, store._job_id, b"x" * 32)
    with pytest.raises(CheckpointMismatch):
        other.load_latest()
    (root / "step-4" / "state.json").replace(root / "step-8" / "state.json")
    with pytest.raises(CheckpointMismatch):  # the same content, sealed for another place
        store.load_latest()


def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(
    world: lw.World,
    store: DirectoryCheckpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store.save(step=4, chunk=1, files=FILES)
    with monkeypatch.context() as patch:
        fill_disk(patch, after_bytes=1000)
        with pytest.raises(DiskFull) as raised:
            store.save(step=8, chunk=2, files=FILES)
    code = exit_code_of(raised.value)
    assert code is ExitCode.DISK_FULL
    reason, permanent = failure_of(code)
    assert (reason.value, permanent) == ("disk_full", False)
    row = runtime.latest_checkpoint(world.db, store._job_id)
    assert row is not None and row.step == 4
    assert store.load_latest() == FILES
    store.save(step=8, chunk=2, files=FILES)  # room again: nothing half-written is in the way
    assert store.load_latest() == FILES
