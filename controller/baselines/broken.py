"""The classic mistake, for benchmarks only: noise s_k = sigma C_k on K groups, booked as sigma.

The true multiplier is about sigma / sqrt(K) (privacy.md G4): at K = 28 a claimed epsilon of
a few is one of many dozens. It is here to show that cheating wins a utility table, and that
the audit's self-test sees it. Nothing of it can be expressed as a plan: `dp_core` derives
every std from sigma and the shares, so this arm needs a training class of its own, which
refuses a noise source fit for private data (`mislabelled.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from controller.baselines.arm import Arm
from controller.baselines.fixed import fixed_policy
from controller.baselines.settings import unchanged
from dp_core.mechanism import StepSettings, up32


def underscaled(settings: StepSettings) -> StepSettings:
    """The settings with s_k = sigma C_k: too little noise by about sqrt(K)."""
    sigma = float(settings.noise_multiplier)
    stds = tuple(up32(sigma * clip) for clip in settings.clip_norms)
    return dataclasses.replace(settings, noise_stds=stds)


def _training_class() -> type[Any]:
    from controller.baselines.mislabelled import MislabelledTraining

    return MislabelledTraining


ARM = Arm(
    name="broken",
    source="a common mistake; privacy.md G4",
    summary="NOT PRIVATE: noise sigma C_k per tensor, booked as sigma",
    published=False,
    default_learning_rate="0.02",
    prepare=unchanged,
    policy=fixed_policy,
    benchmark_only=True,
    tampering=_training_class,
)
