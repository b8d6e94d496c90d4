"""Finds the population limit that pays for one planned job, before anything is asked for.

A job of fixed noise is certified by PLD, while a population counts RDP at one fixed order,
which is looser (ledger.md 3.5, 3.6). So a population that is to pay for one job of
epsilon 8 needs a limit above 8; this is where the demonstration computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from dp_core.accounting import ORDER_MAX, ORDER_MIN, charge_pico, epsilon_of_pico, total_pico
from dp_core.plan import RunPlan

GRID = Decimal("0.1")


@dataclass(frozen=True, kw_only=True)
class GrantChoice:
    """Terms of a first grant: the smallest limit at the order where the job is cheapest."""

    epsilon: str
    delta: str
    alpha_star: int


def grant_for(plan: RunPlan) -> GrantChoice:
    """The grant that the plan's worst case just fits, in each block, and never below its target."""
    needs = [(_epsilon_needed(plan, alpha), alpha) for alpha in range(ORDER_MIN, ORDER_MAX + 1)]
    needed, alpha = min(needs)
    wanted = max(needed, Decimal(plan.target_epsilon))
    return GrantChoice(
        epsilon=format(wanted.quantize(GRID, rounding=ROUND_CEILING).normalize(), "f"),
        delta=plan.delta,
        alpha_star=alpha,
    )


def _epsilon_needed(plan: RunPlan, alpha: int) -> Decimal:
    worst = total_pico(plan.training_events(), alpha)
    if plan.validation is not None:
        worst = max(worst, charge_pico(plan.validation.event(), alpha))
    return epsilon_of_pico(worst, plan.delta, alpha)
