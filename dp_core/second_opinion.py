"""An independent second opinion on epsilon: Opacus' PRV accountant. Never a guarantee.

Kept apart from `accounting`, because Opacus imports torch. Source: arXiv 2106.02848.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from decimal import Decimal

from opacus.accountants.prv import PRVAccountant

from dp_core.accounting import round_up
from dp_core.events import PoissonGaussian

EPSILON_ERROR = 0.01


def history_of(events: Sequence[PoissonGaussian]) -> list[tuple[float, float, int]]:
    """The events as Opacus' accountants keep them: (noise multiplier, rate, steps)."""
    return [(float(e.noise_multiplier), float(e.q), e.steps) for e in events if e.steps]


def prv_epsilon_upper(events: Sequence[PoissonGaussian], delta: str) -> str:
    """Upper bound by numerical composition of privacy random variables, 4 digits."""
    accountant = PRVAccountant()
    accountant.history = history_of(events)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        epsilon = accountant.get_epsilon(float(delta), eps_error=EPSILON_ERROR)
    return str(round_up(Decimal(repr(float(epsilon)))))
