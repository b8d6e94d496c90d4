"""Turns released telemetry into what the policy network reads: finite float32 rows.

One row per clip group and one last row for the whole job, all of one length, so that
one network serves every group of every model (controller.md 2). `FEATURES` names each
column and says whether it is PUBLIC (plan, constants, settings already chosen) or
RELEASED; there is no third class. Values of any size are brought to a few units by
logarithms, ratios and asinh, then clipped to [-10, 10]; NaN reads as 0.

Smoothing needs a memory. It is a frozen value, advanced once per finished window, and
holds functions of released values only, so it may be stored and published (H2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.errors import GroupsChanged, PolicyStateMismatch
from controller.released import number, require_released
from dp_core.telemetry import GroupTelemetry, ReleasedValue, WindowTelemetry

Rows = NDArray[np.float32]

BOUND = 10.0
ACTION_SIZE = 3  # group row: clip, share, rate; job row: base rate, level, unused
SMOOTHING = 0.4  # weight of the newest window in every running mean, before its noise counts
FRACTION_STD_TRUSTED = 0.25  # a clip fraction of this noise std gets half that weight
LOSS_STD_TRUSTED = 0.10  # nats; the same for a loss
TINY = 1e-30

PROJECTIONS: dict[str, tuple[str, ...]] = {
    "query": ("q_proj", "query", "wq"),
    "key": ("k_proj", "key", "wk"),
    "value": ("v_proj", "value", "wv"),
    "fused": ("c_attn", "qkv_proj", "query_key_value", "qkv"),
    "output": ("o_proj", "out_proj", "dense", "wo"),
    "gate": ("gate_proj", "gate_up_proj", "w1"),
    "up": ("up_proj", "c_fc", "fc1", "dense_h_to_4h", "w3"),
    "down": ("down_proj", "fc2", "dense_4h_to_h", "w2"),
    "other": (),  # among them GPT-2's `c_proj`, which names two different layers
}
TENSORS = ("A", "B", "pair")
_PROJECTION_OF = {alias: name for name, aliases in PROJECTIONS.items() for alias in aliases}

GROUP_NUMBERS: tuple[tuple[str, str], ...] = (
    ("clip_fraction_error", "RELEASED"),
    ("clip_fraction_log_std", "PUBLIC"),
    ("signal_to_noise", "RELEASED"),
    ("signal_significance", "RELEASED"),
    ("update_cosine", "RELEASED"),
    ("log_update_to_weight", "RELEASED"),
    ("log_clip_norm", "PUBLIC"),
    ("log_noise_to_clip", "PUBLIC"),
    ("log_share_times_groups", "PUBLIC"),
    ("log_rate_factor", "PUBLIC"),
    ("last_action_0", "PUBLIC"),
    ("last_action_1", "PUBLIC"),
    ("last_action_2", "PUBLIC"),
    ("log_size", "PUBLIC"),
    ("depth", "PUBLIC"),
)
KIND_FLAGS = tuple(
    (name, "PUBLIC")
    for name in (*(f"projection_{p}" for p in PROJECTIONS), *(f"tensor_{t}" for t in TENSORS))
)
SHARED: tuple[tuple[str, str], ...] = (
    ("time", "PUBLIC"),
    ("filter_used", "PUBLIC"),
    ("log_steps_planned", "PUBLIC"),
    ("log_sampling_probability", "PUBLIC"),
    ("log_noise_multiplier", "PUBLIC"),
    ("log_target_epsilon", "PUBLIC"),
    ("log_learning_rate", "PUBLIC"),
    ("training_loss", "RELEASED"),
    ("training_loss_change", "RELEASED"),
    ("validation_loss", "RELEASED"),
    ("validation_loss_change", "RELEASED"),
    ("has_validation_loss", "PUBLIC"),
    ("log_groups", "PUBLIC"),
    ("is_job_row", "PUBLIC"),
)
FEATURES: tuple[tuple[str, str], ...] = (*GROUP_NUMBERS, *KIND_FLAGS, *SHARED)
OBSERVATION_SIZE = len(FEATURES)


@dataclass(frozen=True, kw_only=True)
class GroupDescription:
    """The public part of one clip group: enough to make a policy before the first window."""

    group_id: str
    kind: str
    depth: float
    size: int


def describe_groups(telemetry: WindowTelemetry) -> tuple[GroupDescription, ...]:
    """The clip groups that a job's telemetry speaks of, in its order."""
    require_released(telemetry)
    return tuple(
        GroupDescription(group_id=g.group_id, kind=g.kind, depth=g.depth, size=g.size)
        for g in telemetry.groups
    )


@dataclass(frozen=True, kw_only=True)
class RunningLoss:
    """Running mean of one released loss. `change` is that of its last update, 0 at first."""

    level: float | None = None
    change: float = 0.0

    def advance(self, loss: ReleasedValue | None) -> RunningLoss:
        """Takes one more value; a missing or non-finite one changes nothing."""
        if loss is None:
            return self
        value, std = number(loss.value), number(loss.std)
        weight = _weight(std, LOSS_STD_TRUSTED)
        if not math.isfinite(value) or weight == 0.0:
            return self
        value = _clip(value, 1e6)
        if self.level is None:
            return RunningLoss(level=value)
        change = weight * (value - self.level)
        return RunningLoss(level=self.level + change, change=change)


@dataclass(frozen=True, kw_only=True)
class ObservationMemory:
    """What the finished windows left behind: running means of released values."""

    fraction_error: tuple[float, ...]  # clip fraction - 1/2
    signal: tuple[float, ...]  # asinh of the signal-to-noise ratio
    training: RunningLoss = RunningLoss()
    validation: RunningLoss = RunningLoss()

    @classmethod
    def empty(cls, groups: int) -> ObservationMemory:
        return cls(fraction_error=(0.0,) * groups, signal=(0.0,) * groups)

    def advance(self, telemetry: WindowTelemetry) -> ObservationMemory:
        """The memory after one more finished window.

        Raises:
            TypeError: a field holds a raw value or any other unreleased type.
            GroupsChanged: another number of groups.
        """
        require_released(telemetry)
        check_count(telemetry, len(self.signal))
        groups = telemetry.groups
        return ObservationMemory(
            fraction_error=tuple(
                _smoothed_fraction(old, g.clip_fraction)
                for old, g in zip(self.fraction_error, groups, strict=True)
            ),
            signal=tuple(
                _smoothed(old, math.asinh(_clip(_signal_to_noise(g, telemetry), 1e6)), SMOOTHING)
                for old, g in zip(self.signal, groups, strict=True)
            ),
            training=self.training.advance(telemetry.loss),
            validation=self.validation.advance(telemetry.validation_loss),
        )

    def utility_change(self, before: ObservationMemory) -> float:
        """Gain in U = -running loss by the one window between `before` and `self`.

        The hold-out loss counts where the window had one, else the training loss; the
        two are never subtracted from each other. Without a usable loss: 0.
        """
        if self.validation is not before.validation:
            return -self.validation.change
        if self.training is not before.training:
            return -self.training.change
        return 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> ObservationMemory:
        """Inverse of `to_dict`.

        Raises:
            PolicyStateMismatch: fields are missing, unknown or not finite numbers.
        """
        try:
            memory = cls(
                fraction_error=tuple(float(v) for v in document["fraction_error"]),
                signal=tuple(float(v) for v in document["signal"]),
                training=RunningLoss(**document["training"]),
                validation=RunningLoss(**document["validation"]),
            )
        except (KeyError, TypeError, ValueError):
            raise PolicyStateMismatch("its memory cannot be read") from None
        losses = (memory.training, memory.validation)
        values = [*memory.fraction_error, *memory.signal]
        values += [v for loss in losses for v in (loss.level or 0.0, loss.change)]
        if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
            raise PolicyStateMismatch("its memory holds numbers that are not finite")
        return memory


def check_count(telemetry: WindowTelemetry, groups: int) -> None:
    """Raises `GroupsChanged` unless the telemetry speaks of that many groups."""
    if len(telemetry.groups) != groups:
        raise GroupsChanged(expected=groups, found=len(telemetry.groups))


def observe(telemetry: WindowTelemetry, memory: ObservationMemory, last_actions: Rows) -> Rows:
    """The policy's input at a window border, shape (K + 1, OBSERVATION_SIZE).

    Rows 0..K-1 are the groups; row K is the job, whose group columns hold the mean over
    the groups and whose kind flags are 0. `last_actions` are the rows played in the
    window just ended, shape (K + 1, ACTION_SIZE), in [-1, 1].

    Guarantee: every entry is finite and in [-10, 10] for any number in the telemetry.

    Raises:
        TypeError: a field holds a raw value or any other unreleased type.
        GroupsChanged: the memory knows another number of groups.
    """
    require_released(telemetry)
    count = len(telemetry.groups)
    check_count(telemetry, len(memory.signal))
    rows = np.zeros((count + 1, OBSERVATION_SIZE), dtype=np.float64)
    numbers, flags = len(GROUP_NUMBERS), len(GROUP_NUMBERS) + len(KIND_FLAGS)
    for index, group in enumerate(telemetry.groups):
        rows[index, :numbers] = _group_numbers(group, telemetry, memory, index, last_actions)
        rows[index, numbers:flags] = _kind_flags(group.kind)
    if count:
        rows[count, :numbers] = rows[:count, :numbers].mean(axis=0)
    first_action = [name for name, _ in FEATURES].index("last_action_0")
    rows[count, first_action : first_action + ACTION_SIZE] = last_actions[count]
    rows[:, flags:] = _shared_numbers(telemetry, memory)
    rows[count, -1] = 1.0
    rows = np.nan_to_num(rows, nan=0.0, posinf=BOUND, neginf=-BOUND)
    return np.clip(rows, -BOUND, BOUND).astype(np.float32)


def _group_numbers(
    group: GroupTelemetry,
    telemetry: WindowTelemetry,
    memory: ObservationMemory,
    index: int,
    last_actions: Rows,
) -> Sequence[float]:
    fraction_std = 1.0 if group.clip_fraction is None else number(group.clip_fraction.std)
    signal = _signal_to_noise(group, telemetry)
    groups = len(telemetry.groups)
    return [
        _finite(4.0 * memory.fraction_error[index]),
        _log_ratio(fraction_std, FRACTION_STD_TRUSTED),
        _finite(memory.signal[index]),
        # the released signal has std s^2 sqrt(2 d) / m, so this counts its own stds
        math.asinh(_clip(signal * math.sqrt(max(_clip(number(group.size), 1e12), 0.0) / 2), 1e4)),
        _finite(2.0 * number(group.update_cosine)),
        _log_ratio(number(group.update_norm), number(group.weight_norm)),
        _log_ratio(number(group.clip_norm), 0.05),
        _log_ratio(number(group.noise_std), number(group.clip_norm)),
        _log_ratio(_clip(number(group.share), 1e6) * groups, 1.0),
        _log_ratio(number(group.rate_factor), 1.0),
        *(float(a) for a in last_actions[index]),
        _log_ratio(number(group.size), 4096.0) / 2.0,
        _finite(2.0 * number(group.depth) - 1.0),
    ]


def _shared_numbers(telemetry: WindowTelemetry, memory: ObservationMemory) -> Sequence[float]:
    training, validation = memory.training, memory.validation
    return [
        2.0 * elapsed_fraction(telemetry) - 1.0,
        _finite(2.0 * number(telemetry.filter_used) - 1.0),
        _log_ratio(number(telemetry.steps_planned), 200.0),
        _log_ratio(number(telemetry.sampling_probability), 0.02),
        _log_ratio(number(telemetry.noise_multiplier), 1.0),
        _log_ratio(number(telemetry.target_epsilon), 4.0),
        _log_ratio(number(telemetry.learning_rate), 0.005),
        math.asinh(training.level or 0.0),
        math.asinh(20.0 * training.change),
        math.asinh(validation.level or 0.0),
        math.asinh(20.0 * validation.change),
        0.0 if validation.level is None else 1.0,
        _log_ratio(float(len(telemetry.groups)), 16.0),
        0.0,
    ]


def elapsed_fraction(telemetry: WindowTelemetry) -> float:
    """Steps finished over steps planned, in [0, 1]; 1 where the plan is not positive."""
    planned, step = number(telemetry.steps_planned), number(telemetry.step)
    if not (planned > 0 and math.isfinite(step)):
        return 1.0
    return min(max(step / planned, 0.0), 1.0)


def _kind_flags(kind: str) -> Sequence[float]:
    projection, _, tensor = kind.rpartition(".")
    known = _PROJECTION_OF.get(projection or tensor, "other")
    tensor = tensor if tensor in TENSORS else "pair"
    return [*(float(p == known) for p in PROJECTIONS), *(float(t == tensor) for t in TENSORS)]


def _signal_to_noise(group: GroupTelemetry, telemetry: WindowTelemetry) -> float:
    """||signal||^2 over the noise energy d s^2 / m of the window's mean sum; 0 if unknown."""
    steps, noise_std = number(telemetry.steps_per_chunk), number(group.noise_std)
    energy = number(group.size) * noise_std * noise_std
    signal = number(group.signal_norm_squared)
    if not (math.isfinite(energy) and energy > 0 and math.isfinite(signal) and steps > 0):
        return 0.0
    return _clip(signal / max(energy / steps, TINY), 1e12)


def _smoothed_fraction(old: float, fraction: ReleasedValue | None) -> float:
    if fraction is None:
        return old
    error = _clip(number(fraction.value) - 0.5, 1.0)
    return _smoothed(old, error, _weight(number(fraction.std), FRACTION_STD_TRUSTED))


def _smoothed(old: float, new: float, weight: float) -> float:
    return old + weight * (new - old) if math.isfinite(new) else old


def _weight(std: float, std_trusted: float) -> float:
    """Weight of a released value in its running mean: less, the noisier it is."""
    if not math.isfinite(std) or std < 0:
        return 0.0
    return SMOOTHING / (1.0 + (_clip(std, 1e9) / std_trusted) ** 2)


def _log_ratio(value: float, unit: float) -> float:
    """Natural logarithm of value/unit; 0 where either is not finite, floored where not positive."""
    if not (math.isfinite(value) and math.isfinite(unit)):
        return 0.0
    return _clip(math.log(max(value, TINY)) - math.log(max(unit, TINY)), BOUND)


def _clip(value: float, bound: float) -> float:
    """NaN stays NaN."""
    return value if math.isnan(value) else min(max(value, -bound), bound)


def _finite(value: float) -> float:
    return 0.0 if math.isnan(value) else _clip(value, BOUND)
