"""Each controller type gives its policy; others are a typed error."""

from __future__ import annotations

import subprocess
import sys

import pytest

from controller.choice import CONTROLLER_TYPES
from controller.errors import ControllerUnknown
from controller.factory import make_policy
from controller.observation import describe_groups
from dp_core.ports import GroupActions
from tests.controller.cases import run_job, simulated_job


@pytest.mark.parametrize(
    ("controller_type", "name"),
    [
        ("auto", "reference"),
        ("reference", "reference"),
        ("rldp", "rldp"),
        ("rldp_pretrained", "rldp_pretrained"),
    ],
)
def test_type_gives_its_policy(controller_type: str, name: str) -> None:
    job = simulated_job()
    assert controller_type in CONTROLLER_TYPES
    policy = make_policy(controller_type, groups=job.telemetry, seed=1, chunks_planned=6)
    assert policy.name == name


def test_descriptions_and_first_telemetry_give_the_same_policy() -> None:
    runs = []
    for describe in (True, False):
        job = simulated_job()
        groups = describe_groups(job.telemetry) if describe else job.telemetry
        policy = make_policy("rldp", groups=groups, seed=1, chunks_planned=6)
        runs.append(run_job(policy, job, windows=3))
    assert runs[0] == runs[1]


def test_reference_proposes_no_residual_in_any_window() -> None:
    job = simulated_job()
    policy = make_policy("reference", groups=job.telemetry, seed=1, chunks_planned=6)
    assert run_job(policy, job) == [GroupActions.neutral(4)] * 6


def test_unknown_type_names_the_known_ones_and_not_what_was_sent() -> None:
    with pytest.raises(ControllerUnknown) as caught:
        make_policy("sac-9000", groups=simulated_job().telemetry, seed=1, chunks_planned=6)
    assert caught.value.controller_type == "sac-9000"
    assert "rldp" in str(caught.value)
    assert "9000" not in str(caught.value)


def test_reference_needs_neither_torch_nor_an_rl_library() -> None:
    code = (
        "import sys, controller.factory; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'stable_baselines3', 'gymnasium')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
