"""Decreasing noise (Hong et al., arXiv 2101.07413, section 4): less of it late in the job.

The paper finds that the best schedule falls exponentially and that what early steps release
matters least. Here: `flat` under a noise multiplier that falls in four equal stairs by a
factor of two over the job, fixed with the plan and calibrated as a whole to the same
(epsilon, delta). The factor is ours; the paper fits it to curvature, which is not public.
Reads no signal.
"""

from __future__ import annotations

import dataclasses

from controller.baselines import flat
from controller.baselines.arm import Arm
from controller.baselines.fixed import fixed_policy
from dp_core.noise_schedule import NoiseShape
from dp_core.planner import PlanRequest

FINAL_FRACTION, STAIRS = "0.5", 4  # more stairs take longer to calibrate


def prepare(request: PlanRequest) -> PlanRequest:
    shape = NoiseShape.decaying(final_fraction=FINAL_FRACTION, levels=STAIRS)
    return dataclasses.replace(flat.prepare(request), noise_shape=shape)


ARM = Arm(
    name="noise_decay",
    source="arXiv 2101.07413, section 4",
    summary="flat clipping, noise falling exponentially to a half",
    published=True,
    default_learning_rate="0.002",
    prepare=prepare,
    policy=fixed_policy,
)
