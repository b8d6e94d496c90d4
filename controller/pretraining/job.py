"""Runs a synthetic task as a DP-SGD job: real action map, references, schedule and averaging.

Everything but the model is dp_core's own: `admit`, `next_references`, the learning-rate
schedule. What a window reports is computed as `dp_core.window` computes it.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from controller.errors import GroupsChanged
from controller.pretraining.lora_task import Floats, LoraTask
from controller.pretraining.tasks import Task, plan_of
from dp_core.mechanism import GroupLayout, StepSettings, admit, next_references
from dp_core.ports import GroupActions
from dp_core.schedule import learning_rate, rate_factors
from dp_core.telemetry import GroupTelemetry, ReleasedValue, WindowTelemetry

PROJECTIONS = ("c_attn", "c_proj", "c_fc", "down_proj", "q_proj", "v_proj")
PATIENTS_MEASURED = 64  # public draws from which the first clip norm is set


class SyntheticJob:
    """One job on one task: `telemetry` before the first window, then `run_window` until done.

    Groups alternate A and B of module 0, 1, ...; as in a real model each is one tensor.
    Deterministic: two jobs of one task meet the same patients and the same noise, so that
    their difference shows what their actions did.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._lora = LoraTask(task)
        self._generator = np.random.default_rng([3, task.seed])
        self._a, self._b = self._lora.start_a.copy(), self._lora.start_b.copy()
        self._sum_a, self._sum_b = np.zeros_like(self._a), np.zeros_like(self._b)
        self._average_weight = 0.0
        self._first = [np.zeros_like(self._b), np.zeros_like(self._a)]
        self._second = [np.zeros_like(self._b), np.zeros_like(self._a)]
        self._plan = plan_of(task, clip_norm=task.clip_offset * self._typical_norm())
        self._layout = self._make_layout()
        self._references = (float(self._plan.clipping.clip_norm),) * len(self._layout)
        self._previous: list[Floats] | None = None
        self._step = 0
        self.telemetry = self._report_nothing()

    @property
    def true_loss(self) -> float:
        """Expected loss of the averaged weights, exact: pretraining may look, a policy may not."""
        return self._lora.floor + self._lora.excess_loss(*self._averages())

    @property
    def floor(self) -> float:
        """The loss that no adapter can go below: the patients' own noise."""
        return self._lora.floor

    @property
    def is_done(self) -> bool:
        return self._step >= self.task.steps

    def run_window(self, actions: GroupActions) -> WindowTelemetry:
        """Runs the next window under a proposal and returns what it releases.

        Raises:
            GroupsChanged: the proposal has another number of groups.
        """
        groups = len(self._layout)
        if len(actions.clip) != groups:
            raise GroupsChanged(expected=groups, found=len(actions.clip))
        settings = admit(self._plan, self._layout, self._references, actions)
        factors = rate_factors(self._plan.optimizer, actions)
        before = self._flat(self._a, self._b)
        totals = [np.zeros(size) for size in self._layout.sizes]
        bits, loss = np.zeros(groups), 0.0
        for _ in range(self.task.steps_per_window):
            sums, step_bits, step_loss = self._release(settings)
            totals = [t + s for t, s in zip(totals, sums, strict=True)]
            bits, loss = bits + step_bits, loss + step_loss
            self._update(sums, factors)
        means = [t / self.task.steps_per_window for t in totals]
        self.telemetry = self._report(settings, factors, before, means, bits, loss)
        fractions = [g.clip_fraction.value for g in self.telemetry.groups if g.clip_fraction]
        self._references = next_references(
            self._plan.clipping, self._references, fractions, steps=self._plan.steps_per_chunk
        )
        self._previous = means
        return self.telemetry

    def _release(self, settings: StepSettings) -> tuple[list[Floats], Floats, float]:
        """Noised sums of every group in the layout's order, noised bits, noised loss."""
        draw, modules = self._generator.standard_normal, self.task.modules
        # Poisson draws differ in size; at least one patient keeps the shapes plain.
        patients = max(int(self._generator.poisson(self.task.batch_size)), 1)
        found = self._lora.gradients(self._a, self._b, patients, self._generator)
        clips = np.asarray(settings.clip_norms)
        by_tensor = np.concatenate([clips[1::2], clips[0::2]])[:, None]  # B first, then A
        factors = np.minimum(1.0, by_tensor / (found.norms + 1e-6))
        sums_b, sums_a = found.clipped_sums(factors)
        sums: list[Floats] = []
        for module in range(modules):
            for tensor in (sums_a[module], sums_b[module]):
                flat = tensor.reshape(-1)
                sums.append(flat + settings.noise_stds[len(sums)] * draw(flat.size))
        inside = (found.norms <= by_tensor).sum(axis=1) - patients / 2
        order = np.stack([inside[modules:], inside[:modules]], axis=1).reshape(-1)
        half = settings.loss_cap / 2
        loss = float((np.clip(found.losses, 0.0, 2 * half) - half).sum())
        return (
            sums,
            order + settings.bit_std * draw(order.size),
            loss + settings.loss_std * float(draw()),
        )

    def _update(self, sums: list[Floats], factors: tuple[float, ...]) -> None:
        """One step of Adam at the scheduled rate, then the running average of the weights."""
        plan = self._plan.optimizer
        rate = learning_rate(plan, self._step, self.task.steps)
        beta1, beta2 = float(plan.beta1), float(plan.beta2)
        self._step += 1
        corrected = rate * math.sqrt(1 - beta2**self._step) / (1 - beta1**self._step)
        a = np.stack(sums[0::2]).reshape(self._a.shape) / self.task.batch_size
        b = np.stack(sums[1::2]).reshape(self._b.shape) / self.task.batch_size
        steps = corrected * np.asarray(factors)
        for index, (gradient, size, weights) in enumerate(
            ((b, steps[1::2], self._b), (a, steps[0::2], self._a))
        ):
            self._first[index] = beta1 * self._first[index] + (1 - beta1) * gradient
            self._second[index] = beta2 * self._second[index] + (1 - beta2) * gradient**2
            direction = self._first[index] / (np.sqrt(self._second[index]) + 1e-12)
            weights -= size[:, None, None] * direction
        decay = float(plan.averaging_decay)
        self._sum_a = decay * self._sum_a + (1 - decay) * self._a
        self._sum_b = decay * self._sum_b + (1 - decay) * self._b
        self._average_weight = decay * self._average_weight + 1 - decay

    def _averages(self) -> tuple[Floats, Floats]:
        if self._average_weight == 0.0:
            return self._a, self._b
        return self._sum_a / self._average_weight, self._sum_b / self._average_weight

    def _flat(self, a: Floats, b: Floats) -> list[Floats]:
        return [t[m].reshape(-1).copy() for m in range(self.task.modules) for t in (a, b)]

    def _typical_norm(self) -> float:
        """Median length of B's gradients at the start: A has none yet."""
        generator = np.random.default_rng([4, self.task.seed])
        found = self._lora.gradients(self._a, self._b, PATIENTS_MEASURED, generator)
        return float(np.median(found.norms[: self.task.modules]))

    def _make_layout(self) -> GroupLayout:
        task = self.task
        names = [f"{m:03d}.{PROJECTIONS[m % len(PROJECTIONS)]}" for m in range(task.modules)]
        ids = tuple(f"{name}.{tensor}" for name in names for tensor in "AB")
        sizes = (task.rank * task.inputs, task.rank * task.outputs) * task.modules
        return GroupLayout(ids=ids, sizes=sizes)

    def _report(
        self,
        settings: StepSettings,
        factors: tuple[float, ...],
        before: list[Floats],
        means: list[Floats],
        bits: Floats,
        loss: float,
    ) -> WindowTelemetry:
        steps, batch = self.task.steps_per_window, self.task.batch_size
        weights = self._flat(self._a, self._b)
        fraction_std = settings.bit_std / batch / math.sqrt(steps)
        groups = tuple(
            self._group(
                k,
                clip_norm=settings.clip_norms[k],
                noise_std=settings.noise_stds[k],
                share=settings.shares[k],
                rate_factor=factors[k],
                clip_fraction=ReleasedValue(
                    value=float(0.5 + bits[k] / steps / batch), std=fraction_std
                ),
                signal_norm_squared=float(means[k] @ means[k])
                - means[k].size * settings.noise_stds[k] ** 2 / steps,
                update_cosine=_cosine(means[k], self._previous[k] if self._previous else None),
                update_norm=float(np.linalg.norm(weights[k] - before[k])),
                weight_norm=float(np.linalg.norm(weights[k])),
            )
            for k in range(len(self._layout))
        )
        centred = loss / steps / batch
        variance = (settings.loss_std / batch) ** 2 + centred**2 / batch
        released = ReleasedValue(
            value=settings.loss_cap / 2 + centred, std=math.sqrt(variance / steps)
        )
        return dataclasses.replace(self._window(groups), loss=released)

    def _report_nothing(self) -> WindowTelemetry:
        weights = self._flat(self._a, self._b)
        groups = tuple(
            self._group(
                k,
                clip_norm=self._references[k],
                noise_std=0.0,
                share=1 / len(self._layout),
                rate_factor=1.0,
                clip_fraction=None,
                signal_norm_squared=0.0,
                update_cosine=0.0,
                update_norm=0.0,
                weight_norm=float(np.linalg.norm(weights[k])),
            )
            for k in range(len(self._layout))
        )
        return self._window(groups)

    def _group(
        self, k: int, *, clip_fraction: ReleasedValue | None, **numbers: float
    ) -> GroupTelemetry:
        group_id = self._layout.ids[k]
        return GroupTelemetry(
            group_id=group_id,
            kind=group_id.partition(".")[2],
            depth=(k // 2) / max(self.task.modules - 1, 1),
            size=self._layout.sizes[k],
            clip_fraction=clip_fraction,
            **numbers,
        )

    def _window(self, groups: tuple[GroupTelemetry, ...]) -> WindowTelemetry:
        plan = self._plan
        return WindowTelemetry(
            step=self._step,
            steps_planned=plan.steps_planned,
            chunk=self._step // self.task.steps_per_window - 1,
            steps_per_chunk=plan.steps_per_chunk,
            filter_used=self._step / plan.steps_planned,
            sampling_probability=float(plan.sampling_probability),
            noise_multiplier=float(plan.noise_levels[0]),
            target_epsilon=float(plan.target_epsilon),
            learning_rate=learning_rate(plan.optimizer, self._step, plan.steps_planned),
            loss=None,
            validation_loss=None,
            groups=groups,
        )


def _cosine(a: Floats, b: Floats | None) -> float:
    if b is None:
        return 0.0
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else 0.0
