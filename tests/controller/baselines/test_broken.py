"""`broken` spends far more than it books, the self-test says so, and no job can reach it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from controller.baselines.arm import Arm
from controller.baselines.broken import ARM, underscaled
from controller.baselines.mislabelled import MislabelledTraining
from controller.baselines.registry import ARMS
from controller.baselines.settings import unchanged
from controller.choice import CONTROLLER_TYPES
from controller.errors import ControllerUnknown
from controller.factory import make_policy
from controller.observation import describe_groups
from dp_core.errors import PlanViolation
from dp_core.noise import OsEntropySource
from tests.architecture.imports import modules, ours
from tests.controller.baselines.cases import group, settings_of, window
from tests.dp_core.audit.test_with_engine import audited_run


def test_its_true_multiplier_is_about_a_root_of_k_too_small() -> None:
    """Equal clips on 4 groups: sigma / sqrt(4) at most."""
    honest = settings_of(ARM)
    sigma = float(honest.noise_multiplier)
    assert honest.effective_noise_multiplier() >= sigma
    broken = underscaled(honest)
    assert broken.noise_multiplier == honest.noise_multiplier
    assert broken.effective_noise_multiplier() == pytest.approx(sigma / math.sqrt(4), rel=0.02)


def test_the_audits_self_test_flags_it() -> None:
    result = audited_run(broken=underscaled)
    assert result.verdict == "FAIL"
    assert result.min_p is not None
    assert result.min_p < 1e-9


def test_it_is_the_only_arm_whose_noise_is_not_what_it_books() -> None:
    assert [arm.name for arm in ARMS.values() if arm.benchmark_only] == ["broken"]
    with pytest.raises(ValueError, match="benchmarks only"):
        Arm(
            name="sly",
            source="",
            summary="",
            published=False,
            default_learning_rate="0.1",
            prepare=unchanged,
            policy=ARM.policy,
            tampering=ARM.tampering,
        )


def test_a_plan_of_it_is_an_honest_plan() -> None:
    """Nothing of the mistake fits into a plan: what `admit` gives has the noise it claims."""
    honest = settings_of(ARM)
    assert honest.effective_noise_multiplier() >= float(honest.noise_multiplier)


def test_its_training_refuses_the_noise_of_private_jobs() -> None:
    with pytest.raises(PlanViolation, match="benchmarks only"):
        MislabelledTraining(noise_source=OsEntropySource())
    with pytest.raises(PlanViolation, match="benchmarks only"):
        MislabelledTraining()


def test_neither_the_service_nor_the_factory_knows_it() -> None:
    assert "broken" not in CONTROLLER_TYPES
    assert "broken" not in CONTROLLER_TYPES
    groups = describe_groups(window(group()))
    with pytest.raises(ControllerUnknown):
        make_policy("broken", groups=groups, seed=1, chunks_planned=3)


def test_no_module_of_the_service_but_the_benchmark_command_imports_an_arm() -> None:
    """Lazy imports count. The worker composes jobs from the factory, which has no arms."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            name = waiting.pop()
            if name in seen or name not in modules():
                continue
            seen.add(name)
            waiting += ours(modules()[name], lazy=True)
        return seen

    entries: list[Any] = ["service.worker.runner", "service.app", "service.dispatcher"]
    arms = {"controller.baselines.broken", "controller.baselines.mislabelled"}
    for entry in entries:
        assert not reached(entry) & arms, entry
