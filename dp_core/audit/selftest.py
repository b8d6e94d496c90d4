"""White-box self-test: did each step add the noise, clip the rows and draw the units it claims?

Scores of canaries that were not sampled are N(0, 1) in units of the journal's stds; scores
of sampled ones are N(a, 1) with a known (AU16, AU17). Under any adaptive choice of settings
this holds given the past, so that the tests stay valid for every policy (AU19).

A wrong alarm has probability at most 1e-6 for a whole job: that total is shared equally by
the five kinds of test, then by the looks, then by the tests of a kind (Bonferroni), half
of it for the test that pools all groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special, stats

from dp_core.audit.canaries import StepScores
from dp_core.audit.coins import LOOKS_MAX
from dp_core.audit.draws import DrawTest
from dp_core.audit.errors import AuditInvalid
from dp_core.mechanism import StepSettings

ALARM_LEVEL = 1e-6
CANARIES_MIN = 500
KINDS = ("variance", "mean", "lag1", "cross_group", "sampler")

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """The tests after `step` steps. `p_values` are adjusted for kinds, looks and tests."""

    step: int
    p_values: dict[str, float]  # by kind

    @property
    def min_p(self) -> float:
        return min(self.p_values.values())


@dataclass(frozen=True, kw_only=True)
class SelfTestResult:
    """Figures of the steps seen so far; None where nothing was observed.

    `var_ratio`: variance of non-sampled scores, 1 is right. `mean_ratio`: sampled scores
    over their expectation, 1 is right. `lag1`, `cross_group`: correlations, 0 is right;
    the latter is the largest in size over pairs of groups.
    """

    steps: int
    canaries: int
    var_ratio: tuple[float | None, ...]
    mean_ratio: tuple[float | None, ...]
    lag1: float | None
    cross_group: float | None
    looks: tuple[Look, ...]
    looks_planned: tuple[int, ...]

    @property
    def sampler_p(self) -> float | None:
        return min((look.p_values["sampler"] for look in self.looks), default=None)

    @property
    def min_p(self) -> float | None:
        return min((look.min_p for look in self.looks), default=None)

    @property
    def verdict(self) -> Verdict:
        if self.min_p is not None and self.min_p < ALARM_LEVEL:
            return "FAIL"
        return "INCONCLUSIVE" if self.reasons else "PASS"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is not PASS."""
        alarms = [
            f"self-test: {kind} at step {look.step}, adjusted p {look.p_values[kind]:.1e}"
            for look in self.looks
            for kind in KINDS
            if look.p_values[kind] < ALARM_LEVEL
        ]
        if alarms:
            return tuple(alarms)
        missing = [
            (not self.looks, "self-test: no look was reached"),
            (self.canaries < CANARIES_MIN, f"self-test: fewer than {CANARIES_MIN} canaries"),
            (None in self.var_ratio, "self-test: a group carries no canary that was left out"),
            (None in self.mean_ratio, "self-test: a group never saw a sampled canary"),
        ]
        return tuple(text for is_missing, text in missing if is_missing)


class SelfTest:
    """Takes released steps one by one and looks at them at the public `looks`.

    `is_carried`: (m, K), of the geometry. `members`: indices of included canaries.
    Memory: a few (m, K) arrays, and one bit row per step for the draws.
    """

    def __init__(
        self,
        *,
        is_carried: np.ndarray,
        members: np.ndarray,
        sampling_probability: str,
        batch_size_expected: int,
        looks: Sequence[int],
    ) -> None:
        if not 1 <= len(looks) <= LOOKS_MAX or sorted(set(looks)) != list(looks):
            raise AuditInvalid("looks", f"needs 1 to {LOOKS_MAX} ascending steps")
        self._is_carried, self._members = is_carried, members
        self._batch_size, self._planned = batch_size_expected, tuple(looks)
        self._draws = DrawTest(members=len(members), sampling_probability=sampling_probability)
        self._steps = 0
        self._looks: list[Look] = []
        canaries, groups = is_carried.shape
        self._squares, self._cells = np.zeros(groups), np.zeros(groups)
        self._sampled = np.zeros((canaries, groups))  # how often each canary was sampled
        self._shift, self._matched = np.zeros(groups), np.zeros(groups)
        self._energy, self._reach = np.zeros(groups), np.zeros((canaries, groups))  # a^2, a
        self._previous: tuple[np.ndarray, np.ndarray] | None = None
        self._lag = np.zeros((3, groups))  # products, squares before, squares now
        self._lag_cells = np.zeros(groups)
        self._cross = np.zeros((groups, groups))
        self._cross_cells = np.zeros((groups, groups))
        self._cross_squares = np.zeros((groups, groups))  # of the row's group, cells shared
        self._leak = np.zeros(groups)
        self._is_finite = True

    def add(
        self, step: StepScores, canary_indices: np.ndarray, settings: StepSettings
    ) -> Look | None:
        """One released step, the canaries it drew and its journalled settings.

        Returns the look if this step is one. Must be called for every step, in order. A
        score that is not finite is an alarm at every look from there on.

        Raises:
            AuditInvalid: a canary was drawn that the coins left out.
        """
        drawn = np.zeros(len(self._is_carried), dtype=bool)
        drawn[canary_indices] = True
        if drawn.sum() != drawn[self._members].sum():
            raise AuditInvalid("canary_indices", "a canary that was left out was drawn")
        self._draws.add(drawn[self._members])
        self._steps += 1
        self._leak = np.maximum(self._leak, self._leak_of(settings))
        if np.isfinite(step.values).all():
            self._take_sampled(step, drawn)
            self._take_free(step.values, self._is_carried & ~drawn[:, None])
        else:
            self._is_finite = False
        if self._steps not in self._planned:
            return None
        look = Look(step=self._steps, p_values=self._adjusted())
        self._looks.append(look)
        return look

    def _leak_of(self, settings: StepSettings) -> np.ndarray:
        """Most variance that patients' gradients add to a score, on average (AU18)."""
        clips, stds = np.asarray(settings.clip_norms), np.asarray(settings.noise_stds)
        sizes = np.asarray(settings.layout.sizes)
        return np.asarray((self._batch_size * clips / stds) ** 2 / sizes)

    def _take_sampled(self, step: StepScores, drawn: np.ndarray) -> None:
        a = step.expected[drawn]
        off = np.where(self._is_carried[drawn], step.values[drawn] - a, 0.0)
        self._sampled[drawn] += self._is_carried[drawn]
        self._shift += off.sum(axis=0)
        self._matched += (a * off).sum(axis=0)
        self._energy += (a**2).sum(axis=0)
        self._reach[drawn] += a

    def _take_free(self, values: np.ndarray, is_free: np.ndarray) -> None:
        x = np.where(is_free, values, 0.0)
        free = is_free.astype(float)
        self._squares += (x**2).sum(axis=0)
        self._cells += free.sum(axis=0)
        self._cross += x.T @ x
        self._cross_cells += free.T @ free
        self._cross_squares += (x**2).T @ free
        if self._previous is not None:
            before, was_free = self._previous
            both = is_free & was_free
            old, new = np.where(both, before, 0.0), np.where(both, x, 0.0)
            self._lag += np.stack([(old * new).sum(0), (old**2).sum(0), (new**2).sum(0)])
            self._lag_cells += both.sum(axis=0)
        self._previous = (x, is_free)

    def _adjusted(self) -> dict[str, float]:
        raw = {
            "variance": _shared(self._variance_p()) if self._is_finite else 0.0,
            "mean": _shared(self._mean_p()),
            "lag1": _shared(self._lag_p()),
            "cross_group": _smallest(self._cross_p()),
            "sampler": self._draws.p_value(),
        }
        budget = len(KINDS) * len(self._planned)
        return {kind: min(1.0, budget * p) for kind, p in raw.items()}

    def _variance_p(self) -> np.ndarray:
        """Chi-square per group and pooled. Missing noise is judged without the leak."""
        squares = np.append(self._squares, self._squares.sum())
        cells = np.append(self._cells, self._cells.sum())
        leak = np.append(self._leak, self._leak.max())
        freedom = np.maximum(cells, 1)
        low = stats.chi2.cdf(squares, freedom)
        high = stats.chi2.sf(squares / (1 + leak), freedom)
        return np.where(cells > 0, np.minimum(1.0, 2 * np.minimum(low, high)), 1.0)

    def _mean_p(self) -> np.ndarray:
        """Normal per group (plain mean) and pooled (matched filter, weights a).

        The same patients' directions leak into a canary at every step that samples it, so
        that the leak's standard deviations add over the steps of one canary. Gradients of
        different groups are taken as unrelated: their variances add.
        """
        spread = self._sampled.sum(axis=0) + self._leak * (self._sampled**2).sum(axis=0)
        pooled = self._energy.sum() + (self._leak * (self._reach**2).sum(axis=0)).sum()
        shift = np.append(self._shift, self._matched.sum())
        variance = np.append(spread, pooled)
        z = np.abs(shift) / np.sqrt(np.where(variance > 0, variance, 1.0))  # 0 if none sampled
        return np.asarray(2 * special.ndtr(-z))

    def _lag_p(self) -> np.ndarray:
        products, before, now = np.hstack([self._lag, self._lag.sum(axis=1, keepdims=True)])
        cells = np.append(self._lag_cells, self._lag_cells.sum())
        leak = np.append(self._leak, self._leak.max())
        return _correlation_p(_correlations(products, before * now), cells, leak)

    def _cross_correlations(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Correlation, cells and leak of every pair of groups."""
        first, second = np.triu_indices(len(self._cells), 1)
        squares = self._cross_squares[first, second] * self._cross_squares[second, first]
        correlations = _correlations(self._cross[first, second], squares)
        leak = np.sqrt(self._leak[first] * self._leak[second])
        return correlations, self._cross_cells[first, second], leak

    def _cross_p(self) -> np.ndarray:
        return _correlation_p(*self._cross_correlations())

    def result(self) -> SelfTestResult:
        """The figures of all steps seen so far."""
        lag = self._lag.sum(axis=1)
        cross = self._cross_correlations()[0]
        return SelfTestResult(
            steps=self._steps,
            canaries=len(self._is_carried),
            var_ratio=_ratios(self._squares, self._cells),
            mean_ratio=_ratios(self._matched + self._energy, self._energy),
            lag1=float(_correlations(lag[0], lag[1] * lag[2])) if lag[1] * lag[2] > 0 else None,
            cross_group=float(np.abs(cross).max()) if cross.size and self._steps else None,
            looks=tuple(self._looks),
            looks_planned=self._planned,
        )


def _smallest(p_values: np.ndarray) -> float:
    """Bonferroni over equal tests; 1 if there are none."""
    return min(1.0, p_values.size * float(p_values.min())) if p_values.size else 1.0


def _shared(p_values: np.ndarray) -> float:
    """Half of a kind's error budget for the pooled test, which comes last, half for groups."""
    return min(1.0, 2 * min(_smallest(p_values[:-1]), float(p_values[-1])))


def _ratios(above: np.ndarray, below: np.ndarray) -> tuple[float | None, ...]:
    return tuple(float(a / b) if b > 0 else None for a, b in zip(above, below, strict=True))


def _correlations(products: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Products over the root of squares; 0 where nothing varies (absent noise has no echo)."""
    safe = np.where(squares > 0, squares, 1.0)
    return np.asarray(np.where(squares > 0, products / np.sqrt(safe), 0.0))


def _correlation_p(correlations: np.ndarray, cells: np.ndarray, leak: np.ndarray) -> np.ndarray:
    """Two-sided p-values; what patients' gradients may explain (`leak`) is set aside.

    Student's t is exact for independent normal columns and tends to N(0, 1/n).
    """
    beyond = np.clip(np.abs(correlations) - leak, 0.0, 1 - 1e-15)
    degrees = np.maximum(cells - 1, 1)
    statistic = beyond * np.sqrt(degrees / (1 - beyond**2))
    return np.asarray(np.where(cells > 1, np.minimum(1.0, 2 * stats.t.sf(statistic, degrees)), 1.0))
