"""The ledger's own trade-off curve: what an attacker may reach if the ledger tells the truth.

A job is refuted with this curve, never with a Gaussian of equal epsilon, and the ceilings
of AUC and TPR in a report are its integral and its values (audit.md AU27).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from scipy import special

from dp_core.accounting import PICO, PLD_INTERVAL
from dp_core.audit.errors import AuditInvalid
from dp_core.events import PoissonGaussian

_POINTS = 600
_DELTA_FLOOR = 1e-12  # below it another epsilon moves the curve by nothing visible


@dataclass(frozen=True, kw_only=True, eq=False)
class TradeOffCurve:
    """Lower bound on an attacker's false negatives at each false-positive rate.

    f(x) = max over epsilons of max(0, 1 - delta - e^epsilon x, e^-epsilon (1 - delta - x)),
    symmetric. Points left out only lower f: the curve then claims less, and a test that
    refutes it refutes the ledger too.
    """

    epsilons: np.ndarray  # ascending, from 0
    deltas: np.ndarray  # delta(epsilon) of both directions of add/remove

    def __post_init__(self) -> None:
        usable = (self.deltas >= 0) & (self.deltas <= 1)
        if len(self.epsilons) != len(self.deltas) or not usable.all():
            raise AuditInvalid("curve", "needs one delta in [0, 1] per epsilon")
        if len(self.epsilons) == 0 or (np.diff(self.epsilons, prepend=-1.0) <= 0).any():
            raise AuditInvalid("curve", "epsilons must be ascending and not negative")

    def __call__(self, x: float) -> float:
        """Smallest false-negative rate of any test with false-positive rate `x`."""
        steep = 1 - self.deltas - np.exp(self.epsilons) * x
        flat = np.exp(-self.epsilons) * (1 - self.deltas - x)
        return max(0.0, float(steep.max()), float(flat.max()))

    def inverse(self, y: float) -> float:
        """f(1 - y), as the one-run test wants it (`bounds.fdp_rejects`)."""
        return self(1 - y)

    def epsilon_at(self, delta: float) -> float:
        """The smallest epsilon of the curve whose delta is at most `delta`; else infinity."""
        within = np.flatnonzero(self.deltas <= delta)
        return float(self.epsilons[within[0]]) if len(within) else math.inf

    def max_tpr(self, false_positive_rate: float) -> float:
        """The largest true-positive rate any attack may have."""
        return 1 - self(false_positive_rate)

    def max_auc(self) -> float:
        """The largest AUC any attack may have: the integral of 1 - f."""
        x = np.concatenate([[0.0], np.geomspace(1e-9, 1e-2, 600), np.linspace(1e-2, 1.0, 2001)[1:]])
        values = np.array([self.max_tpr(float(v)) for v in x])
        # Right end of each cell: f falls, so that the ceiling errs upwards.
        return float(min(1.0, (np.diff(x) * values[1:]).sum()))


def fixed_schedule_curve(events: Sequence[PoissonGaussian]) -> TradeOffCurve:
    """Curve of a schedule fixed in advance, from its privacy loss distribution (A5)."""
    composed = None
    for event in events:
        if event.steps:
            step = privacy_loss_distribution.from_gaussian_mechanism(
                float(event.noise_multiplier),
                sampling_prob=float(event.q),
                value_discretization_interval=PLD_INTERVAL,
            ).self_compose(event.steps)
            composed = step if composed is None else composed.compose(step)
    if composed is None:
        return TradeOffCurve(epsilons=np.zeros(1), deltas=np.zeros(1))
    high, before = 0.25, 2.0
    # A delta that has stopped falling is the truncated mass of the numerics.
    while _DELTA_FLOOR < (delta := composed.get_delta_for_epsilon(high)) < before:
        high, before = 1.25 * high, delta
    epsilons = np.linspace(0.0, high, _POINTS)
    deltas = np.asarray(composed.get_delta_for_epsilon(epsilons.tolist()))
    return TradeOffCurve(epsilons=epsilons, deltas=np.clip(deltas, 0.0, 1.0))


def filter_curve(limit_pico: int, alpha: int) -> TradeOffCurve:
    """Curve of an RDP filter of `limit_pico` at the frozen order `alpha` (AU27, A9).

    delta(epsilon) = exp((alpha - 1)(B - epsilon + log(1 - 1/alpha))) / alpha, at most 1.
    """
    budget = limit_pico / PICO
    high = budget - math.log(_DELTA_FLOOR) / (alpha - 1)
    epsilons = np.linspace(0.0, high, _POINTS)
    exponent = (alpha - 1) * (budget - epsilons + math.log1p(-1 / alpha)) - math.log(alpha)
    return TradeOffCurve(epsilons=epsilons, deltas=np.exp(np.minimum(exponent, 0.0)))


def gaussian_curve(mu: float) -> TradeOffCurve:
    """Curve between N(0, 1) and N(mu, 1); for tests and for the table of ceilings."""
    if mu <= 0:
        raise AuditInvalid("mu", "not positive")
    epsilons = np.linspace(0.0, mu * (mu / 2 + 9), _POINTS)
    first = special.ndtr(-epsilons / mu + mu / 2)
    second = np.exp(epsilons + special.log_ndtr(-epsilons / mu - mu / 2))
    return TradeOffCurve(epsilons=epsilons, deltas=np.clip(first - second, 0.0, 1.0))
