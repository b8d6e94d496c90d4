"""A job that no worker can hold is refused with advice, before anything is reserved."""

from __future__ import annotations

from pathlib import Path

import pytest

from dp_core.plan import AdapterPlan
from service.jobs import service
from service.jobs.errors import DeviceTooSmall
from service.jobs.fit import require_fit
from service.settings import Settings
from tests.dp_core.test_memory import shape
from tests.service.jobs import world as w
from tests.service.jobs.test_service import create, request, rows, subject_of
from tests.service.ledger import world as lw

ADAPTER = AdapterPlan(r=16, alpha=32)


def settings(tmp_path: Path, **values: object) -> Settings:
    return Settings(data_dir=tmp_path, **values)  # type: ignore[arg-type]


def test_nothing_is_refused_for_a_device_that_nobody_described(tmp_path: Path) -> None:
    require_fit(settings(tmp_path), shape("8b"), ADAPTER, 4096)


def test_nothing_is_refused_for_a_model_of_unknown_shape(tmp_path: Path) -> None:
    require_fit(settings(tmp_path, device_memory_gib=1), None, ADAPTER, 4096)


def test_a_model_that_fits_passes(tmp_path: Path) -> None:
    told = settings(
        tmp_path, device_memory_gib=12, base_dtype="4bit", checkpointing="non_reentrant"
    )
    require_fit(told, shape("8b"), ADAPTER, 256)


def test_the_refusal_says_what_would_help(tmp_path: Path) -> None:
    told = settings(tmp_path, device_memory_gib=16, base_dtype="bfloat16")
    with pytest.raises(DeviceTooSmall) as refused:
        require_fit(told, shape("8b"), ADAPTER, 512)
    assert refused.value.needed_gib > 16
    assert refused.value.remedy == (
        "RLDP_CHECKPOINTING=non_reentrant, RLDP_MICROBATCH_PATIENTS=1, RLDP_BASE_DTYPE=4bit"
    )
    assert "smaller model" in str(refused.value)
    assert (refused.value.status, refused.value.code) == (422, "plan_infeasible")


def test_no_remedy_is_promised_where_there_is_none(tmp_path: Path) -> None:
    told = settings(tmp_path, device_memory_gib=2)
    with pytest.raises(DeviceTooSmall) as refused:
        require_fit(told, shape("8b"), ADAPTER, 512)
    assert refused.value.remedy == ""
    assert "operator" not in str(refused.value)


def test_creation_reserves_nothing_and_the_estimate_answers(tmp_path: Path) -> None:
    small = settings(tmp_path / "data", device_memory_gib=0.01)
    with lw.sqlite_database(tmp_path) as db:
        world = lw.open_world(db)
        body = request(w.add_dataset(world, tmp_path)[0])
        before = rows(db)
        with pytest.raises(DeviceTooSmall):
            create(world, small, body)
        assert rows(db) == before
        with db.reading() as session:
            told = service.estimate_job(session, small, subject_of(world), body)
    assert told["feasible"] is False
    assert "smaller_model" in told["remedies"]
    assert "0.0" in told["reason"] and "GiB" in told["reason"]
