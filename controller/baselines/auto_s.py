"""AUTO-S (Bu et al., arXiv 2206.07136, section 4.2): normalise instead of clip.

    g_i <- C g_i / (||g_i|| + gamma),  gamma = 0.01

over all tensors at once, with isotropic noise sigma C. With Adam the size of C cancels, so
there is nothing to tune; C = 1 at 25 groups keeps gamma at the paper's 0.01 (in general it
is 0.01 C). The learning rate 2e-3 is the paper's for GPT-2 on E2E. Reads no signal.
"""

from __future__ import annotations

from controller.baselines.arm import Arm
from controller.baselines.fixed import fixed_policy
from controller.baselines.settings import with_fixed_clip, without_sensing
from dp_core.planner import PlanRequest

CLIP_NORM = "0.2"  # of one group; the joint one is this times sqrt(K)


def prepare(request: PlanRequest) -> PlanRequest:
    normalised = with_fixed_clip(
        request, CLIP_NORM, rule="whitened", factor="auto_s", allocation="equal_noise"
    )
    return without_sensing(normalised)


ARM = Arm(
    name="auto_s",
    source="arXiv 2206.07136, section 4.2",
    summary="every patient's gradient normalised, with stability constant 0.01",
    published=True,
    default_learning_rate="0.002",
    prepare=prepare,
    policy=fixed_policy,
)
