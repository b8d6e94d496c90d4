"""Accounting of one chunk with a warm cache: below a millisecond (privacy.md 15)."""

from __future__ import annotations

import statistics
import time

import pytest

from dp_core.accounting import RdpFilter, limit_pico
from dp_core.events import PoissonGaussian

BAR_SECONDS = 1e-3
CHUNKS = 500


@pytest.mark.bench
def test_a_chunk_is_priced_and_booked_in_both_filters_within_a_millisecond() -> None:
    filters = [
        RdpFilter(limit_pico=10**6 * limit_pico("8", "1e-6", alpha), alpha=alpha)
        for alpha in (4, 8)  # the population's and the job's
    ]
    levels = ("0.706", "0.784", "0.863", "0.980", "1.176")
    seconds = []
    for chunk in range(CHUNKS + len(levels)):
        started = time.perf_counter()
        event = PoissonGaussian(q="0.01", noise_multiplier=levels[chunk % len(levels)], steps=25)
        for charged in filters:
            assert charged.fits(event)
            charged.charge(event)
        seconds.append(time.perf_counter() - started)
    warm = seconds[len(levels) :]
    median, worst = statistics.median(warm), max(warm)
    print(f"\naccounting per chunk: median {median * 1e6:.0f} us, worst {worst * 1e6:.0f} us")
    assert median < BAR_SECONDS
