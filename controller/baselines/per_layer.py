"""Per-layer clipping (McMahan et al., arXiv 1710.06963, section 3, "per-layer clipping").

    each layer j is clipped to C_j = C / sqrt(K),  noise of std sigma C on every coordinate

where C is the joint clip norm: the layers' bounds add to sum C_j^2 = C^2. Here a layer is a
clip group (one LoRA tensor). The paper clips a user's model update, here a patient's
gradient. Reads no signal.
"""

from __future__ import annotations

from controller.baselines.arm import Arm
from controller.baselines.fixed import fixed_policy
from controller.baselines.flat import CLIP_NORM
from controller.baselines.settings import with_fixed_clip, without_sensing
from dp_core.planner import PlanRequest


def prepare(request: PlanRequest) -> PlanRequest:
    layered = with_fixed_clip(
        request, CLIP_NORM, rule="per_group", factor="clip", allocation="equal_noise"
    )
    return without_sensing(layered)


ARM = Arm(
    name="per_layer",
    source="arXiv 1710.06963, section 3",
    summary="one equal clip norm per tensor, isotropic noise",
    published=True,
    default_learning_rate="0.002",
    prepare=prepare,
    policy=fixed_policy,
)
