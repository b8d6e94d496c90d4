"""Our SAC policies (after RLDP, arXiv 2507.22565; README, Deviations) and their ablations.

`rldp` learns from scratch within the job, `rldp_pretrained` goes on from the shipped policy.
"Without a sensor" means that the policy reads 0 where the sensor was; what the sensors cost
stays as it is, so that the figure shows what reading them is worth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from controller.baselines.arm import Arm, PolicyMaker
from controller.baselines.settings import unchanged
from controller.observation import GroupDescription
from dp_core.planner import PlanRequest
from dp_core.ports import HyperPolicy

SENSORS: dict[str, tuple[str, ...]] = {
    "bits": ("clip_fraction_error",),
    "signal": ("signal_to_noise", "signal_significance"),
    "updates": ("update_cosine", "log_update_to_weight"),
    "loss": ("training_loss", "training_loss_change", "validation_loss", "validation_loss_change"),
    "horizon": ("time", "log_steps_planned", "filter_used"),
}


def _scratch(name: str, **settings: Any) -> PolicyMaker:
    def make(*, groups: Sequence[GroupDescription], seed: int, chunks_planned: int) -> HyperPolicy:
        from controller.sac import SacPolicy  # the other arms need no RL library

        return SacPolicy(
            groups=groups, seed=seed, chunks_planned=chunks_planned, name=name, **settings
        )

    return make


def _pretrained(name: str, **settings: Any) -> PolicyMaker:
    def make(*, groups: Sequence[GroupDescription], seed: int, chunks_planned: int) -> HyperPolicy:
        from controller.pretraining.policy_file import read_policy

        return _scratch(name, pretrained=read_policy(), **settings)(
            groups=groups, seed=seed, chunks_planned=chunks_planned
        )

    return make


def _without_credit(
    *, groups: Sequence[GroupDescription], seed: int, chunks_planned: int
) -> HyperPolicy:
    from controller.reward import RewardConfig

    make = _scratch("rldp_no_credit", reward=RewardConfig(credit_weight=0.0))
    return make(groups=groups, seed=seed, chunks_planned=chunks_planned)


def _constant_entropy(
    *, groups: Sequence[GroupDescription], seed: int, chunks_planned: int
) -> HyperPolicy:
    from controller.sac_config import SacConfig

    std = SacConfig().exploration_std_first
    make = _scratch("rldp_constant_entropy", config=SacConfig(exploration_std_last=std))
    return make(groups=groups, seed=seed, chunks_planned=chunks_planned)


def _adaptive(request: PlanRequest) -> PlanRequest:
    return dataclasses.replace(request, mode="adaptive_sigma")


def _arm(name: str, summary: str, policy: PolicyMaker, **changes: Any) -> Arm:
    settings: dict[str, Any] = {
        "source": "arXiv 2507.22565, with the deviations of controller/README.md",
        "published": False,
        "default_learning_rate": "0.02",
        "prepare": unchanged,
    }
    return Arm(name=name, summary=summary, policy=policy, **(settings | changes))


SCRATCH = _arm("rldp", "our plan with SAC from scratch", _scratch("rldp"))
PRETRAINED = _arm(
    "rldp_pretrained",
    "our plan with the shipped policy, learning on",
    _pretrained("rldp_pretrained"),
)
ABLATIONS = (
    _arm(
        "rldp_frozen",
        "the shipped policy as it is, no learning in the job",
        _pretrained("rldp_frozen", learns=False),
        is_ablation=True,
    ),
    *(
        _arm(
            f"rldp_no_{sensor}",
            f"the shipped policy, frozen, blind to {sensor}",
            _pretrained(f"rldp_no_{sensor}", learns=False, masked=features),
            is_ablation=True,
        )
        for sensor, features in SENSORS.items()
    ),
    _arm(
        "rldp_no_credit",
        "from scratch, one reward for all groups",
        _without_credit,
        is_ablation=True,
    ),
    _arm(
        "rldp_constant_entropy",
        "from scratch, exploration does not anneal",
        _constant_entropy,
        is_ablation=True,
    ),
    _arm(
        "rldp_adaptive_sigma",
        "the shipped policy under a filter, choosing the noise level too",
        _pretrained("rldp_adaptive_sigma"),
        prepare=_adaptive,
        is_ablation=True,
    ),
)
