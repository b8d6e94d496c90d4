"""The suite of synthetic tasks: from where each public number of a job is drawn.

A task is a small LoRA regression (`lora_task.py`) under a DP-SGD plan. Its ranges cover what
a policy may meet (rank, groups, steps, windows, noise, learning rate, first clip norm) and
were set once by comparing its telemetry with that of real runs of a 4-million-parameter
model on public notes (README, "The tasks").
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from controller.errors import SettingInvalid
from dp_core.plan import ClippingPlan, OptimizerPlan, RunPlan

COHERENCE = 0.3  # length of the mean of normalised gradients, as measured in real runs
# Tasks of one never occur in another: to learn from, to score on, to choose a checkpoint by.
TRAINING_STREAM, EVALUATION_STREAM, SELECTION_STREAM = 0, 1, 5


@dataclass(frozen=True, kw_only=True)
class TaskRanges:
    """Ends of log-uniform draws, or the values to choose from."""

    modules: tuple[int, ...] = (4, 6, 14)  # adapters; K is twice that with one group a tensor
    ranks: tuple[int, ...] = (2, 4, 8)
    inputs: tuple[int, ...] = (32, 64)
    outputs: tuple[int, ...] = (32, 64, 96)
    windows: tuple[int, int] = (8, 32)
    steps_per_window: tuple[int, int] = (2, 8)
    batch_size: tuple[int, int] = (16, 48)
    signal_to_noise: tuple[float, float] = (0.004, 0.4)  # of a step and tensor, about
    learning_rate: tuple[float, float] = (0.008, 0.05)
    way: tuple[float, float] = (0.2, 0.8)  # root mean square of the B that shifts rightly
    clip_offset: tuple[float, float] = (0.1, 2.0)  # first clip norm over the typical norm
    excess_loss: tuple[float, float] = (1.5, 4.0)  # nats above the floor at the start
    noise_to_signal: tuple[float, float] = (0.3, 3.0)  # label noise over the teacher's energy
    mean_share: tuple[float, float] = (0.3, 0.8)  # of the inputs' energy
    spread: tuple[float, float] = (0.2, 0.6)  # std of the log of patients' input lengths
    module_spread: float = 1.0  # std of the log of the modules' weights

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def small(cls) -> TaskRanges:
        """Cheap tasks for tests."""
        return cls(
            modules=(2,),
            ranks=(2,),
            inputs=(16,),
            outputs=(16,),
            windows=(4, 5),
            steps_per_window=(2, 3),
            batch_size=(16, 24),
        )


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task, all of it public. `seed` names its weights, patients and noise."""

    seed: int
    modules: int
    rank: int
    inputs: int
    outputs: int
    windows: int
    steps_per_window: int
    batch_size: int
    signal_to_noise: float
    learning_rate: float
    way: float
    clip_offset: float
    excess_loss: float
    noise_to_signal: float
    mean_share: float
    spread: float
    module_spread: float

    @property
    def steps(self) -> int:
        return self.windows * self.steps_per_window

    @property
    def noise_multiplier(self) -> float:
        """The sigma at which the signal of an average tensor has the task's signal-to-noise.

        With K groups of d coordinates, equal clips and shares and a mean gradient of
        `COHERENCE` C: (B COHERENCE C)^2 / (d sigma^2 K C^2).
        """
        size = self.rank * (self.inputs + self.outputs) / 2
        energy = 2 * self.modules * size * self.signal_to_noise
        return max(self.batch_size * COHERENCE / math.sqrt(energy), 0.05)


def draw_task(ranges: TaskRanges, *, stream: int, index: int) -> Task:
    """The task number `index` of a stream; a function of its arguments alone."""
    generator = np.random.default_rng([stream, index])

    def between(ends: tuple[float, float]) -> float:
        return float(np.exp(generator.uniform(math.log(ends[0]), math.log(ends[1]))))

    def one_of(values: tuple[int, ...]) -> int:
        return values[int(generator.integers(len(values)))]

    return Task(
        seed=int(generator.integers(2**31)),
        modules=one_of(ranges.modules),
        rank=one_of(ranges.ranks),
        inputs=one_of(ranges.inputs),
        outputs=one_of(ranges.outputs),
        windows=round(between(ranges.windows)),
        steps_per_window=round(between(ranges.steps_per_window)),
        batch_size=round(between(ranges.batch_size)),
        signal_to_noise=between(ranges.signal_to_noise),
        learning_rate=between(ranges.learning_rate),
        way=between(ranges.way),
        clip_offset=between(ranges.clip_offset),
        excess_loss=between(ranges.excess_loss),
        noise_to_signal=between(ranges.noise_to_signal),
        mean_share=between(ranges.mean_share),
        spread=between(ranges.spread),
        module_spread=ranges.module_spread,
    )


def with_modules(task: Task, modules: int) -> Task:
    """The same task on another number of adapters."""
    if modules < 1:
        raise SettingInvalid("modules", "below 1")
    return replace(task, modules=modules)


def plan_of(task: Task, *, clip_norm: float) -> RunPlan:
    """The plan that the task runs under: the real action map, references and schedule.

    Its noise multiplier is drawn, not calibrated: there is nobody to protect, and no
    epsilon is claimed (the fields say "0"). `target_epsilon` keeps what an observation
    shows in a plausible relation to the noise.
    """
    # Half of the tasks look back as far as the plan's defaults do, half as the benchmark's
    # short runs: averages over a tenth, momentum over a fifth of the run, ten steps at most.
    looks = (10.0, 10.0) if task.seed % 2 else (task.steps / 10, task.steps / 5)
    averaging, beta1 = (f"{1 - 1 / min(max(steps, 2.0), 10.0):.3f}" for steps in looks)
    level = f"{task.noise_multiplier:.3f}"
    return RunPlan(
        unit="record",
        records_are_unique_patients=True,
        patients_public=task.batch_size * 100,
        target_epsilon=f"{8.0 / task.noise_multiplier**1.5:.3f}",
        delta="1e-6",
        sampling_probability="0.01",
        batch_size_expected=task.batch_size,
        steps_planned=task.steps,
        steps_started_max=task.steps,
        steps_per_chunk=task.steps_per_window,
        noise_levels=(level,),
        job_limit=task.steps,
        epsilon_certified="0",
        clipping=ClippingPlan(clip_norm=f"{clip_norm:.6f}", clip_min="0.000001", clip_max="1000"),
        optimizer=OptimizerPlan(
            learning_rate=f"{task.learning_rate:.6f}", averaging_decay=averaging, beta1=beta1
        ),
        noise_source="torch_generator",
        seed=task.seed,
        controller_type="pretraining",
        base_model_digest="0" * 64,
        dataset_version="synthetic",
    )
