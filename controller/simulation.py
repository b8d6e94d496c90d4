"""A small synthetic DP-SGD job that emits the telemetry a real one would.

It keeps what a controller has to trade off and nothing else. Group k lies `distance`
away from its best weights; the loss is floor + sum of 1/2 curvature distance^2. Each
patient's gradient norm is log-normal around the mean gradient, so clipping low loses
signal and clipping high buys noise: s_k = sigma C_k / sqrt(share_k) as in the real
mechanism (privacy.md G3). An Adam-like step of fixed length goes along the gradient in
proportion to cos = sqrt(snr / (1 + snr)) and wanders with the rest. Learning rates and
first clip norms are drawn around their best values, so that there is something to learn.

All numbers are made up; the module never sees a record. It is a test bed and the seed of
offline pretraining, not a claim about any model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controller.errors import GroupsChanged
from dp_core.ports import GroupActions
from dp_core.telemetry import GroupTelemetry, ReleasedValue, WindowTelemetry

Floats = NDArray[np.float64]

CLIP_OCTAVES = 2.0  # the plan's defaults, so that an action means the same here and there
SHARE_TILT = 1.0
RATE_OCTAVES = 1.0
MOMENTUM_STEPS = 10.0  # steps over which Adam's first moment averages noise
RATE_FULL = 2.0  # over the job's steps: a rate that reaches the optimum through usual noise
NORM_SPREAD = 0.5  # std of the log of patients' gradient norms
KINDS = ("q_proj.A", "q_proj.B", "v_proj.A", "v_proj.B", "up_proj.A", "up_proj.B")
_NODES = np.linspace(-2.0, 2.0, 9)
_WEIGHTS = np.exp(-0.5 * _NODES**2) / np.exp(-0.5 * _NODES**2).sum()


@dataclass(frozen=True, kw_only=True)
class JobRanges:
    """From where a synthetic job is drawn; pairs are log-uniform ends."""

    groups: int = 6
    windows: int = 20
    steps_per_window: int = 10
    batch_size_expected: int = 128
    patients: int = 4096
    noise_multiplier: tuple[float, float] = (1.0, 5.0)
    rate_offset: tuple[float, float] = (0.15, 1.5)  # of RATE_FULL
    clip_offset: tuple[float, float] = (0.25, 4.0)  # of the first mean gradient norm
    group_size: tuple[float, float] = (1e3, 3e4)
    loss_floor: float = 1.0
    excess_loss: float = 2.0
    loss_std: float = 0.05
    fraction_std: float = 0.03


class SimulatedJob:
    """One synthetic job: `telemetry` before the first window, then `run_window` until done."""

    def __init__(self, ranges: JobRanges, generator: np.random.Generator) -> None:
        self._ranges = ranges
        self._generator = generator
        count = ranges.groups
        self._size = np.round(self._draw(ranges.group_size, count))
        self._distance = 0.2 * np.sqrt(self._size) * self._draw((0.5, 2.0), count)
        weight = generator.dirichlet(np.full(count, 2.0))
        self._curvature = 2.0 * ranges.excess_loss * weight / self._distance**2
        self._noise_multiplier = float(self._draw(ranges.noise_multiplier, 1)[0])
        steps = ranges.windows * ranges.steps_per_window
        self._rate = RATE_FULL / steps * float(self._draw(ranges.rate_offset, 1)[0])
        gradient = self._curvature * self._distance
        self._clip_reference = gradient * float(self._draw(ranges.clip_offset, 1)[0])
        self._moved = np.zeros(count)
        self._cosine = np.zeros(count)
        self._window = -1
        self.telemetry = self._report_nothing()

    @property
    def true_loss(self) -> float:
        """The noiseless loss: the simulation may look, a policy may not."""
        excess = 0.5 * self._curvature * self._distance**2
        return self._ranges.loss_floor + float(excess.sum())

    @property
    def is_done(self) -> bool:
        return self._window + 1 >= self._ranges.windows

    def run_window(self, actions: GroupActions) -> WindowTelemetry:
        """Runs the next window under a proposal and returns what it releases.

        Raises:
            GroupsChanged: the proposal has another number of groups.
        """
        ranges = self._ranges
        if len(actions.clip) != ranges.groups:
            raise GroupsChanged(expected=ranges.groups, found=len(actions.clip))
        clip = self._clip_reference * 2.0 ** (CLIP_OCTAVES * np.asarray(actions.clip))
        share = clip * np.sqrt(self._size) * np.exp(SHARE_TILT * np.asarray(actions.share))
        share = 0.9 * share / share.sum() + 0.1 / ranges.groups
        noise_std = self._noise_multiplier * clip / np.sqrt(share)
        factor = 2.0 ** (RATE_OCTAVES * (np.asarray(actions.rate) + actions.base_rate))
        kept, fraction = self._clipped(clip)
        signal = ranges.batch_size_expected * kept * self._curvature * self._distance
        path = self._move(signal, noise_std, factor)
        self._window += 1
        self.telemetry = self._report(clip, share, noise_std, factor, signal, fraction, path)
        seen = np.array([g.clip_fraction.value for g in self.telemetry.groups if g.clip_fraction])
        self._clip_reference = self._clip_reference * np.exp(-0.2 * (seen - 0.5))
        return self.telemetry

    def _clipped(self, clip: Floats) -> tuple[Floats, Floats]:
        """Part of the signal that clipping keeps, and the share of patients left whole."""
        mean_norm = np.maximum(self._curvature * self._distance, 1e-9)
        norms = 2.0 * mean_norm[:, None] * np.exp(NORM_SPREAD * _NODES)[None, :]
        kept = (np.minimum(1.0, clip[:, None] / norms) * _WEIGHTS).sum(axis=1)
        return kept, ((norms <= clip[:, None]) * _WEIGHTS).sum(axis=1)

    def _move(self, signal: Floats, noise_std: Floats, factor: Floats) -> Floats:
        """Moves each group; returns the length of its path."""
        steps = self._ranges.steps_per_window
        ratio = MOMENTUM_STEPS * signal**2 / (self._size * noise_std**2)
        self._cosine = np.sqrt(ratio / (1.0 + ratio))
        stride = self._rate * self._decay() * factor * np.sqrt(self._size)
        along = steps * stride * self._cosine
        astray = np.sqrt(steps * MOMENTUM_STEPS) * stride * np.sqrt(1.0 - self._cosine**2) / 4.0
        self._distance = np.sqrt((self._distance - along) ** 2 + astray**2)
        path = np.hypot(along, astray)
        self._moved = np.hypot(self._moved, path)
        return np.asarray(path)

    def _decay(self) -> float:
        elapsed = (self._window + 1) / self._ranges.windows
        return 0.1 + 0.45 * (1.0 + math.cos(math.pi * elapsed))

    def _report(
        self,
        clip: Floats,
        share: Floats,
        noise_std: Floats,
        factor: Floats,
        signal: Floats,
        fraction: Floats,
        path: Floats,
    ) -> WindowTelemetry:
        draw, ranges = self._generator.standard_normal, self._ranges
        signal_std = noise_std**2 * np.sqrt(2.0 * self._size) / ranges.steps_per_window
        signal_seen = signal**2 + signal_std * draw(ranges.groups)
        fraction_seen = np.clip(fraction + ranges.fraction_std * draw(ranges.groups), 0.0, 1.0)
        cosine_seen = np.clip(self._cosine**2 + 0.05 * draw(ranges.groups), -1.0, 1.0)
        groups = tuple(
            self._group(
                k,
                clip_norm=float(clip[k]),
                noise_std=float(noise_std[k]),
                share=float(share[k]),
                rate_factor=float(factor[k]),
                clip_fraction=ReleasedValue(value=float(fraction_seen[k]), std=ranges.fraction_std),
                signal_norm_squared=float(signal_seen[k]),
                update_cosine=float(cosine_seen[k]),
                update_norm=float(path[k]),
                weight_norm=float(self._moved[k]),
            )
            for k in range(ranges.groups)
        )
        loss = ReleasedValue(
            value=self.true_loss + ranges.loss_std * float(draw()), std=ranges.loss_std
        )
        return self._window_telemetry(groups, loss)

    def _report_nothing(self) -> WindowTelemetry:
        groups = tuple(
            self._group(
                k,
                clip_norm=float(self._clip_reference[k]),
                noise_std=0.0,
                share=1.0 / self._ranges.groups,
                rate_factor=1.0,
                clip_fraction=None,
                signal_norm_squared=0.0,
                update_cosine=0.0,
                update_norm=0.0,
                weight_norm=0.0,
            )
            for k in range(self._ranges.groups)
        )
        return self._window_telemetry(groups, None)

    def _group(
        self, k: int, *, clip_fraction: ReleasedValue | None, **numbers: float
    ) -> GroupTelemetry:
        return GroupTelemetry(
            group_id=f"layer{k}.{KINDS[k % len(KINDS)]}",
            kind=KINDS[k % len(KINDS)],
            depth=k / max(self._ranges.groups - 1, 1),
            size=int(self._size[k]),
            clip_fraction=clip_fraction,
            **numbers,
        )

    def _window_telemetry(
        self, groups: tuple[GroupTelemetry, ...], loss: ReleasedValue | None
    ) -> WindowTelemetry:
        ranges = self._ranges
        finished = self._window + 1
        return WindowTelemetry(
            step=finished * ranges.steps_per_window,
            steps_planned=ranges.windows * ranges.steps_per_window,
            chunk=self._window,
            steps_per_chunk=ranges.steps_per_window,
            filter_used=finished / ranges.windows,
            sampling_probability=ranges.batch_size_expected / ranges.patients,
            noise_multiplier=self._noise_multiplier,
            target_epsilon=8.0,
            learning_rate=self._rate * self._decay(),
            loss=loss,
            validation_loss=None,
            groups=groups,
        )

    def _draw(self, ends: tuple[float, float], count: int) -> Floats:
        low, high = math.log(ends[0]), math.log(ends[1])
        return np.asarray(np.exp(self._generator.uniform(low, high, count)))
