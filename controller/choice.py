"""Which controllers there are, which one `auto` is, and how long a job each may steer.

Free of torch and numpy, so that the API can ask before any worker does.
"""

from __future__ import annotations

from controller.errors import ControllerUnknown

# `rldp_pretrained` wins the benchmark's short runs at tuned rates on both corpora, and ruins a
# job of 200 steps (README, utility benchmark): the fixed plan serves everyone.
AUTO_TYPE = "reference"
CONTROLLER_TYPES = ("auto", "reference", "rldp", "rldp_pretrained")
# Longer than the longest run that it was seen to win, and far below one that it ruined.
PRETRAINED_STEPS_MAX = 40


def resolve_type(controller_type: str) -> str:
    """The type that a plan names; `auto` is what the utility benchmark favours.

    Raises:
        ControllerUnknown: no such type in this version.
    """
    if controller_type not in CONTROLLER_TYPES:
        raise ControllerUnknown(controller_type, CONTROLLER_TYPES)
    return AUTO_TYPE if controller_type == "auto" else controller_type


def steps_max(controller_type: str) -> int | None:
    """The longest job that the controller may steer; None: any.

    Raises:
        ControllerUnknown: no such type in this version.
    """
    is_pretrained = resolve_type(controller_type) == "rldp_pretrained"
    return PRETRAINED_STEPS_MAX if is_pretrained else None
