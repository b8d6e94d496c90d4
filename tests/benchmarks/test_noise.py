"""What noise costs, and that a step does not wait for it (privacy.md section 15)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch

from dp_core.noise import NoiseSource, OsEntropySource, TorchGeneratorSource
from dp_core.ports import ChunkPermit

pytestmark = pytest.mark.bench

COORDINATES = 1_000_000
RUNS = 5
OS_ENTROPY_SECONDS_MAX = 0.5  # CPU seconds per million coordinates
INTEGER_GRID_SECONDS_MAX = 1.0
WAIT_SHARE_MAX = 0.1  # of the time that drawing takes


def _permit(steps: int) -> ChunkPermit:
    return ChunkPermit(attempt=1, chunk_index=0, first_step=0, steps=steps, reference="bench#0")


def _cpu_seconds(work: Callable[[], object]) -> float:
    """Median process time: every thread counts."""

    def once() -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    once()
    return statistics.median(once() for _ in range(RUNS))


@pytest.mark.parametrize(
    ("source", "draw", "bar"),
    [
        (OsEntropySource, "draw", OS_ENTROPY_SECONDS_MAX),
        (OsEntropySource, "draw_integers", INTEGER_GRID_SECONDS_MAX),
        (TorchGeneratorSource, "draw", OS_ENTROPY_SECONDS_MAX / 5),
    ],
    ids=["os_entropy", "integer_grid", "torch_generator"],
)
def test_a_million_coordinates_cost_at_most(
    source: type[NoiseSource], draw: str, bar: float
) -> None:
    seconds = _cpu_seconds(lambda: getattr(source(), draw)(_permit(1), COORDINATES))
    print(f"\n{source.name} {draw}: {seconds:.3f} CPU s per million coordinates, bar {bar}")
    assert seconds <= bar


@pytest.mark.parametrize("draw", ["draw", "draw_integers"])
def test_a_step_longer_than_its_noise_does_not_wait_for_it(draw: str) -> None:
    """The step is a matrix product on one thread, so that it leaves a core for the noise."""
    source, permit = OsEntropySource(), _permit(RUNS + 1)
    matrix = torch.randn(500, 500)

    def wall_seconds() -> float:
        started = time.perf_counter()
        getattr(source, draw)(permit, COORDINATES)
        return time.perf_counter() - started

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = wall_seconds()
        waits = []
        for _ in range(RUNS):
            until = time.perf_counter() + 3 * alone
            while time.perf_counter() < until:
                matrix @ matrix
            waits.append(wall_seconds())
    finally:
        torch.set_num_threads(threads)
    waited = statistics.median(waits)
    print(f"\n{draw}: {alone:.3f} s alone, {waited:.4f} s of waiting beside a step")
    assert waited <= WAIT_SHARE_MAX * alone
