"""DP-SGD (Abadi et al., arXiv 1607.00133, section 3.1, algorithm 1): one clip over everything.

    g_i <- g_i / max(1, ||g_i|| / C),  update = (sum g_i + N(0, sigma^2 C^2 I)) / B

Whitened clipping with equal weights is exactly that: K groups of clip norm c and share 1/K
have weight w = c sqrt(K), so C = c sqrt(K) and each coordinate's noise has std sigma C.
C is small beside usual gradient norms, which with Adam turns clipping into normalising
(Li et al., arXiv 2110.05679, section 3.1, report C = 0.1; here C = 0.1 at 25 groups).
The learning rate 2e-3 is that paper's for language generation. Reads no signal.
"""

from __future__ import annotations

from controller.baselines.arm import Arm
from controller.baselines.fixed import fixed_policy
from controller.baselines.settings import with_fixed_clip, without_sensing
from dp_core.planner import PlanRequest

CLIP_NORM = "0.02"  # of one group; the joint clip norm is this times sqrt(K)


def prepare(request: PlanRequest) -> PlanRequest:
    flat = with_fixed_clip(
        request, CLIP_NORM, rule="whitened", factor="clip", allocation="equal_noise"
    )
    return without_sensing(flat)


ARM = Arm(
    name="flat",
    source="arXiv 1607.00133, section 3.1",
    summary="DP-SGD: one clip norm over all tensors, isotropic noise",
    published=True,
    default_learning_rate="0.002",
    prepare=prepare,
    policy=fixed_policy,
)
