"""Shared fixtures: where the development data lies, if this checkout has it beside it."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

# Before torch is loaded: threads that wait shall not take a core from the processes tested.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A worker of the tests plants no faults beside them; tests of that turn it on.
os.environ.setdefault("RLDP_AUDIT_CONTROLS", "false")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of vectors, real records and models beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("no development data beside this checkout (vectors, records, models)")
    return SHARED


NEEDED_IN_CI = ("postgresql", "redis", "chromium", "axe-core")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In continuous integration a missing database, broker or browser is a failure."""
    report = yield
    reason = str(report.longrepr).lower()
    is_needed = any(name in reason for name in NEEDED_IN_CI)
    if report.skipped and is_needed and os.environ.get("RLDP_CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped in continuous integration, which must not happen: {reason}"
    return report
