"""DP-PSAC (Xia et al., arXiv 2212.00328, section 4, algorithm 1): a weight that is not monotone.

    g_i <- C g_i / (||g_i|| + r / (||g_i|| + r)),  r = 0.01

Small gradients are not blown up to length C as by AUTO-S: the weight falls again towards
C at norm 0. Over all tensors at once, isotropic noise sigma C; C = 1 at 25 groups keeps r
as published. The paper gives no language generation; the learning rate is AUTO-S's, its
nearest relative. Reads no signal.
"""

from __future__ import annotations

from controller.baselines.arm import Arm
from controller.baselines.auto_s import CLIP_NORM
from controller.baselines.fixed import fixed_policy
from controller.baselines.settings import with_fixed_clip, without_sensing
from dp_core.planner import PlanRequest


def prepare(request: PlanRequest) -> PlanRequest:
    weighted = with_fixed_clip(
        request, CLIP_NORM, rule="whitened", factor="psac", allocation="equal_noise"
    )
    return without_sensing(weighted)


ARM = Arm(
    name="psac",
    source="arXiv 2212.00328, section 4",
    summary="normalising with a weight that spares small gradients",
    published=True,
    default_learning_rate="0.002",
    prepare=prepare,
    policy=fixed_policy,
)
