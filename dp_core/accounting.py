"""Prices, limits and filters: Renyi accounting in exact integers, PLD for certificates.

The unit of account is 1e-12 RDP ("pico") at one integer order. Charges round up,
limits round down, both from decimal strings with 60 working digits, so that another
implementation gets the same integers. No float takes part in a decision.

Sources: RDP of the Poisson-subsampled Gaussian, integer orders: arXiv 1908.10530
section 3.3; conversion to (epsilon, delta): arXiv 2004.00010; RDP filter at a fixed
order: arXiv 2008.11193. Notation: privacy.md section 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal
from fractions import Fraction
from functools import lru_cache

import dp_accounting
import mpmath

from dp_core.errors import BudgetExhausted, CalibrationImpossible, PlanInvalid
from dp_core.events import PoissonGaussian, decimal_of
from dp_core.gaussian_pld import epsilon_of_events

PICO = 10**12
ORDER_MIN, ORDER_MAX = 2, 64
WORKING_DIGITS = 60
# Finer than needed for V14 of the vectors, where 1e-3 overstates epsilon by a quarter.
PLD_INTERVAL = 1e-4


def _check_order(alpha: int) -> None:
    if not ORDER_MIN <= alpha <= ORDER_MAX:
        raise PlanInvalid("alpha", f"order outside {ORDER_MIN}..{ORDER_MAX}")


def rdp_per_step(q: str, noise_multiplier: str, alpha: int) -> mpmath.mpf:
    """Renyi divergence of one Poisson-subsampled Gaussian step at integer order `alpha`.

    Bounds both directions of add/remove (A1). Relative error below 1e-50.

    Raises:
        PlanInvalid: q outside (0, 1], multiplier not positive, order outside 2..64.
    """
    _check_order(alpha)
    PoissonGaussian(q=q, noise_multiplier=noise_multiplier, steps=1)  # validates
    with mpmath.workdps(WORKING_DIGITS):
        rate, sigma = mpmath.mpf(q), mpmath.mpf(noise_multiplier)
        if rate == 1:
            return alpha / (2 * sigma**2)
        total = mpmath.mpf(0)
        for j in range(2, alpha + 1):
            weight = mpmath.binomial(alpha, j) * rate**j * (1 - rate) ** (alpha - j)
            total += weight * mpmath.expm1(j * (j - 1) / (2 * sigma**2))
        return mpmath.log1p(total) / (alpha - 1)


@lru_cache(maxsize=65536)
def step_pico(q: str, noise_multiplier: str, alpha: int) -> int:
    """Price of one step in pico-RDP at order `alpha`, rounded up.

    Without sampling (q = 1) the price is rational and rounded up exactly; 60 digits of a
    quotient could sit a hair above an integer.
    """
    if decimal_of(q, field="q") == 1:
        _check_order(alpha)
        event = PoissonGaussian(q=q, noise_multiplier=noise_multiplier, steps=1)
        return math.ceil(Fraction(alpha * PICO) / (2 * Fraction(event.noise_multiplier) ** 2))
    with mpmath.workdps(WORKING_DIGITS):
        return int(mpmath.ceil(rdp_per_step(q, noise_multiplier, alpha) * PICO))


def charge_pico(event: PoissonGaussian, alpha: int) -> int:
    """Price of an event: steps times the rounded-up price of one step (A3)."""
    return event.steps * step_pico(event.q, event.noise_multiplier, alpha)


def total_pico(events: Sequence[PoissonGaussian], alpha: int) -> int:
    """Price of several events together: prices at one order add up."""
    return sum(charge_pico(event, alpha) for event in events)


def rdp_budget(epsilon: str, delta: str, alpha: int) -> mpmath.mpf:
    """RDP at order `alpha` that gives (epsilon, delta); may be <= 0 (order unusable)."""
    _check_order(alpha)
    eps, dlt = decimal_of(epsilon, field="epsilon"), decimal_of(delta, field="delta")
    if eps <= 0:
        raise PlanInvalid("epsilon", "not positive")
    if not 0 < dlt < 1:
        raise PlanInvalid("delta", "outside (0, 1)")
    with mpmath.workdps(WORKING_DIGITS):
        d = mpmath.mpf(delta)
        return (
            mpmath.mpf(epsilon)
            - mpmath.log1p(-mpmath.mpf(1) / alpha)
            + mpmath.log(d * alpha) / (alpha - 1)
        )


def limit_pico(epsilon: str, delta: str, alpha: int) -> int:
    """Budget in pico-RDP of (epsilon, delta) at order `alpha`, rounded down (A2, A3).

    Raises:
        CalibrationImpossible: the order is too low to express this (epsilon, delta).
    """
    with mpmath.workdps(WORKING_DIGITS):
        budget = int(mpmath.floor(rdp_budget(epsilon, delta, alpha) * PICO))
    if budget <= 0:
        raise CalibrationImpossible(
            f"Order {alpha} is too low for epsilon {epsilon} at delta {delta}: "
            "its RDP budget is not positive. Choose a higher order."
        )
    return budget


def epsilon_of_pico(spent_pico: int, delta: str, alpha: int) -> Decimal:
    """(epsilon, delta) conversion of an RDP spend at one order, rounded up to 4 digits."""
    return _shown(_epsilon(spent_pico, delta, alpha))


def _epsilon(spent_pico: int, delta: str, alpha: int) -> mpmath.mpf:
    with mpmath.workdps(WORKING_DIGITS):
        return mpmath.mpf(spent_pico) / PICO + _conversion(delta, alpha)


@lru_cache(maxsize=4096)
def _conversion(delta: str, alpha: int) -> mpmath.mpf:
    """What the conversion adds at one order whatever was spent; two logarithms, so kept."""
    with mpmath.workdps(WORKING_DIGITS):
        log_term = mpmath.log(mpmath.mpf(delta) * alpha) / (alpha - 1)
        return mpmath.log1p(-mpmath.mpf(1) / alpha) - log_term


def _shown(epsilon: mpmath.mpf) -> Decimal:
    with mpmath.workdps(WORKING_DIGITS):
        return round_up(Decimal(mpmath.nstr(max(epsilon, mpmath.mpf(0)), 30)))


def round_up(value: Decimal) -> Decimal:
    """Rounded up at the fourth decimal, as every shown epsilon is."""
    return value.quantize(Decimal("0.0001"), rounding=ROUND_CEILING)


def charge_curve(events: Sequence[PoissonGaussian]) -> list[int]:
    """What the events cost together at each order 2..64, in pico-RDP."""
    orders = range(ORDER_MIN, ORDER_MAX + 1)
    return [total_pico(events, alpha) for alpha in orders]


def epsilon_of_curve(curve: Sequence[int], delta: str) -> str:
    """The smallest epsilon over the orders 2..64 of `charge_curve`; "0" when nothing was spent.

    A report, never a guarantee: choosing the best order afterwards is not a filter
    (ledger.md 3.7).
    """
    if not any(curve):
        return "0"
    orders = range(ORDER_MIN, ORDER_MAX + 1)
    return str(_shown(min(_epsilon(s, delta, a) for s, a in zip(curve, orders, strict=True))))


def epsilon_so_far(
    events: Sequence[PoissonGaussian], delta: str, *, is_fixed_schedule: bool = False
) -> str:
    """Epsilon of what was charged so far; "0" before anything was charged.

    The smallest over the orders 2..64, or by PLD for a job whose schedule was fixed
    beforehand: its promise is a PLD epsilon too, and the RDP figure of a few steps would
    stand above it. A report, never a guarantee: choosing the best order afterwards is not a
    filter (ledger.md 3.7), and an early stop does not lower a certificate (A6).
    """
    if not any(event.steps for event in events):
        return "0"
    if is_fixed_schedule:
        return pld_epsilon(events, delta)
    return epsilon_of_curve(charge_curve(events), delta)


class RdpFilter:
    """Opens a charge only while the sum at ONE frozen order stays within the budget.

    Guarantee: for every adaptive choice of levels and every stopping rule the whole is
    (epsilon, delta)-DP for the limit's (epsilon, delta) (arXiv 2008.11193, A7). Answers
    depend on charges only.
    """

    def __init__(self, *, limit_pico: int, alpha: int, spent_pico: int = 0) -> None:
        _check_order(alpha)
        self.limit_pico, self.alpha, self.spent_pico = limit_pico, alpha, spent_pico

    @property
    def free_pico(self) -> int:
        return self.limit_pico - self.spent_pico

    def fits(self, event: PoissonGaussian) -> bool:
        return charge_pico(event, self.alpha) <= self.free_pico

    def charge(self, event: PoissonGaussian) -> int:
        """Books the event and returns its price.

        Raises:
            BudgetExhausted: it does not fit; nothing is booked.
        """
        amount = charge_pico(event, self.alpha)
        if amount > self.free_pico:
            raise BudgetExhausted(
                f"The filter has {self.free_pico} pico-RDP left at order {self.alpha} and the "
                f"charge needs {amount}. Use fewer steps or a higher noise multiplier."
            )
        self.spent_pico += amount
        return amount


@lru_cache(maxsize=4096)
def _pld_epsilon(events: tuple[PoissonGaussian, ...], delta: str, interval: float) -> float:
    return epsilon_of_events(events, float(delta), interval)


def to_dp_event(event: PoissonGaussian) -> dp_accounting.DpEvent:
    """The event as google/differential-privacy's dp_accounting writes it."""
    gaussian = dp_accounting.GaussianDpEvent(float(event.noise_multiplier))
    q = float(event.q)
    step = gaussian if q == 1 else dp_accounting.PoissonSampledDpEvent(q, gaussian)
    return dp_accounting.SelfComposedDpEvent(step, event.steps)


def pld_epsilon(events: Sequence[PoissonGaussian], delta: str) -> str:
    """Certified epsilon of a schedule fixed in advance (A5), rounded up at the 4th digit.

    Privacy loss distributions of dp_accounting: pessimistic estimate, both directions of
    add/remove, interval 1e-4. Infinite where the numerics cannot decide.
    """
    epsilon = _pld_epsilon(tuple(events), delta, PLD_INTERVAL)
    if not math.isfinite(epsilon):
        return "Infinity"
    return str(round_up(Decimal(repr(epsilon))))


def pld_epsilon_coarse(events: Sequence[PoissonGaussian], delta: str, interval: float) -> float:
    """PLD epsilon at a wider interval: an upper bound too, cheaper and looser. For searches."""
    return _pld_epsilon(tuple(events), delta, interval)
