"""Noise levels that meet (epsilon, delta): fixed schedules by PLD, menus by one RDP order.

Fixed mode (C1): smallest noise multiplier on the 0.001 grid whose PLD epsilon of the
whole run stays within the target; for a course of changing noise, its smallest height.
Adaptive mode (C2): smallest reference multiplier over the orders, with a menu around it.
Registration (C3): an order for a population. Numbers: privacy.md section 9. Results are
cached by their arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from decimal import ROUND_CEILING, Decimal
from functools import cache, lru_cache
from itertools import count

from dp_core.accounting import (
    ORDER_MAX,
    ORDER_MIN,
    PICO,
    limit_pico,
    pld_epsilon,
    pld_epsilon_coarse,
    rdp_budget,
    step_pico,
)
from dp_core.errors import CalibrationImpossible
from dp_core.events import PoissonGaussian, decimal_of
from dp_core.noise_estimate import noise_multiplier_estimate
from dp_core.noise_schedule import GRID, NoiseSchedule, scaled

GRID_MAX = 100_000  # multiplier 100
MENU_FACTORS = tuple(Decimal(f) for f in ("0.9", "1", "1.1", "1.25", "1.5"))
LOWEST_LEVEL_AFFORDS = 8  # at least 1/8 of the steps
USABLE_SHARE = Decimal("0.4")
COARSE_INTERVAL = 1e-3  # about seven times cheaper than the certificate's 1e-4
SECANT_TURNS = 8  # then bisection


def _grid_text(units: int) -> str:
    return str(Decimal(units) * GRID)


def _smallest(
    value: Callable[[int], Decimal], target: Decimal, guess: int, slope: float = -1.5
) -> tuple[int, float]:
    """Smallest grid index with value <= target, for a falling function, and its log slope.

    Safeguarded secant steps on logarithms: each evaluation narrows a bracket whose upper end
    was accepted and whose lower end was refused, so the answer does not hang on the guess.

    Raises:
        CalibrationImpossible: nothing up to the grid's end is accepted.
    """
    low, high = 0, GRID_MAX + 1  # refused, or off the grid; accepted, or off the grid
    index, last = min(max(guess, 1), GRID_MAX), None
    for turn in count():
        found = value(index)
        low, high = (low, index) if found <= target else (index, high)
        if high > GRID_MAX and low == GRID_MAX:
            raise CalibrationImpossible(
                "No noise multiplier up to 100 meets the target. "
                "Raise epsilon, lower the steps or lower the batch size."
            )
        if high - low == 1:
            return high, slope
        at = (math.log(index), math.log(max(float(found), 1e-9)))
        if not found.is_finite():
            index = min(2 * index, high - 1)
            continue
        if last is not None and last != at:
            slope = min((at[1] - last[1]) / (at[0] - last[0]), -0.05)
        last = at
        crossing = math.exp(min(at[0] + (math.log(float(target)) - at[1]) / slope, 20))
        index = min(max(math.ceil(crossing), low + 1), high - 1)
        if turn > SECANT_TURNS:
            index = (low + high) // 2
    raise AssertionError("unreachable")


@lru_cache(maxsize=1024)
def calibrate_fixed(*, epsilon: str, delta: str, q: str, steps: int) -> tuple[str, str]:
    """Smallest multiplier with PLD epsilon(steps) <= epsilon, and that epsilon (C1).

    Guarantee: the returned pair was evaluated with the certificate's own PLD, and so was the
    grid value below it. An estimate and a coarser PLD only say where to look, so that two or
    three of the dear evaluations suffice: 1 to 4 seconds, nothing when asked again.

    Raises:
        PlanInvalid: an argument is out of range.
        CalibrationImpossible: no multiplier up to 100 suffices.
    """
    schedule, certified = calibrate_schedule(
        epsilon=epsilon, delta=delta, q=q, parts=(("1", steps),)
    )
    return schedule.levels[0], certified


@lru_cache(maxsize=1024)
def calibrate_schedule(
    *, epsilon: str, delta: str, q: str, parts: tuple[tuple[str, int], ...]
) -> tuple[NoiseSchedule, str]:
    """The lowest schedule of a given course with PLD epsilon <= epsilon, and that epsilon.

    `parts` are (factor, steps) as `NoiseShape.over` gives them; level = height * factor,
    rounded up to the grid, and the height is the smallest on the grid (C1, A5). Guarantee and
    cost as `calibrate_fixed`, each evaluation about once per level.

    Raises:
        PlanInvalid: an argument is out of range.
        CalibrationImpossible: no height up to 100 suffices.
    """
    rdp_budget(epsilon, delta, ORDER_MIN)  # refuses an epsilon or delta out of range
    target = decimal_of(epsilon, field="target_epsilon")

    @cache
    def events(index: int) -> tuple[PoissonGaussian, ...]:
        return scaled(parts, index * GRID).events(q)

    events(GRID_MAX)  # refuses a rate or number of steps out of range
    steps = sum(part[1] for part in parts)
    estimate = noise_multiplier_estimate(
        epsilon=float(target), delta=float(delta), q=[float(q)], steps=[steps]
    )
    # Near the target RDP falls about as 1/sigma^2: the course with that mean is the guess.
    mean_square = sum(n / float(factor) ** 2 for factor, n in parts) / steps
    guess, slope = round(float(estimate[0]) * math.sqrt(mean_square) / float(GRID)), -1.5
    with suppress(CalibrationImpossible):  # too coarse to find anything: keep the estimate
        guess, slope = _smallest(
            lambda i: Decimal(pld_epsilon_coarse(events(i), delta, COARSE_INTERVAL)), target, guess
        )
    index, _ = _smallest(lambda i: Decimal(pld_epsilon(events(i), delta)), target, guess, slope)
    return scaled(parts, index * GRID), pld_epsilon(events(index), delta)


@lru_cache(maxsize=256)
def calibrate_adaptive(
    *, epsilon: str, delta: str, q: str, steps_started_max: int
) -> tuple[int, tuple[str, ...], tuple[int, ...]]:
    """Frozen order, menu of multipliers and the steps each affords (C2).

    Raises:
        CalibrationImpossible: no order in 2..64 is admissible, because none holds the steps at
            all, or because at every one the noise is so low that the menu's lowest level costs
            more than eight times the reference's steps.
    """
    too_steep: int | None = None
    best: tuple[int, int, tuple[str, ...], tuple[int, ...]] | None = None
    for alpha in range(ORDER_MIN, ORDER_MAX + 1):
        try:
            budget = limit_pico(epsilon, delta, alpha)
        except CalibrationImpossible:
            continue

        def affordable(level: str, alpha: int = alpha, budget: int = budget) -> int:
            return budget // step_pico(q, level, alpha)

        def cost(index: int, alpha: int = alpha) -> Decimal:
            return Decimal(steps_started_max * step_pico(q, _grid_text(index), alpha))

        if best is not None and (best[0] == 1 or cost(best[0] - 1) > budget):
            continue  # cannot have a smaller reference than the best so far
        reference, _ = _smallest(cost, Decimal(budget), 1000 if best is None else best[0])
        menu = tuple(
            str((Decimal(reference) * GRID * f).quantize(GRID, rounding=ROUND_CEILING))
            for f in MENU_FACTORS
        )
        steps = tuple(affordable(level) for level in menu)
        enough = steps[0] * LOWEST_LEVEL_AFFORDS >= steps_started_max
        too_steep = reference if not enough and too_steep is None else too_steep
        if enough and (best is None or reference < best[0]):
            best = (reference, alpha, menu, steps)
    if best is None and too_steep is not None:
        raise CalibrationImpossible(
            f"So few steps need a noise multiplier of only {_grid_text(too_steep)}, and a tenth "
            "less costs more than eight times as much: a policy cannot choose the level there. "
            "Take fixed_sigma, a larger batch or many more steps."
        )
    if best is None:
        raise CalibrationImpossible(
            f"No order in {ORDER_MIN}..{ORDER_MAX} affords {steps_started_max} steps at epsilon "
            f"{epsilon}, delta {delta}. Lower the steps or raise epsilon."
        )
    return best[1], best[2], best[3]


@lru_cache(maxsize=256)
def propose_alpha(epsilon: str, delta: str) -> int:
    """The order that a population's registration proposes for its filter (C3).

    The smallest order that turns at least 40 % of epsilon into RDP budget: 4 at (8, 1e-6),
    8 at (3, 1e-6). It errs low on purpose: an order too low wastes some budget, one too
    high makes steps of little noise explode in price.

    Raises:
        CalibrationImpossible: no order in 2..64 does.
    """
    wanted = decimal_of(epsilon, field="epsilon") * PICO * USABLE_SHARE
    for alpha in range(ORDER_MIN, ORDER_MAX + 1):
        try:
            if limit_pico(epsilon, delta, alpha) >= wanted:
                return alpha
        except CalibrationImpossible:
            continue
    raise CalibrationImpossible(f"No order fits epsilon {epsilon} at delta {delta}. Raise epsilon.")
