"""Telemetry for tests: simulated jobs, one hostile strategy, and a copy of global state."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from controller.observation import describe_groups
from controller.sac import SacPolicy
from controller.simulation import JobRanges, SimulatedJob
from dp_core.ports import GroupActions, HyperPolicy
from dp_core.telemetry import GroupTelemetry, ReleasedValue, WindowTelemetry


def simulated_job(seed: int = 0, **ranges: Any) -> SimulatedJob:
    return SimulatedJob(
        JobRanges(**{"groups": 4, "windows": 6, **ranges}), np.random.default_rng(seed)
    )


def sac_policy(job: SimulatedJob, *, seed: int = 7, **settings: Any) -> SacPolicy:
    settings = {"chunks_planned": 6, **settings}
    return SacPolicy(groups=describe_groups(job.telemetry), seed=seed, **settings)


def run_job(
    policy: HyperPolicy, job: SimulatedJob, windows: int | None = None
) -> list[GroupActions]:
    """Drives a job as the training loop does; stops after `windows` if given."""
    proposals: list[GroupActions] = []
    while not job.is_done and (windows is None or len(proposals) < windows):
        proposals.append(policy.propose(job.telemetry))
        policy.learn(job.run_window(proposals[-1]))
    return proposals


def with_loss(telemetry: WindowTelemetry, loss: float, std: float = 0.01) -> WindowTelemetry:
    return replace(telemetry, loss=ReleasedValue(value=loss, std=std))


def global_state() -> tuple[Any, ...]:
    """All process-wide state a learner could leave changed, in a comparable form."""
    name, keys, *rest = np.random.get_state()
    return (
        torch.get_rng_state().tolist(),
        (name, keys.tolist(), *rest),
        random.getstate(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
    )


any_number = st.one_of(
    st.floats(width=64),
    st.integers(min_value=-(10**400), max_value=10**400),
    st.sampled_from([0.0, 1e308, -1e308, 5e-324]),
)
released = st.builds(ReleasedValue, value=any_number, std=any_number)
kinds = st.one_of(st.sampled_from(["q_proj.A", "c_attn.B", "down_proj.pair", "", "."]), st.text())
GROUP_NUMBERS = (
    "depth",
    "size",
    "clip_norm",
    "noise_std",
    "share",
    "rate_factor",
    "signal_norm_squared",
    "update_cosine",
    "update_norm",
    "weight_norm",
)
groups = st.builds(
    GroupTelemetry,
    group_id=st.text(),
    kind=kinds,
    clip_fraction=st.none() | released,
    **dict.fromkeys(GROUP_NUMBERS, any_number),
)


def hostile_telemetry(count: int) -> st.SearchStrategy[WindowTelemetry]:
    """Telemetry of the right types and any numbers at all."""
    numbers = (
        "step",
        "steps_planned",
        "steps_per_chunk",
        "filter_used",
        "sampling_probability",
        "noise_multiplier",
        "target_epsilon",
        "learning_rate",
    )
    return st.builds(
        WindowTelemetry,
        chunk=st.integers(-1, 1000),
        loss=st.none() | released,
        validation_loss=st.none() | released,
        groups=st.tuples(*[groups] * count),
        **dict.fromkeys(numbers, any_number),
    )
