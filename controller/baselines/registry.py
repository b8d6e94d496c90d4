"""All arms by name, in the order of a table."""

from __future__ import annotations

from collections.abc import Sequence

from controller.baselines import (
    auto_s,
    broken,
    dc_sgd,
    ffa,
    flat,
    geoclip,
    noise_decay,
    per_layer,
    psac,
    quantile,
    random,
    reference,
    rldp,
    slow_a,
)
from controller.baselines.arm import Arm
from controller.errors import ControllerUnknown

_ALL: tuple[Arm, ...] = (
    flat.ARM,
    per_layer.ARM,
    auto_s.ARM,
    psac.ARM,
    quantile.ARM,
    geoclip.ARM,
    dc_sgd.ARM,
    noise_decay.ARM,
    ffa.ARM,
    reference.ARM,
    slow_a.ARM,
    random.ARM,
    rldp.SCRATCH,
    rldp.PRETRAINED,
    broken.ARM,
    slow_a.ON_FLAT,
    *rldp.ABLATIONS,
)
ARMS: dict[str, Arm] = {arm.name: arm for arm in _ALL}


def find_arm(name: str) -> Arm:
    """The arm of that name.

    Raises:
        ControllerUnknown: no such arm.
    """
    if name not in ARMS:
        raise ControllerUnknown(name, tuple(ARMS))
    return ARMS[name]


def select_arms(names: Sequence[str] = ()) -> tuple[Arm, ...]:
    """The named arms in the table's order; without names all but the ablations."""
    chosen = {find_arm(name).name for name in names}
    return tuple(a for a in _ALL if a.name in chosen or (not names and not a.is_ablation))
