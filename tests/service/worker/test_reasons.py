"""What stops an attempt before it trains has a reason of its own, and may pass."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dp_core.plan import Performance, RunPlan
from service.jobs import leases, runtime
from service.jobs.keys import load_keys
from service.jobs.lifecycle import MESSAGES, State
from service.sealing.errors import DiskFull, KeyUnavailable, SealError
from service.sealing.files import StoredFile, disk_full_is_told
from service.sealing.keyring import Keyring
from service.sealing.master import MasterKeys
from service.worker import runner
from service.worker.exit_codes import ExitCode, failure_of
from service.worker.inputs import Inputs, ModelMissing, adapted_model
from tests.service.jobs import world as w
from tests.service.ledger import world as lw


@pytest.fixture
def work(world: lw.World, tmp_path: Path) -> runtime.Work:
    _, version = w.add_dataset(world, tmp_path)
    claim = w.claimed_job(world, version=version, job_dir=str(tmp_path / "job"))
    return runtime.load_work(world.db, claim.job_id, claim.epoch)


def ended(world: lw.World, work: runtime.Work, error: BaseException) -> tuple[str, State | None]:
    """Reason and state of the job after an attempt that this error ended."""
    code = runner.exit_code_of(error)
    assert code is not None
    reason, permanent = failure_of(code)
    state = leases.fail_attempt(world.db, work.job_id, work.epoch, reason, permanent)
    assert MESSAGES[reason].endswith(".")
    return reason.value, state


def test_a_model_that_is_not_there(world: lw.World, work: runtime.Work) -> None:
    gone = Inputs(
        plan=RunPlan.from_dict(work.plan),
        model_dir=Path(work.job_dir) / "no-model",
        rows=StoredFile(path=Path(work.job_dir) / "rows.jsonl", key=None),
        dataset_sha256=work.dataset_sha256,
        split_key=work.split_key,
    )
    with pytest.raises(ModelMissing) as raised:
        adapted_model(gone, Performance())
    assert ended(world, work, raised.value) == ("model_missing", State.RECOVERING)


def test_a_worker_without_the_data_key(world: lw.World, work: runtime.Work, tmp_path: Path) -> None:
    keys = Keyring(MasterKeys(tmp_path / "no-keys", make=False))
    with pytest.raises(KeyUnavailable) as raised:
        load_keys(world.db, keys, work.job_id, work.epoch)
    assert ended(world, work, raised.value) == ("key_unavailable", State.RECOVERING)


def test_a_full_disk(world: lw.World, work: runtime.Work) -> None:
    with pytest.raises(DiskFull) as raised, disk_full_is_told():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert ended(world, work, raised.value) == ("disk_full", State.RECOVERING)


def test_rows_that_are_gone_end_the_job(world: lw.World, work: runtime.Work) -> None:
    keys = Keyring(MasterKeys(Path(work.job_dir) / "keys", make=True))
    opened = load_keys(world.db, keys, work.job_id, work.epoch)
    next(Path(work.job_dir).parent.glob("*.jsonl")).unlink()
    with pytest.raises(SealError) as raised:
        opened.rows.open()
    assert runner.exit_code_of(raised.value) is ExitCode.DATA_UNREADABLE
    assert ended(world, work, raised.value) == ("data_unreadable", State.FAILED)
