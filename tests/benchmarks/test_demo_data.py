"""Ratios that must hold on any machine: memory does not grow with a file, prices are cached."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from dp_core.accounting import step_pico
from service.demo import patients, records

pytestmark = pytest.mark.bench

MEMORY_RATIO_MAX = 1.5
CACHE_SPEEDUP_MIN = 100


def _peak_bytes(path: Path) -> int:
    tracemalloc.start()
    try:
        for _ in records.records(path):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_reading_records_takes_the_same_memory_for_ten_times_the_patients(tmp_path: Path) -> None:
    peaks = []
    for count in (300, 3000):
        path = tmp_path / f"{count}.jsonl"
        patients.write_jsonl(patients.records("private", count), path)
        peaks.append(_peak_bytes(path))
    print(f"\npeak memory {peaks[0]} and {peaks[1]} bytes, ratio {peaks[1] / peaks[0]:.2f}")
    assert peaks[1] < MEMORY_RATIO_MAX * peaks[0]


def test_a_price_asked_again_costs_next_to_nothing() -> None:
    step_pico.cache_clear()

    def seconds() -> float:
        started = time.perf_counter()
        for alpha in range(2, 65):
            step_pico("0.0237", "0.566", alpha)
        return time.perf_counter() - started

    first, again = seconds(), min(seconds() for _ in range(5))
    print(f"\nprices of 63 orders: {first:.4f} s, again {again:.6f} s, ratio {first / again:.0f}")
    assert first > CACHE_SPEEDUP_MIN * again
