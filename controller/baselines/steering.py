"""Brings clip norms that a published rule computes into the contract of a hyper-policy.

A rule says which clip norms the next window shall have; the plan's references move by
themselves (G7). This policy follows the references, which are functions of released values
and plan constants, and proposes the residual that makes the difference good.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from controller.errors import PolicyStateMismatch
from controller.observation import GroupDescription, check_count
from controller.released import number, require_released
from dp_core.mechanism import next_references
from dp_core.plan import ClippingPlan, TelemetryPlan
from dp_core.ports import GroupActions
from dp_core.telemetry import WindowTelemetry

STATE_FILE = "policy.json"
FORMAT_VERSION = 1
# Plan constants of every steered arm; `prepare` puts them into the request. Between these
# ends, twelve octaves either way, a rule may place a clip norm where it wants.
STEERED = ClippingPlan(clip_octaves="12", share_tilt="0")
SENSING = TelemetryPlan()

Clips = tuple[float, ...]
Memory = dict[str, list[float]]  # finite numbers only, so that it can be stored as JSON


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a rule answers: clip norms of the next window and what it remembers."""

    clips: Clips
    memory: Memory


class ClipRule(Protocol):
    """A published rule as a pure function of released values."""

    def __call__(self, telemetry: WindowTelemetry, clips: Clips, memory: Memory) -> Chosen: ...


class SteeringPolicy:
    """Runs one rule. Deterministic; its state is JSON and holds released values only."""

    def __init__(self, *, name: str, groups: Sequence[GroupDescription], rule: ClipRule) -> None:
        self.name = name
        self._groups, self._rule = len(groups), rule
        self._references: Clips | None = None  # None before the first window
        self._clips: Clips = ()
        self._memory: Memory = {}
        self._chunk = -1

    def propose(self, telemetry: WindowTelemetry) -> GroupActions:
        self._check(telemetry)
        if self._references is None:
            return GroupActions.neutral(self._groups)
        octaves = float(STEERED.clip_octaves)
        pairs = zip(self._clips, self._references, strict=True)
        clip = tuple(math.log2(wanted / reference) / octaves for wanted, reference in pairs)
        zeros = (0.0,) * self._groups
        return GroupActions(clip=clip, share=zeros, rate=zeros)

    def learn(self, telemetry: WindowTelemetry) -> None:
        """Takes a finished window. One that was taken before changes nothing."""
        self._check(telemetry)
        if telemetry.chunk <= self._chunk:
            return
        if self._references is None:  # the window just ended ran at the references themselves
            self._clips = tuple(number(g.clip_norm) for g in telemetry.groups)
            self._references = self._clips
        target = float(STEERED.target_fraction)
        fractions = [
            target if g.clip_fraction is None else number(g.clip_fraction.value)
            for g in telemetry.groups
        ]
        self._references = next_references(
            STEERED, self._references, fractions, steps=telemetry.steps_per_chunk
        )
        chosen = self._rule(telemetry, self._clips, self._memory)
        self._clips = tuple(bounded(clip) for clip in chosen.clips)
        self._memory, self._chunk = chosen.memory, telemetry.chunk

    def digest(self) -> str:
        return hashlib.sha256(self.state()[STATE_FILE]).hexdigest()

    def state(self) -> dict[str, bytes]:
        document = {
            "chunk": self._chunk,
            "clips": list(self._clips),
            "controller": self.name,
            "format_version": FORMAT_VERSION,
            "groups": self._groups,
            "memory": self._memory,
            "references": None if self._references is None else list(self._references),
        }
        return {STATE_FILE: json.dumps(document, sort_keys=True, allow_nan=False).encode()}

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Takes back what `state` gave.

        Raises:
            PolicyStateMismatch: another policy's state, or a damaged one.
        """
        if set(state) != {STATE_FILE}:
            raise PolicyStateMismatch("it has other parts than a steered arm's")
        try:
            found: dict[str, Any] = json.loads(state[STATE_FILE])
            fit = (found["format_version"], found["controller"], found["groups"])
            references = found["references"]
            clips = tuple(float(c) for c in found["clips"])
            memory = {name: [float(v) for v in values] for name, values in found["memory"].items()}
            chunk = int(found["chunk"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise PolicyStateMismatch("its document cannot be read") from None
        if fit != (FORMAT_VERSION, self.name, self._groups):
            raise PolicyStateMismatch("it was made by another arm or for other groups")
        self._references = None if references is None else tuple(float(r) for r in references)
        self._clips, self._memory, self._chunk = clips, memory, chunk

    def _check(self, telemetry: WindowTelemetry) -> None:
        require_released(telemetry)
        check_count(telemetry, self._groups)


def bounded(clip: float) -> float:
    """A clip norm between the plan's ends; the start where it is not a number."""
    if math.isnan(clip):
        return float(STEERED.clip_norm)
    return min(max(clip, float(STEERED.clip_min)), float(STEERED.clip_max))
