"""Our fixed plan: closed-form noise shares, clips that follow paid bits, schedule, averaging.

Everything the policies stand on, and no policy: what `rldp` must beat to be worth its place.
"""

from __future__ import annotations

from controller.baselines.arm import Arm
from controller.baselines.fixed import fixed_policy
from controller.baselines.settings import unchanged

ARM = Arm(
    name="reference",
    source="this package, controller.md section 2",
    summary="our plan without learning: least-energy shares, paid quantile clips",
    published=False,
    default_learning_rate="0.02",
    prepare=unchanged,
    policy=fixed_policy,
)
