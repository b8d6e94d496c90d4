"""FFA-LoRA (Sun et al., arXiv 2403.12313, section 4): A stays at its random start, B is trained.

With B = 0 at the start, training both multiplies noise by noise: (B + n)(A + m) holds n m.
With A frozen the adapter is linear in what is trained, and half the coordinates get noise.
Otherwise `flat`. One site instead of the paper's federation; the paper tunes the learning
rate on a grid, so that the untuned figure uses `flat`'s. Reads no signal.
"""

from __future__ import annotations

from controller.baselines import flat
from controller.baselines.arm import Arm
from controller.baselines.fixed import fixed_policy

ARM = Arm(
    name="ffa",
    source="arXiv 2403.12313, section 4",
    summary="flat clipping with A frozen: only B is trained",
    published=True,
    default_learning_rate="0.002",
    prepare=flat.prepare,
    policy=fixed_policy,
    trains="B",
)
