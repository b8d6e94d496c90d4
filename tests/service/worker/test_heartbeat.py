"""A worker's sign of life, its goodbye, its device, and that one that drains takes nothing."""

from __future__ import annotations

import subprocess
import threading

import pytest

from service.fleet import registry
from service.fleet.models import Worker
from service.settings import Settings
from service.worker import device
from tests.service.jobs import world as w
from tests.service.ledger import world as lw
from tests.service.worker.test_doorbell import slot
from tests.service.worker.test_supervisor import wait_for


def row(world: lw.World, worker_id: str = "wk_a") -> Worker | None:
    with world.db.reading() as session:
        return session.get(Worker, worker_id)


def test_it_joins_beats_and_says_goodbye(world: lw.World, settings: Settings) -> None:
    room = slot(world, settings.model_copy(update={"lease_seconds": 4}))
    thread = threading.Thread(target=room.beat_forever)
    thread.start()
    wait_for(lambda: row(world) is not None)
    first = row(world)
    assert first is not None and (first.beat_seconds, first.left_at) == (1, None)
    wait_for(lambda: (now := row(world)) is not None and now.heard_at > first.heard_at)
    room.leave(wait_seconds=5)
    thread.join(20)
    last = row(world)
    assert last is not None and last.left_at is not None and not thread.is_alive()


def test_one_that_drains_takes_no_job(world: lw.World, settings: Settings) -> None:
    registry.join(world.db, "wk_a", device="CPU", version="1", beat_seconds=60)
    with world.db.transaction() as session:
        assert registry.drain(session, "wk_a") is not None
    job = w.queue_job(world)
    assert slot(world, settings).work(job) == 0
    assert w.state(world.db, job) == "queued"


def test_nobody_drains_who_has_left(world: lw.World) -> None:
    registry.join(world.db, "wk_a", device="CPU", version="1", beat_seconds=60)
    registry.leave(world.db, "wk_a")
    with world.db.transaction() as session:
        assert registry.drain(session, "wk_a") is None
        assert registry.drain(session, "wk_none") is None


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("NVIDIA H100 80GB HBM3\n", "NVIDIA H100 80GB HBM3"),
        ("NVIDIA A100\nNVIDIA A100\n", "2 x NVIDIA A100"),
        ("", "CPU"),
    ],
)
def test_a_device_has_its_drivers_name(
    monkeypatch: pytest.MonkeyPatch, told: str, name: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    done = subprocess.CompletedProcess((), 0, stdout=told)
    monkeypatch.setattr(device.subprocess, "run", lambda *_, **__: done)
    assert device.device_name().startswith(name)


def test_without_a_driver_or_a_visible_device_it_is_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device.device_name().startswith("CPU, ")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(device.subprocess, "run", missing)
    assert device.device_name().startswith("CPU, ")
