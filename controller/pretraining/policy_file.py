"""What a pretrained policy is shipped as: one safetensors file and a JSON card. No pickle.

The tensors are actor, critics and temperature of the SAC model; observations are normalised
by fixed formulas (`controller.observation`), so that there are no statistics to ship. The
card names suite, seeds, settings, versions, the command and the tensors' SHA-256. A policy
is checked whole before any of it is used: digest, features, shapes, finiteness.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from controller.actions import ActionRanges
from controller.errors import PolicyStateMismatch
from controller.observation import ACTION_SIZE, FEATURES
from controller.policy_state import read_tensors, write_tensors

FORMAT_VERSION = 1
TENSORS_FILE = "policy.safetensors"
CARD_FILE = "card.json"
TEMPERATURE = "entropy/log_coefficient"
DEFAULT_POLICY = Path(__file__).parents[1] / "policies" / "default"


@dataclass(frozen=True, kw_only=True)
class PolicyFile:
    """A checked policy. `tensors` are named as in a job's state (`network/...`)."""

    tensors: Mapping[str, Tensor]
    card: Mapping[str, Any]
    digest: str  # of the tensors' bytes

    @property
    def hidden(self) -> tuple[int, ...]:
        return tuple(int(width) for width in self.card["hidden"])

    @property
    def ranges(self) -> ActionRanges:
        return ActionRanges(**self.card["ranges"])

    def networks(self) -> dict[str, Tensor]:
        """The state dictionary of stable-baselines3's policy."""
        prefix = "network/"
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}


def write_policy(directory: Path, *, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> str:
    """Writes both files; returns the digest. The directory may exist; files are replaced."""
    data = write_tensors({n: t.detach().clone().contiguous() for n, t in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    document = {
        **card,
        "digest": digest,
        "features": [name for name, _ in FEATURES],
        "format_version": FORMAT_VERSION,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / TENSORS_FILE).write_bytes(data)
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False)
    (directory / CARD_FILE).write_text(text + "\n", encoding="utf-8")
    return digest


def read_policy(directory: Path = DEFAULT_POLICY) -> PolicyFile:
    """Reads and checks a policy.

    Raises:
        PolicyStateMismatch: files are missing, damaged, or of another version.
    """
    try:
        data = (directory / TENSORS_FILE).read_bytes()
        card: Any = json.loads((directory / CARD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise PolicyStateMismatch("its files cannot be read") from None
    if not isinstance(card, dict) or card.get("format_version") != FORMAT_VERSION:
        raise PolicyStateMismatch("its card is of another version")
    digest = hashlib.sha256(data).hexdigest()
    if card.get("digest") != digest:
        raise PolicyStateMismatch("its card names another digest than its tensors have")
    if card.get("features") != [name for name, _ in FEATURES]:
        raise PolicyStateMismatch("it reads other features than this version gives")
    tensors = read_tensors(data)
    _check_tensors(tensors, card)
    return PolicyFile(tensors=tensors, card=card, digest=digest)


def _check_tensors(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    try:
        widths = [int(width) for width in card["hidden"]]
        ActionRanges(**card["ranges"])
    except (KeyError, TypeError, ValueError):
        raise PolicyStateMismatch("its card lacks sizes or ranges") from None
    expected: dict[str, tuple[int, ...]] = {TEMPERATURE: (1,)}
    for net, inputs in (("actor.latent_pi", len(FEATURES)), *_critics()):
        sizes = [inputs, *widths]
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            expected |= _linear(f"network/{net}.{2 * layer}", fan_in, fan_out)
        if net != "actor.latent_pi":
            expected |= _linear(f"network/{net}.{2 * len(widths)}", sizes[-1], 1)
    for head in ("mu", "log_std"):
        expected |= _linear(f"network/actor.{head}", widths[-1], ACTION_SIZE)
    if {name: tuple(t.shape) for name, t in tensors.items()} != expected:
        raise PolicyStateMismatch("its tensors have other names or shapes")
    numbers = tensors.values()
    if not all(t.dtype == torch.float32 and bool(torch.isfinite(t).all()) for t in numbers):
        raise PolicyStateMismatch("its tensors are not finite float32 numbers")


def _critics() -> list[tuple[str, int]]:
    inputs = len(FEATURES) + ACTION_SIZE
    return [(f"{name}.qf{i}", inputs) for name in ("critic", "critic_target") for i in (0, 1)]


def _linear(name: str, fan_in: int, fan_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (fan_out, fan_in), f"{name}.bias": (fan_out,)}
