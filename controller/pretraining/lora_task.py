"""A LoRA regression small enough to train thousands of times: adapters that chase a teacher.

Module j sees inputs x of patient i and shall correct y = W x by a low-rank teacher P_j Q_j:

    e_ij = c B_j A_j x_ij - P_j Q_j x_ij - noise,   loss_i = 1/2 sum_j w_j ||e_ij||^2

It has what makes private LoRA hard: B starts at zero, so that A has no gradient at first;
patients' gradients differ in length and direction; modules differ in weight; inputs have
a strong mean, so that much can be gained by shifting (B alone), the rest needs A to turn.
Gradients of a linear map are outer products, so norms, factors and clipped sums cost no
more than the products themselves.

Shapes: M modules, n patients, r rank, d_in inputs, d_out outputs, all modules alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controller.pretraining.tasks import Task

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
SCALE = 2.0  # LoRA's alpha / r
TEACHER_RANK = 4


@dataclass(frozen=True, kw_only=True)
class PatientGradients:
    """Per-patient gradients of all 2 M tensors as factors of outer products, and the losses."""

    norms: Floats  # (2 M, n): B of every module, then A
    left_b: Singles  # (M, n, d_out)
    right_b: Singles  # (M, n, r)
    left_a: Singles  # (M, n, r)
    right_a: Singles  # (M, n, d_in)
    losses: Floats  # (n,)

    def clipped_sums(self, factors: NDArray[Any]) -> tuple[Singles, Singles]:
        """Sums over patients with factors (2 M, n): of B (M, d_out, r), of A (M, r, d_in)."""
        modules = len(self.left_b)
        factors = factors.astype(np.float32)
        scaled_b = self.left_b * factors[:modules, :, None]
        scaled_a = self.left_a * factors[modules:, :, None]
        return (
            np.matmul(scaled_b.transpose(0, 2, 1), self.right_b),
            np.matmul(scaled_a.transpose(0, 2, 1), self.right_a),
        )


class LoraTask:
    """The teacher, the patients' distribution and the adapters' start of one task."""

    def __init__(self, task: Task) -> None:
        self._task = task
        generator = np.random.default_rng([2, task.seed])
        modules, rank = task.modules, task.rank
        d_in, d_out = task.inputs, task.outputs
        self._mean = _unit_rows(generator.standard_normal((modules, d_in))) * np.sqrt(d_in)
        spectrum = (1.0 + np.arange(d_in)) ** -1.0
        self._spectrum = spectrum / spectrum.mean()
        self.start_a = generator.uniform(-1.0, 1.0, (modules, rank, d_in)) / np.sqrt(d_in)
        self.start_b = np.zeros((modules, d_out, rank))
        # The teacher's shift is what a B of entries `way` gives; the rest is as large.
        shift = SCALE * task.way * np.sqrt(rank / 3) * generator.standard_normal((modules, d_out))
        inner = generator.standard_normal((modules, TEACHER_RANK, d_in)) / np.sqrt(d_in)
        outer = generator.standard_normal((modules, d_out, TEACHER_RANK))
        outer *= SCALE * task.way * np.sqrt(rank / 3) / np.sqrt(TEACHER_RANK)
        bias = shift[:, :, None] @ (self._mean / d_in)[:, None, :]
        self._teacher = bias + outer @ inner
        self._weights = np.ones(modules)
        energy = self._energies(self.start_a, self.start_b)
        weights = np.exp(task.module_spread * generator.standard_normal(modules))
        self._weights = weights * task.excess_loss / (weights * energy).sum()
        self._noise = np.sqrt(task.noise_to_signal * 2 * energy / d_out)
        # Single precision for what is drawn afresh in every step: most of a task's time.
        share = task.mean_share
        self._along = (np.sqrt(share) * self._mean).astype(np.float32)
        self._around = np.sqrt((1 - share) * self._spectrum).astype(np.float32)
        self._noise32 = self._noise.astype(np.float32)
        self._teacher32 = self._teacher.transpose(0, 2, 1).astype(np.float32)

    @property
    def modules(self) -> int:
        return self._task.modules

    def excess_loss(self, a: Floats, b: Floats) -> float:
        """Expected loss above the floor: exact, no sampling. For reward and evaluation."""
        return float((self._weights * self._energies(a, b)).sum())

    @property
    def floor(self) -> float:
        noise = (self._weights * self._noise**2).sum() * self._task.outputs / 2
        return float(noise)

    def gradients(
        self, a: NDArray[Any], b: NDArray[Any], patients: int, generator: np.random.Generator
    ) -> PatientGradients:
        """Of freshly drawn patients: nobody is met twice, as with a small sampling rate."""
        task = self._task
        a, b = a.astype(np.float32), b.astype(np.float32)
        shape = (task.modules, patients, task.inputs)
        length = np.exp(task.spread * generator.standard_normal(patients, dtype=np.float32))
        x = generator.standard_normal(shape, dtype=np.float32)
        x *= self._around
        x += self._along[:, None, :]
        x *= length[None, :, None]
        error = generator.standard_normal((task.modules, patients, task.outputs), dtype=np.float32)
        error *= self._noise32[:, None, None] * length[None, :, None]
        u = np.matmul(x, a.transpose(0, 2, 1))
        error += SCALE * np.matmul(u, b.transpose(0, 2, 1))
        error -= np.matmul(x, self._teacher32)
        squares = np.einsum("mno,mno->mn", error, error)
        losses = 0.5 * (self._weights[:, None] * squares).sum(axis=0)
        weighted = error
        weighted *= (self._weights * SCALE).astype(np.float32)[:, None, None]
        back = np.matmul(weighted, b)
        norms_b = (self._weights * SCALE)[:, None] * np.sqrt(squares) * _norms(u)
        norms = np.concatenate([norms_b, _norms(back) * _norms(x)])
        return PatientGradients(
            norms=norms, left_b=weighted, right_b=u, left_a=back, right_a=x, losses=losses
        )

    def _energies(self, a: Floats, b: Floats) -> Floats:
        """1/2 E||R x||^2 per module, R what the adapters lack, x of a patient of length 1."""
        residual = SCALE * np.matmul(b, a) - self._teacher
        share = self._task.mean_share
        along = (np.matmul(residual, self._mean[:, :, None]) ** 2).sum(axis=(1, 2))
        around = ((residual**2) * self._spectrum).sum(axis=(1, 2))
        return np.asarray(0.5 * (share * along + (1 - share) * around))


def _norms(values: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.sqrt(np.einsum("...i,...i->...", values, values)))


def _unit_rows(values: Floats) -> Floats:
    return np.asarray(values / np.sqrt((values**2).sum(axis=-1, keepdims=True)))
